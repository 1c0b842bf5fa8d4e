"""What connects the GPUs of a cluster: links with bandwidth and latency, and paths over them.

A server has a network uplink and downlink, a disk, and for each GPU its NVLink ports and its PCIe
lanes to the host, which two GPUs may share. Zones are connected by one link for each direction. A
replica over several GPUs sends its shards side by side: it is counted on its first GPU's ports
with that GPU's share of the bytes, the others being alike.

Does not know: what is transferred, or when (`simulator/transfers.py`).
Source: research on peers, section 6 (achieved bandwidths); each constant names its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from .cluster import ClusterSpec, ReplicaSpec, ServerSpec
from .compiled import compiled
from .hardware import GPUS

# share of an adapter's bandwidth that a KV transfer reaches: Mooncake's transfer engine moves
# 87 GB/s over 4 x 200 Gb/s
NETWORK_ACHIEVED_FRAC = 0.87
# share of PCIe bandwidth that is reached: 25 of 32 GB/s (gen 4), 50 of 64 (gen 5), aiconfigurator
PCIE_ACHIEVED_FRAC = 0.78
# share of NVLink bandwidth that send/recv reaches at 64 MB: 224 of 300 (A100), 341 of 450 GB/s
# (H100), Vidur's measurements
NVLINK_ACHIEVED_FRAC = 0.75
# s to set up a transfer over NVLink, assumed: a few launches and a handshake
LOCAL_LATENCY_S = 10e-6

# Most links on a path: PCIe out, uplink, zone to zone, downlink, PCIe in.
MAX_PATH = 5
# "No such link": an index that no link has. Internal to the tables.
_NONE = -1

LINK_DTYPE = np.dtype(
    [
        ("bytes_per_s", np.float64),
        ("latency_s", np.float64),
        ("factor", np.float64),  # of the bandwidth, that is left by a degradation
        # Scratch of the fair shares: bandwidth and summed shares not given out yet.
        ("left_bytes_per_s", np.float64),
        ("load", np.float64),
    ]
)

# Where a replica is attached: indices of links, and the share of its bytes that crosses them.
PORT_DTYPE = np.dtype(
    [
        ("server", np.int64),
        ("zone", np.int64),
        ("gpu_mask", np.uint64),  # GPUs that it holds
        ("nvlink_out", np.int64),
        ("nvlink_in", np.int64),
        ("nvlink_share", np.float64),
        ("pcie_out", np.int64),
        ("pcie_in", np.int64),
        ("pcie_share", np.float64),
        ("uplink", np.int64),
        ("downlink", np.int64),
        ("disk", np.int64),
    ]
)

# Where weights are loaded from; the values are those of the compiled `fill_storage_path`.
DISK, PAGE_CACHE, NETWORK = range(3)


class WeightSource(StrEnum):
    """Where an engine reads its weights from when it starts."""

    DISK = "disk"
    PAGE_CACHE = "page_cache"
    NETWORK = "network"

    @property
    def code(self) -> int:
        """Its number in the tables."""
        return {"disk": DISK, "page_cache": PAGE_CACHE, "network": NETWORK}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link, one direction."""

    name: str
    """Unique in the cluster: `server/kind`, `server/gpu-k/kind`, or `zone>zone`."""
    bytes_per_s: float
    """Bandwidth that transfers reach together."""
    latency_s: float
    """Added to a transfer that crosses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A link on a path, and the share of the path's bytes that crosses it."""

    link: str
    share: float


