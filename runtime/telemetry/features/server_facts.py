"""What does not change about a server: its GPUs, its replicas and what connects them.

From a cluster file all of it is known; from a driver alone, the GPUs by their product names.

Does not know: anything that is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ....env.cluster import ClusterSpec, ReplicaSpec
from ....env.hardware import Gpu
from .nvml_names import catalogue_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server of a rack; `None` where nobody said."""

    name: str
    """Unique in the fleet."""
    gpus: tuple[Gpu | None, ...]
    """In the order of the probe's rows; None for a GPU that the catalogue lacks."""
    replicas: tuple[ReplicaSpec, ...] = ()
    """In the order of the probe's rows; their `gpu_indices` count the GPUs above."""
    gpus_per_pcie_root: int = 1
    """GPUs that share one set of PCIe lanes to the host."""
    network_bytes_per_s: float | None = None
    """Of all adapters together, one direction; None: as the host reports."""
    network_latency_s: float | None = None
    """To set up a transfer to another server."""
    disk_bytes_per_s: float | None = None
    """Bandwidth of its disks."""

    def __post_init__(self) -> None:
        for replica in self.replicas:
            if max(replica.gpu_indices) >= len(self.gpus):
                msg = (
                    f"replica {replica.name!r} needs GPU {max(replica.gpu_indices)}, but server "
                    f"{self.name!r} has {len(self.gpus)}; gpu_indices count from 0"
                )
                raise ValueError(msg)


def facts_of_cluster(cluster: ClusterSpec, names: Sequence[str]) -> tuple[ServerFacts, ...]:
    """Return what a cluster file says of some of its servers.

    Raises:
        ValueError: the cluster has no server of a name.
    """
    servers = {server.name: server for server in cluster.servers}
    if unknown := [name for name in names if name not in servers]:
        msg = f"cluster {cluster.name!r} has no server {unknown[0]!r}; known: {', '.join(servers)}"
        raise ValueError(msg)
    return tuple(
        ServerFacts(
            name=name,
            gpus=(catalogue_gpu(servers[name].gpu),) * servers[name].num_gpus,
            replicas=tuple(r for r in cluster.replicas if r.server == name),
            gpus_per_pcie_root=servers[name].gpus_per_pcie_root,
            network_bytes_per_s=servers[name].network_bytes_per_s,
            network_latency_s=servers[name].network_latency_s,
            disk_bytes_per_s=servers[name].disk_bytes_per_s,
        )
        for name in names
    )


def facts_of_driver(name: str, product_names: Sequence[str]) -> ServerFacts:
    """Return what is known of a server whose driver named its GPUs, and nobody said more."""
    return ServerFacts(name=name, gpus=tuple(catalogue_gpu(product) for product in product_names))
