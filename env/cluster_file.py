"""Cluster files: YAML that names servers and groups of replicas.

GPUs are handed out in order, but for entries that name theirs. Every fault of a file is reported
at once, with the path of its key.
Every `*.yaml` in `env/data/clusters/` is a cluster that `load_cluster` finds by its name.

Does not know: what the specs mean (`cluster.py`).
"""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ..traces.errors import ConfigError
from .cluster import (
    ADAPTER_BYTES,
    BYTES_PER_S_PER_GBPS,
    DEFAULT_DISK_BYTES_PER_S,
    DEFAULT_ENGINE_INIT_S,
    DEFAULT_INTER_ZONE_GBPS,
    DEFAULT_INTER_ZONE_LATENCY_S,
    DEFAULT_NETWORK_GBPS,
    DEFAULT_NETWORK_LATENCY_S,
    KV_WATERMARK_FRAC,
    ClusterSpec,
    InitialState,
    Preemption,
    ReplicaSpec,
    Role,
    ServerSpec,
    Sharing,
    spec_faults,
)
from .cluster_notes import cluster_notes
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
from .measured_latency import MeasuredLatency
from .model_file import find_model, known_names, load_model
from .speculation import Speculation

_LOG = logging.getLogger(__name__)


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
    own = [load_model(path.parent / model_file) for model_file in file.models]
    items = _with_own_models(file.replicas, {profile.name: profile.key for profile in own})
    server_entries = entries(_ServerEntry, file.servers, "servers", faults)
    replica_entries = entries(_ReplicaEntry, items, "replicas", faults)
    servers = [entry.spec() for entry in server_entries.values()]
    faults += _gpu_faults(replica_entries)
    replicas, paths = _expand(replica_entries)
    if len(servers) < len(file.servers):
        # A server whose own entry is faulty must not make its replicas look homeless as well.
        names = {server.name for server in servers}
        replicas = [replica for replica in replicas if replica.server in names]
    faults += spec_faults(servers, replicas, lambda replica: paths[replica.name])
    if faults:
        raise ConfigError(faults_message("cluster", str(path), list(dict.fromkeys(faults))))
    cluster = ClusterSpec(
        name=file.name,
        servers=tuple(servers),
        replicas=tuple(replicas),
        inter_zone_bytes_per_s=file.inter_zone_gbps * BYTES_PER_S_PER_GBPS,
        inter_zone_latency_s=file.inter_zone_latency_s,
    )
    for note in cluster_notes(cluster):
        _LOG.warning("cluster file '%s': %s", path, note)
    return cluster


def _with_own_models(items: list[Any], own: dict[str, str]) -> list[Any]:
    """The items of `replicas`, bare names of the file's own models in the version that it names."""
    return [
        {**item, "model": own[item["model"]]}
        if isinstance(item, dict) and isinstance(item.get("model"), str) and item["model"] in own
        else item
        for item in items
    ]


def _model_key(name: str) -> str:
    """The catalogue's key of a model; for pydantic, a fault that names the nearest if unknown."""
    found = find_model(name)
    return known_name("model", name, known_names()) if found is None else found.key


class _ClusterFile(Entry):
    """Top level of a cluster file; the lists' items are checked one by one."""

    name: str = Field(min_length=1)
    """What the cluster is called in results."""
    servers: list[Any] = Field(min_length=1)
    """Machines with GPUs, one entry each."""
    replicas: list[Any] = Field(min_length=1)
    """Engines that serve a model, one entry for each group of equal ones on a server."""
    models: list[str] = Field(default_factory=list)
    """Model files that it needs beyond the catalogue, relative to this file."""
    inter_zone_gbps: float = Field(default=DEFAULT_INTER_ZONE_GBPS, gt=0, allow_inf_nan=False)
    """Bandwidth between two zones, one direction, Gb/s."""
    inter_zone_latency_s: float = Field(
        default=DEFAULT_INTER_ZONE_LATENCY_S, ge=0, allow_inf_nan=False
    )
    """Time to set up a transfer between zones, s."""


