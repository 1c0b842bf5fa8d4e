"""Every feature of the state: the one table that probe, simulator, encoder and docs go by.

`FEATURES` is the only place where a feature's name, unit, dimension, range, normaliser and
sources are written. A `ClusterState` holds raw values in those units; `observation.py` and the
graph encoder scale them.

Does not know: how the values are gathered.
"""

import hashlib

import numpy as np

from .communication_features import COMMUNICATION_FEATURES
from .compute_features import COMPUTE_FEATURES
from .edges import EDGE_TYPES, Edge
from .feature import NORMALISERS, Feature, FloatArray, Node, Scale
from .memory_features import MEMORY_FEATURES
from .service_features import SERVICE_FEATURES

FEATURES: tuple[Feature, ...] = (
    *COMPUTE_FEATURES,
    *MEMORY_FEATURES,
    *COMMUNICATION_FEATURES,
    *SERVICE_FEATURES,
)

FEATURES_BY_NODE: dict[Node, tuple[Feature, ...]] = {
    node: tuple(f for f in FEATURES if f.node is node) for node in Node
}

_COLUMNS = {
    node: {f.name: i for i, f in enumerate(features)} for node, features in FEATURES_BY_NODE.items()
}


def column(node: Node, name: str) -> int:
    """Return the column of a feature in the values of its node kind.

    Raises:
        ValueError: the registry has no such feature.
    """
    if name not in _COLUMNS[node]:
        msg = f"unknown {node} feature '{name}'; known: {', '.join(_COLUMNS[node])}"
        raise ValueError(msg)
    return _COLUMNS[node][name]


class Scaling:
    """Scales of some features, as arrays."""

    def __init__(self, scales: tuple[Scale, ...]) -> None:
        self.low = np.array([s.low for s in scales])
        self.high = np.array([s.high for s in scales])
        self.offset = np.array([s.offset for s in scales])
        self.scale = np.array([s.scale for s in scales])
        self._columns = {
            name: np.array([i for i, s in enumerate(scales) if s.normaliser == name], dtype=int)
            for name in NORMALISERS
            if any(s.normaliser == name for s in scales)
        }

    def scaled(self, values: FloatArray) -> FloatArray:
        """Return values clipped to their range and brought near [-1, 1]; [rows, scales]."""
        near = np.clip(values, self.low, self.high)
        for name, columns in self._columns.items():
            near[:, columns] = NORMALISERS[name](near[:, columns])
        near -= self.offset
        near /= self.scale
        return near


_SCALINGS = {
    node: Scaling(tuple(f.scale for f in features)) for node, features in FEATURES_BY_NODE.items()
}
_EDGE_SCALINGS = {
    edge: Scaling(tuple(f.scale for f in kind.features)) for edge, kind in EDGE_TYPES.items()
}


def scaled(node: Node, values: FloatArray) -> FloatArray:
    """Return features of a node kind clipped to their range and brought near [-1, 1].

    Shapes: `values` [nodes, features of the kind], raw, as in `ClusterState.values`.
    """
    return _SCALINGS[node].scaled(values)


def scaled_edges(edge: Edge, values: FloatArray) -> FloatArray:
    """Return attributes of an edge kind clipped to their range and brought near [-1, 1].

    Shapes: `values` [edges, attributes of the kind], raw, as in `Edges.values`.
    """
    return _EDGE_SCALINGS[edge].scaled(values)


def registry_hash() -> str:
    """Return a hash of the registry; a policy is only used with the registry it was trained on."""
    lines = (*map(repr, FEATURES), *map(repr, EDGE_TYPES.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
