"""The state graph of a cluster: its nodes in order, and the edges that never change.

GPUs that serve replicas come first, in the order of the replicas, then idle ones; a GPU that
several replicas share is one node. A server's NVLink ports are one link node, its fabric; each
PCIe root and the network adapter are one each; two zones have one backbone path between them.

Does not know: values of features, or what happens on the links (`..simulator.readers`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..cluster import ClusterSpec, ServerSpec
from ..hardware import GPUS
from ..topology import Topology, topology_of
from .edges import EDGE_TYPES, Edge, Edges

IntArray = NDArray[np.int64]

NUM_TENANTS = 2
"""Tenant queues: interactive and batch."""
LINK_KINDS = ("nvlink", "pcie", "network", "backbone")
"""Kinds of link nodes, as the registry's `is_` features name them."""
# "No replica" and "no link".
NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkNode:
    """One link of the graph, both directions."""

    name: str
    """Unique in the cluster: `server/nvlink`, `server/gpu-k/pcie`, `server/network`, `zone<>zone`.
    """
    kind: str
    """One of `LINK_KINDS`."""
    outward: tuple[int, ...]
    """Its links in `topology.links`, out of the server, or from the zone that is named first."""
    inward: tuple[int, ...]
    """The same, the other way."""
    zones: tuple[int, ...] = ()
    """The two zones that a backbone path joins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """Nodes of a cluster, and how they hang together.

    Shapes: G GPUs, S servers, H hosts edges.
    """

    gpu_names: tuple[str, ...]
    """`server/gpu-k`."""
    gpu_server: IntArray
    """[G]."""
    gpu_replica: IntArray
    """[G]: the first replica that it serves, -1 if it is idle."""
    num_hosting: int
    """GPUs that serve a replica; they come first."""
    host_gpu: IntArray
    """[H]: GPU of each (GPU, replica) pair, in the order of the replicas."""
    host_replica: IntArray
    """[H]."""
    gpu_nvlink: IntArray
    """[G]: link node of its NVLink fabric, -1 without NVLink."""
    gpu_pcie: IntArray
    """[G]: link node of its PCIe root."""
    zones: tuple[str, ...]
    server_zone: IntArray
    """[S]."""
    links: tuple[LinkNode, ...]


@lru_cache(maxsize=16)
def graph_of(cluster: ClusterSpec) -> Graph:
    """Return the graph of a cluster; its arrays are shared, do not change them."""
    topology = topology_of(cluster)
    servers = {server.name: i for i, server in enumerate(cluster.servers)}
    zones = tuple(dict.fromkeys(server.zone for server in cluster.servers))
    pairs = [
        ((servers[replica.server], k), r)
        for r, replica in enumerate(cluster.replicas)
        for k in replica.gpu_indices
    ]
    first_replica: dict[tuple[int, int], int] = {}
    for place, r in pairs:
        first_replica.setdefault(place, r)
    num_hosting = len(first_replica)
    for s, server in enumerate(cluster.servers):
        for k in range(server.num_gpus):
            first_replica.setdefault((s, k), NONE)
    gpus = {place: i for i, place in enumerate(first_replica)}
    links, places = _links(cluster, topology, zones)
    return Graph(
        gpu_names=tuple(f"{cluster.servers[s].name}/gpu-{k}" for s, k in gpus),
        gpu_server=_indices([s for s, _ in gpus]),
        gpu_replica=_indices(first_replica.values()),
        num_hosting=num_hosting,
        host_gpu=_indices([gpus[place] for place, _ in pairs]),
        host_replica=_indices([r for _, r in pairs]),
        gpu_nvlink=_indices([places.get((s, "nvlink", 0), NONE) for s, _ in gpus]),
        gpu_pcie=_indices([places[s, "pcie", _root(cluster.servers[s], k)] for s, k in gpus]),
        zones=zones,
        server_zone=_indices([zones.index(server.zone) for server in cluster.servers]),
        links=links,
    )


def _indices(values: object) -> IntArray:
    return np.array(list(values), dtype=np.int64)  # type: ignore[call-overload]


def _root(server: ServerSpec, gpu: int) -> int:
    """Return the first GPU of a GPU's PCIe root."""
    return gpu // server.gpus_per_pcie_root * server.gpus_per_pcie_root