class _ServerEntry(Entry):
    """One item of `servers`."""

    name: str = Field(min_length=1)
    """Unique in the cluster; replicas name their server by it."""
    gpu: Annotated[str, AfterValidator(lambda name: known_name("GPU", name, GPUS))] = Field(
        json_schema_extra={"enum": list(GPUS)}
    )
    """Kind of its GPUs, a name of the catalogue."""
    num_gpus: int = Field(ge=1)
    """GPUs in the machine."""
    zone: str = Field(min_length=1)
    """Failure domain: servers of a zone may fail together."""
    network_gbps: float = Field(default=DEFAULT_NETWORK_GBPS, gt=0, allow_inf_nan=False)
    """Bandwidth to other servers, one direction, Gb/s."""
    network_latency_s: float = Field(default=DEFAULT_NETWORK_LATENCY_S, ge=0, allow_inf_nan=False)
    """Time to set up a transfer to another server, s."""
    disk_gigabytes_per_s: float = Field(
        default=DEFAULT_DISK_BYTES_PER_S / 1e9, gt=0, allow_inf_nan=False
    )
    """Rate at which weights are read from its disk, GB/s."""
    gpus_per_pcie_root: int = Field(default=1, ge=1)
    """GPUs that share one PCIe link to the host."""

    def spec(self) -> ServerSpec:
        """The server that this entry describes."""
        return ServerSpec(
            name=self.name,
            zone=self.zone,
            gpu=self.gpu,
            num_gpus=self.num_gpus,
            network_bytes_per_s=self.network_gbps * BYTES_PER_S_PER_GBPS,
            network_latency_s=self.network_latency_s,
            disk_bytes_per_s=self.disk_gigabytes_per_s * 1e9,
            gpus_per_pcie_root=self.gpus_per_pcie_root,
        )


class _SpeculationEntry(Entry):
    """How a replica drafts tokens."""

    draft_tokens: int = Field(ge=1)
    acceptance: float = Field(ge=0, le=1)
    draft_cost_frac: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def spec(self) -> Speculation:
        """The speculation that this entry describes."""
        return Speculation(**self.model_dump())


class _MeasuredEntry(Entry):
    """Iteration times of a replica as measured."""

    step_ms: float = Field(ge=0, allow_inf_nan=False)
    """Fixed time of an iteration, ms."""
    token_us: float = Field(ge=0, allow_inf_nan=False)
    """Each prompt token and each decoding sequence, us."""
    sequence_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Each decoding sequence beyond that, us."""
    context_ns: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Each token of context of a decoding sequence, ns."""
    attention_ns: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Each pair of a prompt token and one before it, ns."""

    @model_validator(mode="after")
    def _check(self) -> "_MeasuredEntry":
        self.spec()
        return self

    def spec(self) -> MeasuredLatency:
        """The times that this entry describes."""
        return MeasuredLatency(
            step_s=1e-3 * self.step_ms,
            token_s=1e-6 * self.token_us,
            sequence_s=1e-6 * self.sequence_us,
            context_s=1e-9 * self.context_ns,
            attention_s=1e-9 * self.attention_ns,
        )


class _ReplicaEntry(Entry):
    """One item of `replicas`: `count` equal replicas on one server."""

    server: str
    """Name of the server that holds them."""
    model: Annotated[str, AfterValidator(_model_key)]
    """Model that they serve: a name, or `name@version`; a bare name means the newest version."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of a replica that work as one; must divide the model's heads."""
    gpus: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    """GPUs of the server by number from 0, instead of the next free ones."""
    count: int = Field(default=1, ge=1)
    """Number of equal replicas."""
    precision: Annotated[Precision, Field(strict=False)] = Precision.BF16
    """Format of weights and matrix multiplications."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Most sequences in a batch."""
    max_batch_tokens: int = Field(default=512, ge=1)
    """Most tokens in an iteration, prefill chunk and decodes together."""
    kv_memory_frac: float = Field(default=0.9, gt=0, le=1)
    """Share of GPU memory that the engine may use, weights included, from 0 to 1."""
    page_tokens: int = Field(default=16, ge=1)
    """Tokens of a KV page; a power of two, the same in the whole cluster."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Stages that the layers are cut into, each on tensor_parallel GPUs."""
    expert_parallel: int = Field(default=1, ge=1)
    """GPUs of a stage that the experts are spread over, whole."""
    speculative: _SpeculationEntry | None = None
    """Speculative decoding; without it, none."""
    kv_blocks: int | None = Field(default=None, ge=1)
    """KV pages as the engine reports them (vLLM's `num_gpu_blocks`); computed if not given."""
    kv_watermark_frac: float = Field(default=KV_WATERMARK_FRAC, ge=0, lt=1)
    """Share of KV pages that admission leaves free, from 0 to 1."""
    preemption: Annotated[Preemption, Field(strict=False)] = Preemption.RECOMPUTE
    """What becomes of the KV of a preempted sequence; swap needs host_kv_gb."""
    host_kv_gb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Host memory for KV of swapped sequences and cached blocks, GB."""
    has_host_prefix_cache: bool = False
    """Whether blocks that leave the GPU's prefix cache are kept in host memory."""
    max_loras: int = Field(default=0, ge=0)
    """LoRA adapters on the GPUs at a time; 0 takes no notice of requests' adapters."""
    adapter_mb: float = Field(default=ADAPTER_BYTES / 1e6, gt=0, allow_inf_nan=False)
    """Size of one adapter, MB."""
    power_cap_w: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most that each of its GPUs may draw, W; without it the board's own limit."""
    role: Annotated[Role, Field(strict=False)] = Role.BOTH
    """Which phase of a request it takes."""
    initial_state: Annotated[InitialState, Field(strict=False)] = InitialState.READY
    """How it stands when a run begins; standby replicas are stopped or asleep."""
    is_spill: bool = False
    """It is kept for emergencies: short requests are sent there while the shield says so."""
    engine_init_s: float = Field(default=DEFAULT_ENGINE_INIT_S, ge=0, allow_inf_nan=False)
    """Time from loaded weights to ready at a cold start, s."""
    gpu_frac: float = Field(default=1.0, gt=0, le=1)
    """Share of its GPUs that is its own, from 0 to 1."""
    sharing: Annotated[Sharing, Field(strict=False)] = Sharing.PARTITIONED
    """How it shares its GPUs if its share is below 1."""
    measured: _MeasuredEntry | None = None
    """Iteration times as measured, in place of the calibrated roofline's."""

    @property
    def num_gpus(self) -> int:
        """GPUs of one replica."""
        return len(self.gpus) if self.gpus else self.tensor_parallel * self.pipeline_parallel

    def spec(self, name: str, gpu_indices: tuple[int, ...]) -> ReplicaSpec:
        """One replica of this entry, on some GPUs."""
        return ReplicaSpec(
            name=name,
            server=self.server,
            model=self.model,
            gpu_indices=gpu_indices,
            precision=self.precision,
            max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens,
            kv_memory_frac=self.kv_memory_frac,
            page_tokens=self.page_tokens,
            kv_blocks=self.kv_blocks,
            kv_watermark_frac=self.kv_watermark_frac,
            preemption=self.preemption,
            host_kv_bytes=self.host_kv_gb * 1e9,
            has_host_prefix_cache=self.has_host_prefix_cache,
            max_loras=self.max_loras,
            adapter_bytes=self.adapter_mb * 1e6,
            power_cap_w=self.power_cap_w,
            role=self.role,
            initial_state=self.initial_state,
            is_spill=self.is_spill,
            engine_init_s=self.engine_init_s,
            gpu_frac=self.gpu_frac,
            sharing=self.sharing,
            pipeline_parallel=self.pipeline_parallel,
            expert_parallel=self.expert_parallel,
            speculation=None if self.speculative is None else self.speculative.spec(),
            measured=None if self.measured is None else self.measured.spec(),
        )


