"""What can be seen of a fleet at one moment: values with ages and masks, on a graph.

Does not know: how the values are gathered, or how they are scaled for a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .edges import Edge, Edges
from .feature import FloatArray, Node
from .registry import FEATURES_BY_NODE, column


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """The state of a fleet at one moment, in raw units.

    Shapes: `values[node]` [nodes of that kind, features of that kind]; `is_valid` the same, False
    where a value is absent (never a silent 0); `age_s[node]` [nodes], seconds since the node was
    last heard of, infinity where it never was or nobody knows; `gpu_replica`, `gpu_server`
    [GPUs], the first replica that a GPU serves (-1: none; all of them are `Edge.HOSTS`) and the
    server that it sits in.
    """

    now_s: float
    values: Mapping[Node, FloatArray]
    is_valid: Mapping[Node, NDArray[np.bool_]]
    age_s: Mapping[Node, FloatArray]
    gpu_replica: NDArray[np.int64]
    gpu_server: NDArray[np.int64]
    edges: Mapping[Edge, Edges] = field(default_factory=dict)
    """How the nodes are connected; an edge kind that is absent has no edges."""

    def __post_init__(self) -> None:
        for node, features in FEATURES_BY_NODE.items():
            shape = self.values[node].shape
            if len(shape) != 2 or shape[1] != len(features):
                msg = f"{node} values must have shape [nodes, {len(features)}], got {shape}"
                raise ValueError(msg)
            for name, array, expected in (
                ("is_valid", self.is_valid[node], shape),
                ("age_s", self.age_s[node], shape[:1]),
            ):
                if array.shape != expected:
                    msg = f"{node} {name} must have shape {expected}, got {array.shape}"
                    raise ValueError(msg)

    def feature(self, node: Node, name: str) -> FloatArray:
        """Return one feature of all nodes of a kind, raw, shape [nodes].

        Raises:
            ValueError: the registry has no such feature.
        """
        return self.values[node][:, column(node, name)]
