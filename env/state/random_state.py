"""Random states of fleets of any size: what tests and benchmarks read where no fleet runs.

Every server has one NVLink fabric, a PCIe root for each GPU and one network adapter; every pair of
zones one backbone link; replicas take neighbouring GPUs in turn and all tenants may use all of
them. Values lie in their features' ranges, each with a chance to be absent.

Does not know: which values go together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .cluster_state import ClusterState
from .edges import EDGE_TYPES, Edge, Edges
from .feature import FloatArray, Node, Scale
from .registry import FEATURES_BY_NODE

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]

_WIDE = 1e4
"""Ranges wider than this factor are drawn from in the logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSize:
    """How many nodes there are of each kind; numbers may be 0."""

    num_servers: int = 512
    gpus_per_server: int = 8
    gpus_per_replica: int = 4
    num_zones: int = 2
    num_tenants: int = 4

    @property
    def num_gpus(self) -> int:
        """Return the number of GPUs."""
        return self.num_servers * self.gpus_per_server

    @property
    def num_replicas(self) -> int:
        """Return the number of replicas; GPUs left over serve none."""
        return self.num_gpus // self.gpus_per_replica

    @property
    def links_per_server(self) -> int:
        """Return the number of links: NVLink fabric, PCIe roots, network adapter."""
        return self.gpus_per_server + 2

    def num_nodes(self) -> dict[Node, int]:
        """Return the number of nodes of each kind."""
        backbones = self.num_zones * (self.num_zones - 1) // 2
        return {
            Node.REPLICA: self.num_replicas,
            Node.GPU: self.num_gpus,
            Node.SERVER: self.num_servers,
            Node.LINK: self.num_servers * self.links_per_server + backbones,
            Node.ZONE: self.num_zones,
            Node.TENANT: self.num_tenants,
            Node.FLEET: 1,
        }


def random_state(
    random: np.random.Generator, size: FleetSize, *, absent_frac: float = 0.2
) -> ClusterState:
    """Return a state; `absent_frac` of its values and ages are absent."""
    values, is_valid, age_s = {}, {}, {}
    for node, num in size.num_nodes().items():
        scales = [feature.scale for feature in FEATURES_BY_NODE[node]]
        values[node] = _draw(random, num, scales)
        is_valid[node] = random.random((num, len(scales))) >= absent_frac
        age_s[node] = np.where(
            random.random(num) < absent_frac, np.inf, random.exponential(0.2, num)
        )
    pairs = _pairs(size)
    gpus = np.arange(size.num_gpus)
    hosted = gpus // size.gpus_per_replica
    return ClusterState(
        now_s=0.0,
        values=values,
        is_valid=is_valid,
        age_s=age_s,
        gpu_replica=np.where(hosted < size.num_replicas, hosted, -1),
        gpu_server=gpus // max(size.gpus_per_server, 1),
        edges={edge: _edges(random, edge, pairs[edge], absent_frac) for edge in pairs},
    )


def _draw(random: np.random.Generator, num: int, scales: list[Scale]) -> FloatArray:
    """Return values in the scales' ranges, [num, scales]."""
    drawn = random.random((num, len(scales)))
    for i, scale in enumerate(scales):
        if scale.low > 0 and scale.high / scale.low > _WIDE:
            drawn[:, i] = scale.low * (scale.high / scale.low) ** drawn[:, i]
        elif scale.high - scale.low > _WIDE:
            drawn[:, i] = scale.low + np.expm1(drawn[:, i] * np.log1p(scale.high - scale.low))
        else:
            drawn[:, i] = scale.low + drawn[:, i] * (scale.high - scale.low)
    return drawn


def _edges(random: np.random.Generator, edge: Edge, pairs: Pairs, absent_frac: float) -> Edges:
    source, target = pairs
    values = _draw(random, len(source), [one.scale for one in EDGE_TYPES[edge].features])
    values[random.random(values.shape) < absent_frac] = np.nan
    return Edges(source=source, target=target, values=values)


def _pairs(size: FleetSize) -> Mapping[Edge, Pairs]:
    """Return which nodes the edges of each kind join."""
    gpus, servers = np.arange(size.num_gpus), np.arange(size.num_servers)
    hosted = gpus[: size.num_replicas * size.gpus_per_replica]
    replica = hosted // size.gpus_per_replica
    per_server = max(size.gpus_per_server, 1)
    on_server = np.unique(np.stack([replica, hosted // per_server]), axis=1)
    first_link = gpus // per_server * size.links_per_server
    ends = np.array(list(combinations(range(size.num_zones), 2)), dtype=np.int64).reshape(-1)
    backbone = np.arange(len(ends)) // 2 + size.num_servers * size.links_per_server
    tenant, used = np.divmod(
        np.arange(size.num_tenants * size.num_replicas), max(size.num_replicas, 1)
    )
    pairs = {
        Edge.IN_SERVER: (gpus, gpus // per_server),
        Edge.HOSTS: (hosted, replica),
        Edge.ON_SERVER: (on_server[0], on_server[1]),
        Edge.NVLINK: (gpus, first_link),
        Edge.PCIE: (gpus, first_link + 1 + gpus % per_server),
        Edge.RDMA: (servers, servers * size.links_per_server + size.links_per_server - 1),
        Edge.BACKBONE: (ends, backbone),
        Edge.WAITS_ON: (tenant, used),
    }
    if size.num_zones:
        pairs[Edge.IN_ZONE] = (servers, servers % size.num_zones)
    return pairs