def _links(
    cluster: ClusterSpec, topology: Topology, zones: tuple[str, ...]
) -> tuple[tuple[LinkNode, ...], dict[tuple[int, str, int], int]]:
    """Return the link nodes, and the place of each server's by (server, kind, first GPU)."""
    links: list[LinkNode] = []
    places: dict[tuple[int, str, int], int] = {}

    def add(name: str, kind: str, ways: list[list[str]], ends: tuple[int, ...] = ()) -> None:
        out, into = (tuple(topology.link_index(link) for link in way) for way in ways)
        links.append(LinkNode(name=name, kind=kind, outward=out, inward=into, zones=ends))

    for s, server in enumerate(cluster.servers):
        gpus = range(server.num_gpus)
        if GPUS[server.gpu].nvlink_bytes_per_s is not None:
            places[s, "nvlink", 0] = len(links)
            ways = [[f"{server.name}/gpu-{k}/nvlink-{way}" for k in gpus] for way in ("out", "in")]
            add(f"{server.name}/nvlink", "nvlink", ways)
        for k in range(0, server.num_gpus, server.gpus_per_pcie_root):
            places[s, "pcie", k] = len(links)
            name = f"{server.name}/gpu-{k}/pcie"
            add(name, "pcie", [[f"{name}-out"], [f"{name}-in"]])
        places[s, "network", 0] = len(links)
        name = server.name
        add(f"{name}/network", "network", [[f"{name}/uplink"], [f"{name}/downlink"]])
    for a, source in enumerate(zones):
        for b in range(a + 1, len(zones)):
            ways = [[f"{source}>{zones[b]}"], [f"{zones[b]}>{source}"]]
            add(f"{source}<>{zones[b]}", "backbone", ways, (a, b))
    return tuple(links), places


@lru_cache(maxsize=16)
def edges_of(cluster: ClusterSpec) -> Mapping[Edge, Edges]:
    """Return all edges of a cluster; its arrays are shared, do not change them.

    What tenants wait for is not known here: the attributes of `WAITS_ON` are NaN.
    """
    graph, replicas = graph_of(cluster), cluster.replicas
    num_gpus, num_servers, num_replicas = graph.gpu_server.size, len(cluster.servers), len(replicas)
    server_of = {server.name: i for i, server in enumerate(cluster.servers)}
    shares = [[replicas[r].gpu_frac, 1.0 / replicas[r].num_gpus] for r in graph.host_replica]
    tenants = np.repeat(np.arange(NUM_TENANTS), num_replicas)
    return {
        Edge.IN_SERVER: _edges(Edge.IN_SERVER, range(num_gpus), graph.gpu_server),
        Edge.IN_ZONE: _edges(Edge.IN_ZONE, range(num_servers), graph.server_zone),
        Edge.HOSTS: _edges(Edge.HOSTS, graph.host_gpu, graph.host_replica, shares),
        Edge.ON_SERVER: _edges(
            Edge.ON_SERVER, range(num_replicas), [server_of[r.server] for r in replicas]
        ),
        **_link_edges(cluster),
        Edge.WAITS_ON: _edges(
            Edge.WAITS_ON, tenants, np.tile(np.arange(num_replicas), NUM_TENANTS)
        ),
    }


def _link_edges(cluster: ClusterSpec) -> dict[Edge, Edges]:
    """Return the edges from GPUs, servers and zones to links."""
    graph, topology, servers = graph_of(cluster), topology_of(cluster), cluster.servers
    gpus = [GPUS[servers[s].gpu] for s in graph.gpu_server]
    wired = np.flatnonzero(graph.gpu_nvlink != NONE)
    nodes = {link.name: i for i, link in enumerate(graph.links)}
    ends = [
        (zone, i, topology.links[link.outward[0]])
        for i, link in enumerate(graph.links)
        for zone in link.zones
    ]
    return {
        # A peer is one hop away over the fabric, the host one over PCIe.
        Edge.NVLINK: _edges(
            Edge.NVLINK,
            wired,
            graph.gpu_nvlink[wired],
            [[gpus[g].nvlink_bytes_per_s, 1.0] for g in wired],
        ),
        Edge.PCIE: _edges(
            Edge.PCIE,
            range(len(gpus)),
            graph.gpu_pcie,
            [[gpu.pcie_bytes_per_s, 1.0] for gpu in gpus],
        ),
        Edge.RDMA: _edges(
            Edge.RDMA,
            range(len(servers)),
            [nodes[f"{server.name}/network"] for server in servers],
            [[server.network_bytes_per_s, server.network_latency_s] for server in servers],
        ),
        Edge.BACKBONE: _edges(
            Edge.BACKBONE,
            [zone for zone, _, _ in ends],
            [i for _, i, _ in ends],
            [[link.bytes_per_s, link.latency_s] for _, _, link in ends],
        ),
    }


def _edges(kind: Edge, source: object, target: object, values: object = None) -> Edges:
    """Return edges of a kind; attributes that are not given are NaN."""
    sources, width = _indices(source), len(EDGE_TYPES[kind].features)
    table = np.full((sources.size, width), np.nan)
    if values is not None:
        table[:] = np.reshape(np.asarray(values, dtype=np.float64), table.shape)
    return Edges(source=sources, target=_indices(target), values=table)
