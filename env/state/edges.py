"""The edges of the state graph: which nodes they join, and what each carries.

Does not know: a cluster (`graph.py` makes its edges), or the network that reads them.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from .feature import BYTES_PER_S, COUNT, HOPS, LATENCY, SHARE, FloatArray, Node, Scale


class Edge(StrEnum):
    """Kinds of edges. Each is read both ways."""

    IN_SERVER = "in_server"
    IN_ZONE = "in_zone"
    HOSTS = "hosts"
    ON_SERVER = "on_server"
    NVLINK = "nvlink"
    PCIE = "pcie"
    RDMA = "rdma"
    BACKBONE = "backbone"
    WAITS_ON = "waits_on"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeFeature:
    """One attribute of an edge kind."""

    name: str
    unit: str
    scale: Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeType:
    """What an edge kind joins, and its attributes."""

    source: Node
    target: Node
    meaning: str
    features: tuple[EdgeFeature, ...] = ()


def _features(**scales: tuple[str, Scale]) -> tuple[EdgeFeature, ...]:
    return tuple(
        EdgeFeature(name=name, unit=unit, scale=scale) for name, (unit, scale) in scales.items()
    )


EDGE_TYPES: dict[Edge, EdgeType] = {
    Edge.IN_SERVER: EdgeType(
        source=Node.GPU, target=Node.SERVER, meaning="the GPU sits in the server"
    ),
    Edge.IN_ZONE: EdgeType(
        source=Node.SERVER, target=Node.ZONE, meaning="the server stands in the zone"
    ),
    Edge.HOSTS: EdgeType(
        source=Node.GPU,
        target=Node.REPLICA,
        meaning="the GPU serves the replica",
        features=_features(
            gpu_frac=("share of the GPU", SHARE), replica_frac=("share of the replica", SHARE)
        ),
    ),
    Edge.ON_SERVER: EdgeType(
        source=Node.REPLICA, target=Node.SERVER, meaning="the replica runs on the server"
    ),
    Edge.NVLINK: EdgeType(
        source=Node.GPU,
        target=Node.LINK,
        meaning="the GPU is attached to the server's NVLink fabric",
        features=_features(bytes_per_s=("B/s", BYTES_PER_S), hops=("hops to a peer", HOPS)),
    ),
    Edge.PCIE: EdgeType(
        source=Node.GPU,
        target=Node.LINK,
        meaning="the GPU is attached to the PCIe root",
        features=_features(bytes_per_s=("B/s", BYTES_PER_S), hops=("hops to the host", HOPS)),
    ),
    Edge.RDMA: EdgeType(
        source=Node.SERVER,
        target=Node.LINK,
        meaning="the server is attached to the network through the adapter",
        features=_features(bytes_per_s=("B/s", BYTES_PER_S), latency_s=("s", LATENCY)),
    ),
    Edge.BACKBONE: EdgeType(
        source=Node.ZONE,
        target=Node.LINK,
        meaning="the zone is an end of the link to another zone",
        features=_features(bytes_per_s=("B/s", BYTES_PER_S), latency_s=("s", LATENCY)),
    ),
    Edge.WAITS_ON: EdgeType(
        source=Node.TENANT,
        target=Node.REPLICA,
        meaning="the tenant may use the replica; what it has open there",
        features=_features(
            waiting_requests=("requests without a token yet", COUNT),
            outstanding_requests=("requests", COUNT),
        ),
    ),
}
"""Every edge kind; `serves` is `waits_on` read from replica to tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """The edges of one kind.

    Shapes (E edges, A attributes of the kind): `source`, `target` [E], indices of nodes;
    `values` [E, A], raw, NaN where unknown.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    values: FloatArray
