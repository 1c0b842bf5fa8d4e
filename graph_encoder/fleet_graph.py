"""The state of a fleet as a graph of tensors: scaled values, flags of what is known, ages, counts.

A value that is absent is 0 with flag 0, whatever stands under its mask. A node's age beyond the
limit is unknown, as is one that was never known: 0 with flag 0. Edges and numbers of neighbours
are kept as long as the topology stays.

Does not know: where the state came from, or the network.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..env.state.cluster_state import ClusterState
from ..env.state.edges import EDGE_TYPES, Edge, Edges
from ..env.state.feature import FloatArray, Node
from ..env.state.registry import FEATURES_BY_NODE
from .graph_batch import GraphBatch
from .neighbours import Neighbours
from .row_scaling import FloatRows, RowScaling
from .schema import AGE_COLUMNS, FLEET_SCHEMA, EdgeType, backward_type, forward_type

AGE_LIMIT_S = 60.0
"""Ages beyond this are unknown."""
AGE_UNIT_S = 0.1
"""Ages are resolved down to about this: the period of the hub."""

_SCALINGS = {
    node: RowScaling([feature.scale for feature in features])
    for node, features in FEATURES_BY_NODE.items()
}
_EDGE_SCALINGS = {
    edge: RowScaling([feature.scale for feature in kind.features])
    for edge, kind in EDGE_TYPES.items()
}


class GraphBuilder:
    """Makes graphs of the states of one fleet, one after the other.

    Raises:
        ValueError: the age limit is not positive and finite.
    """

    def __init__(self, age_limit_s: float = AGE_LIMIT_S) -> None:
        if not 0 < age_limit_s < float("inf"):
            msg = f"age_limit_s must be positive and finite, got {age_limit_s}"
            raise ValueError(msg)
        self.age_limit_s = age_limit_s
        self._kept: dict[Edge, _KeptEdges] = {}

    def build(self, state: ClusterState) -> GraphBatch:
        """Return the graph of a state, a batch of one.

        Raises:
            ValueError: an edge joins a node that the state does not have.
        """
        neighbours: dict[EdgeType, Neighbours] = {}
        attributes: dict[EdgeType, Tensor] = {}
        for edge in EDGE_TYPES:
            edges = state.edges.get(edge, _no_edges(edge))
            kept = self._neighbours(edge, edges, state)
            rows = torch.from_numpy(edge_rows(edge, edges.values))
            for edge_type, read in (
                (forward_type(edge), kept.neighbours),
                (backward_type(edge), kept.neighbours.reverse),
            ):
                neighbours[edge_type], attributes[edge_type] = read, rows
        x = {node: self._rows(state, Node(node), neighbours) for node in FLEET_SCHEMA.nodes}
        return GraphBatch(
            x=x,
            mask=dict.fromkeys(x),
            fleet=self._rows(state, Node.FLEET, neighbours),
            neighbours=neighbours,
            attributes=attributes,
        )

    def _neighbours(self, edge: Edge, edges: Edges, state: ClusterState) -> "_KeptEdges":
        """Return the edges of a kind, those of the last state if they are the same."""
        kind = EDGE_TYPES[edge]
        sizes = (len(state.values[kind.source]), len(state.values[kind.target]))
        kept = self._kept.get(edge)
        if kept is None or not kept.are(edges, sizes):
            kept = self._kept[edge] = _KeptEdges.of(edges, sizes)
        return kept

    def _rows(
        self, state: ClusterState, node: Node, neighbours: dict[EdgeType, Neighbours]
    ) -> Tensor:
        """Return the inputs of all nodes of a kind, [nodes, columns of the schema]."""
        counts = [part.log_counts for kind, part in neighbours.items() if kind[2] == node]
        num_values = 2 * len(FEATURES_BY_NODE[node])
        num_ages = len(AGE_COLUMNS)
        rows = np.empty(
            (len(state.values[node]), num_values + num_ages + len(counts)), dtype=np.float32
        )
        _SCALINGS[node].fill(rows, state.values[node], state.is_valid[node])
        fill_ages(rows[:, num_values : num_values + num_ages], state.age_s[node], self.age_limit_s)
        x = torch.from_numpy(rows)
        for i, count in enumerate(counts):
            x[:, num_values + num_ages + i] = count
        return x


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _KeptEdges:
    """Edges of a kind as they were, and what was made of them."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    sizes: tuple[int, int]
    neighbours: Neighbours

    @classmethod
    def of(cls, edges: Edges, sizes: tuple[int, int]) -> "_KeptEdges":
        # copies: who made the state may write over its arrays
        source, target = edges.source.copy(), edges.target.copy()
        neighbours = Neighbours(
            torch.from_numpy(source),
            torch.from_numpy(target),
            num_sources=sizes[0],
            num_targets=sizes[1],
        )
        return cls(source=source, target=target, sizes=sizes, neighbours=neighbours)

    def are(self, edges: Edges, sizes: tuple[int, int]) -> bool:
        return (
            sizes == self.sizes
            and np.array_equal(edges.source, self.source)
            and np.array_equal(edges.target, self.target)
        )


def fill_ages(out: FloatRows, age_s: FloatArray, age_limit_s: float) -> None:
    """Write logarithms of ages, 1 at the limit, then flags; an unknown age is 0 with flag 0.

    Shapes (N nodes): `age_s` [N] -> `out` [N, 2].
    """
    is_known = age_s <= age_limit_s  # False for NaN and infinity
    age = np.where(is_known, np.maximum(age_s, 0.0), 0.0)
    out[:, 0] = np.log1p(age / AGE_UNIT_S) / np.log1p(age_limit_s / AGE_UNIT_S)
    out[:, 1] = is_known


def edge_rows(edge: Edge, values: FloatArray) -> FloatRows:
    """Return scaled attributes, then flags, [edges, 2 x attributes]; unknown is 0 with flag 0."""
    rows = np.empty((len(values), 2 * values.shape[1]), dtype=np.float32)
    _EDGE_SCALINGS[edge].fill(rows, values, np.ones(values.shape, dtype=bool))
    return rows


def _no_edges(edge: Edge) -> Edges:
    none = np.zeros(0, dtype=np.int64)
    return Edges(source=none, target=none, values=np.zeros((0, len(EDGE_TYPES[edge].features))))