class Topology:
    """All links of a cluster, and where each replica is attached to them."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self.links: list[Link] = []
        self._index: dict[str, int] = {}
        zones = list(dict.fromkeys(server.zone for server in cluster.servers))
        for server in cluster.servers:
            self._add_server(server)
        self.zone_links = np.full((len(zones), len(zones)), _NONE, dtype=np.int64)
        for a, source in enumerate(zones):
            for b, target in enumerate(zones):
                if a != b:
                    bytes_per_s = cluster.inter_zone_bytes_per_s
                    self.zone_links[a, b] = self._add(
                        f"{source}>{target}", bytes_per_s, cluster.inter_zone_latency_s
                    )
        self.ports = np.zeros(len(cluster.replicas), dtype=PORT_DTYPE)
        servers = {server.name: i for i, server in enumerate(cluster.servers)}
        for port, replica in zip(self.ports, cluster.replicas, strict=True):
            server = cluster.servers[servers[replica.server]]
            values = self._port(server, replica)
            values |= {"server": servers[server.name], "zone": zones.index(server.zone)}
            for name, value in values.items():
                port[name] = value

    def _add(self, name: str, bytes_per_s: float, latency_s: float) -> int:
        self._index[name] = len(self.links)
        self.links.append(Link(name=name, bytes_per_s=bytes_per_s, latency_s=latency_s))
        return self._index[name]

    def _add_server(self, server: ServerSpec) -> None:
        gpu = GPUS[server.gpu]
        network = NETWORK_ACHIEVED_FRAC * server.network_bytes_per_s
        self._add(f"{server.name}/uplink", network, server.network_latency_s)
        self._add(f"{server.name}/downlink", network, 0.0)
        self._add(f"{server.name}/disk", server.disk_bytes_per_s, 0.0)
        pcie = PCIE_ACHIEVED_FRAC * gpu.pcie_bytes_per_s
        for k in range(0, server.num_gpus, server.gpus_per_pcie_root):
            for kind in ("pcie-out", "pcie-in"):
                self._add(f"{server.name}/gpu-{k}/{kind}", pcie, 0.0)
        if gpu.nvlink_bytes_per_s is not None:
            nvlink = NVLINK_ACHIEVED_FRAC * gpu.nvlink_bytes_per_s
            for k in range(server.num_gpus):
                for kind, latency_s in (("nvlink-out", LOCAL_LATENCY_S), ("nvlink-in", 0.0)):
                    self._add(f"{server.name}/gpu-{k}/{kind}", nvlink, latency_s)

    def _port(self, server: ServerSpec, replica: ReplicaSpec) -> dict[str, float]:
        first, num_gpus = replica.gpu_indices[0], replica.num_gpus
        root = first // server.gpus_per_pcie_root
        at_root = [k for k in replica.gpu_indices if k // server.gpus_per_pcie_root == root]
        pcie = f"{server.name}/gpu-{root * server.gpus_per_pcie_root}/pcie"
        nvlink = f"{server.name}/gpu-{first}/nvlink"
        return {
            "gpu_mask": sum(1 << (k % 64) for k in replica.gpu_indices),
            "nvlink_out": self._index.get(f"{nvlink}-out", _NONE),
            "nvlink_in": self._index.get(f"{nvlink}-in", _NONE),
            "nvlink_share": 1.0 / num_gpus,
            "pcie_out": self._index[f"{pcie}-out"],
            "pcie_in": self._index[f"{pcie}-in"],
            "pcie_share": len(at_root) / num_gpus,
            "uplink": self._index[f"{server.name}/uplink"],
            "downlink": self._index[f"{server.name}/downlink"],
            "disk": self._index[f"{server.name}/disk"],
        }

    def link_index(self, name: str) -> int:
        """The index of a link in the simulator's tables, as LINK events name it."""
        return self._index[name]

    def link_table(self) -> np.ndarray:
        """The links as the simulator keeps them, LINK_DTYPE [L]."""
        table = np.zeros(len(self.links), dtype=LINK_DTYPE)
        table["bytes_per_s"] = [link.bytes_per_s for link in self.links]
        table["latency_s"] = [link.latency_s for link in self.links]
        table["factor"] = 1.0
        return table


@lru_cache(maxsize=16)
def topology_of(cluster: ClusterSpec) -> Topology:
    """The topology of a cluster; its arrays are shared, do not change them."""
    return Topology(cluster)


def links(cluster: ClusterSpec) -> Mapping[str, Link]:
    """All links of a cluster by name, in the order of their indices."""
    return {link.name: link for link in topology_of(cluster).links}


def path(cluster: ClusterSpec, from_replica: int, to_replica: int) -> list[Crossing]:
    """The links that KV crosses between two replicas; none between replicas of one GPU."""
    topology = topology_of(cluster)
    found, shares = _scratch()
    count = fill_path(topology.ports, topology.zone_links, from_replica, to_replica, found, shares)
    return _crossings(topology, count, found, shares)


def storage_path(
    cluster: ClusterSpec, replica: int, source: WeightSource = WeightSource.DISK
) -> list[Crossing]:
    """The links that a replica's weights cross when they are loaded."""
    topology = topology_of(cluster)
    found, shares = _scratch()
    count = fill_storage_path(topology.ports, replica, source.code, found, shares)
    return _crossings(topology, count, found, shares)


def _scratch() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(MAX_PATH, dtype=np.int64), np.zeros(MAX_PATH)


def _crossings(
    topology: Topology, count: int, found: np.ndarray, shares: np.ndarray
) -> list[Crossing]:
    return [
        Crossing(link=topology.links[i].name, share=float(share))
        for i, share in zip(found[:count], shares[:count], strict=True)
    ]


@compiled
def fill_path(ports, zone_links, source, target, links, shares):
    """Fill the links and shares of the path between two replicas; return how many they are."""
    a, b = ports[source], ports[target]
    if a.server == b.server:
        if (a.gpu_mask & b.gpu_mask) != 0:
            return 0
        if a.nvlink_out != _NONE:
            links[0], shares[0] = a.nvlink_out, a.nvlink_share
            links[1], shares[1] = b.nvlink_in, b.nvlink_share
        else:
            links[0], shares[0] = a.pcie_out, a.pcie_share
            links[1], shares[1] = b.pcie_in, b.pcie_share
        return 2
    links[0], shares[0] = a.pcie_out, a.pcie_share
    links[1], shares[1] = a.uplink, 1.0
    count = 2
    if a.zone != b.zone:
        links[count], shares[count] = zone_links[a.zone, b.zone], 1.0
        count += 1
    links[count], shares[count] = b.downlink, 1.0
    links[count + 1], shares[count + 1] = b.pcie_in, b.pcie_share
    return count + 2


@compiled
def fill_storage_path(ports, replica, source, links, shares):
    """Fill the links and shares that a replica's weights cross; return how many they are."""
    port = ports[replica]
    count = 0
    if source != PAGE_CACHE:
        links[0], shares[0] = port.disk if source == DISK else port.downlink, 1.0
        count = 1
    links[count], shares[count] = port.pcie_in, port.pcie_share
    return count + 1
