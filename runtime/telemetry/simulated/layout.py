"""Which servers, GPUs and replicas a simulated fleet has, and in which racks.

Does not know: what they report.
"""

from dataclasses import dataclass

from ....env.cluster import ReplicaSpec
from ....env.hardware import GPUS, Precision
from ..features.server_facts import ServerFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedLayout:
    """Servers of one kind, in racks."""

    num_servers: int = 512
    """Servers in all."""
    num_gpus: int = 8
    """GPUs a server."""
    num_replicas: int = 2
    """Replicas a server; each has an equal share of its GPUs."""
    servers_per_rack: int = 32
    """The last rack may have fewer."""
    gpu: str = "H100-80G"
    """Name in `hardware.GPUS`."""
    model: str = "llama-3-70b"
    """Name in `model_profile.MODELS`, of all replicas."""
    network_bytes_per_s: float = 50e9
    """Of a server, one direction."""

    def __post_init__(self) -> None:
        for name in ("num_servers", "num_gpus", "num_replicas", "servers_per_rack"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.num_gpus % self.num_replicas:
            msg = (
                f"num_gpus must be a multiple of num_replicas ({self.num_replicas}), got "
                f"{self.num_gpus}"
            )
            raise ValueError(msg)

    @property
    def num_racks(self) -> int:
        """Racks in all."""
        return -(-self.num_servers // self.servers_per_rack)

    def server_name(self, server: int) -> str:
        """Return the name of a server; its probe has the same."""
        return f"server-{server:04d}"

    def rack_name(self, rack: int) -> str:
        """Return the name of a rack."""
        return f"rack-{rack:03d}"

    def rack_of(self, server: int) -> str:
        """Return the name of a server's rack."""
        return self.rack_name(server // self.servers_per_rack)

    def servers_of(self, rack: int) -> range:
        """Return the servers of a rack, by index."""
        first = rack * self.servers_per_rack
        return range(first, min(first + self.servers_per_rack, self.num_servers))

    def replica_names(self, server: int) -> list[str]:
        """Return the names of a server's replicas."""
        return [f"{self.server_name(server)}/replica-{r}" for r in range(self.num_replicas)]

    def gpu_names(self, server: int) -> list[str]:
        """Return the names of a server's GPUs."""
        return [f"{self.server_name(server)}/gpu-{g}" for g in range(self.num_gpus)]

    def facts(self, server: int) -> ServerFacts:
        """Return what never changes about a server."""
        share = self.num_gpus // self.num_replicas
        replicas = tuple(
            ReplicaSpec(
                name=name,
                server=self.server_name(server),
                model=self.model,
                gpu_indices=tuple(range(r * share, (r + 1) * share)),
                precision=Precision.BF16,
            )
            for r, name in enumerate(self.replica_names(server))
        )
        return ServerFacts(
            name=self.server_name(server),
            gpus=(GPUS[self.gpu],) * self.num_gpus,
            replicas=replicas,
            network_bytes_per_s=self.network_bytes_per_s,
            network_latency_s=50e-6,
            disk_bytes_per_s=6e9,
        )