def _expand(entries: dict[str, _ReplicaEntry]) -> tuple[list[ReplicaSpec], dict[str, str]]:
    """All replicas of the entries, GPUs handed out in order, and the key path of each by name."""
    replicas: list[ReplicaSpec] = []
    paths: dict[str, str] = {}
    named_gpus = {(entry.server, k) for entry in entries.values() for k in entry.gpus or ()}
    free_gpus = {entry.server: _free_gpus(entry.server, named_gpus) for entry in entries.values()}
    num_named: Counter[str] = Counter()
    for path, entry in entries.items():
        for _ in range(entry.count):
            prefix = f"{entry.server}/{entry.model}"
            gpus = entry.gpus or islice(free_gpus[entry.server], entry.num_gpus)
            replica = entry.spec(f"{prefix}-{num_named[prefix]}", tuple(gpus))
            num_named[prefix] += 1
            replicas.append(replica)
            paths[replica.name] = path
    return replicas, paths


def _free_gpus(server: str, named_gpus: set[tuple[str, int]]) -> Iterator[int]:
    """GPUs of a server that no entry names, in order, and on beyond what it has."""
    return (k for k in count() if (server, k) not in named_gpus)


def _gpu_faults(entries: dict[str, _ReplicaEntry]) -> Iterator[str]:
    """Named GPUs that contradict themselves or `tensor_parallel`."""
    for path, entry in entries.items():
        if entry.gpus is None:
            continue
        if len(set(entry.gpus)) < len(entry.gpus):
            yield f"{path}.gpus: must differ from each other, got {entry.gpus}"
        if entry.tensor_parallel not in (1, len(entry.gpus) // entry.pipeline_parallel):
            yield (
                f"{path}.tensor_parallel: is {entry.tensor_parallel}, but gpus names "
                f"{len(entry.gpus)}; leave out one of them"
            )


CLUSTER_ENTRIES: dict[str, type[Entry]] = {
    "file": _ClusterFile,
    "servers": _ServerEntry,
    "replicas": _ReplicaEntry,
    "replicas.speculative": _SpeculationEntry,
    "replicas.measured": _MeasuredEntry,
}
"""What a cluster file holds: its top level, and the items of its lists."""
