"""Cluster files: YAML that names servers and groups of replicas.

GPUs are handed out in order. Every fault of a file is reported at once, with the path of its key.
Every `*.yaml` in `env/data/clusters/` is a cluster that `load_cluster` finds by its name.

Does not know: what the specs mean (`cluster.py`).
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ..traces.errors import ConfigError
from .cluster import (
    BYTES_PER_S_PER_GBPS,
    DEFAULT_NETWORK_GBPS,
    ClusterSpec,
    ReplicaSpec,
    ServerSpec,
    spec_faults,
)
from .config_file import (
    Entry,
    bundled_names,
    entries,
    faults_message,
    file_path,
    known_name,
    read_yaml,
    validated,
)
from .hardware import GPUS, Precision
from .model_profile import MODELS
from .speculation import Speculation


def bundled_cluster_names() -> tuple[str, ...]:
    """Names of the clusters that come with the package."""
    return bundled_names("cluster")


def load_cluster(path_or_name: str | Path) -> ClusterSpec:
    """Read a cluster from a YAML file, or a bundled one by its name.

    Raises: `ConfigError` with every fault of the file: key path, value and nearest known key.
    """
    path = file_path("cluster", path_or_name)
    content = read_yaml("cluster", path)
    faults: list[str] = []
    file = validated(_ClusterFile, content, "", faults)
    if file is None:
        raise ConfigError(faults_message("cluster", str(path), faults))
    server_entries = entries(_ServerEntry, file.servers, "servers", faults)
    replica_entries = entries(_ReplicaEntry, file.replicas, "replicas", faults)
    servers = [entry.spec() for entry in server_entries.values()]
    replicas, paths = _expand(replica_entries)
    if len(servers) < len(file.servers):
        # A server whose own entry is faulty must not make its replicas look homeless as well.
        names = {server.name for server in servers}
        replicas = [replica for replica in replicas if replica.server in names]
    faults += spec_faults(servers, replicas, lambda replica: paths[replica.name])
    if faults:
        raise ConfigError(faults_message("cluster", str(path), list(dict.fromkeys(faults))))
    return ClusterSpec(name=file.name, servers=tuple(servers), replicas=tuple(replicas))


class _ClusterFile(Entry):
    """Top level of a cluster file; the lists' items are checked one by one."""

    name: str = Field(min_length=1)
    servers: list[Any] = Field(min_length=1)
    replicas: list[Any] = Field(min_length=1)


class _ServerEntry(Entry):
    """One item of `servers`."""

    name: str = Field(min_length=1)
    gpu: Annotated[str, AfterValidator(lambda name: known_name("GPU", name, GPUS))]
    num_gpus: int = Field(ge=1)
    zone: str = Field(min_length=1)
    network_gbps: float = Field(default=DEFAULT_NETWORK_GBPS, gt=0, allow_inf_nan=False)

    def spec(self) -> ServerSpec:
        """The server that this entry describes."""
        return ServerSpec(
            name=self.name,
            zone=self.zone,
            gpu=self.gpu,
            num_gpus=self.num_gpus,
            network_bytes_per_s=self.network_gbps * BYTES_PER_S_PER_GBPS,
        )


class _SpeculationEntry(Entry):
    """How a replica drafts tokens."""

    draft_tokens: int = Field(ge=1)
    acceptance: float = Field(ge=0, le=1)
    draft_cost_frac: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def spec(self) -> Speculation:
        """The speculation that this entry describes."""
        return Speculation(**self.model_dump())


class _ReplicaEntry(Entry):
    """One item of `replicas`: `count` equal replicas on one server."""

    server: str
    model: Annotated[str, AfterValidator(lambda name: known_name("model", name, MODELS))]
    tensor_parallel: int = Field(default=1, ge=1)
    count: int = Field(default=1, ge=1)
    precision: Annotated[Precision, Field(strict=False)] = Precision.BF16
    max_num_seqs: int = Field(default=256, ge=1)
    max_batch_tokens: int = Field(default=512, ge=1)
    kv_memory_frac: float = Field(default=0.9, gt=0, le=1)
    page_tokens: int = Field(default=16, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    speculative: _SpeculationEntry | None = None

    @property
    def num_gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    def spec(self, name: str, first_gpu: int) -> ReplicaSpec:
        """One replica of this entry, on the GPUs from `first_gpu` on."""
        return ReplicaSpec(
            name=name,
            server=self.server,
            model=self.model,
            gpu_indices=tuple(range(first_gpu, first_gpu + self.num_gpus)),
            precision=self.precision,
            max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens,
            kv_memory_frac=self.kv_memory_frac,
            page_tokens=self.page_tokens,
            pipeline_parallel=self.pipeline_parallel,
            expert_parallel=self.expert_parallel,
            speculation=None if self.speculative is None else self.speculative.spec(),
        )


def _expand(entries: dict[str, _ReplicaEntry]) -> tuple[list[ReplicaSpec], dict[str, str]]:
    """All replicas of the entries, GPUs handed out in order, and the key path of each by name."""
    replicas: list[ReplicaSpec] = []
    paths: dict[str, str] = {}
    num_used_gpus: Counter[str] = Counter()
    num_named: Counter[str] = Counter()
    for path, entry in entries.items():
        for _ in range(entry.count):
            prefix = f"{entry.server}/{entry.model}"
            replica = entry.spec(f"{prefix}-{num_named[prefix]}", num_used_gpus[entry.server])
            num_named[prefix] += 1
            num_used_gpus[entry.server] += entry.num_gpus
            replicas.append(replica)
            paths[replica.name] = path
    return replicas, paths
