"""The fleet as it is built: servers, their GPUs, and the replicas placed on them.

Does not know: load, time or latency; what a fleet does at a moment is the simulator's business.
`cluster_file.py` reads these specs from YAML.
Source: page arithmetic as in vLLM.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..traces.errors import ConfigError
from .config_file import faults_message
from .energy import cap_fault
from .hardware import GPUS, Gpu, Precision, unknown_name_message
from .measured_latency import MeasuredLatency
from .model_profile import MODELS, ModelProfile
from .replica_memory import OTHER_BYTES_PER_GPU as OTHER_BYTES_PER_GPU
from .replica_memory import activation_bytes, free_kv_bytes, page_bytes
from .roofline import parallel_fault
from .speculation import Speculation

# Gb/s per server when a file names none: one 200 Gb/s adapter, aiconfigurator a100_sxm
DEFAULT_NETWORK_GBPS = 200.0
# bytes/s in a Gb/s
BYTES_PER_S_PER_GBPS = 1e9 / 8
# share of PCIe bandwidth that large copies reach: 25 of 32 and 50 of 64 GB/s, aiconfigurator
# `systems/*.yaml`
PCIE_USE_FRAC = 0.78
# bytes of a LoRA adapter: rank 16 on all linear layers of Llama 3 8B, 41.9 M values in BF16
ADAPTER_BYTES = 83_886_080
# share of KV pages kept free at admission so that running sequences can grow: `watermark` of
# vLLM V0's block manager (V1 has the option since pull request 44594, off by default)
KV_WATERMARK_FRAC = 0.01


class Preemption(StrEnum):
    """What becomes of the KV of a sequence that is preempted."""

    RECOMPUTE = "recompute"  # dropped, and computed again
    SWAP = "swap"  # copied to host memory while that has room, else recomputed


# s to set up a transfer to another server: NIXL over RDMA, default of BLIS
DEFAULT_NETWORK_LATENCY_S = 50e-6
# bytes/s: what a usual loader reads weights at from NVMe, ServerlessLLM (arXiv 2401.14351); its
# own loader reaches 6-14 GB/s
DEFAULT_DISK_BYTES_PER_S = 1.7e9
# Gb/s and s between zones of a region, assumed: a few 100 Gb/s paths, half of a 1 ms round trip
DEFAULT_INTER_ZONE_GBPS = 400.0
DEFAULT_INTER_ZONE_LATENCY_S = 0.5e-3
# s from loaded weights to ready: vLLM of an 8B with compilation, vLLM PR 11005 (14 s without, 34 s
# with a warm compile cache; 145 s for a 70B over 8 GPUs, vLLM issue 19824)
DEFAULT_ENGINE_INIT_S = 39.0
# Summed shares of a GPU may exceed 1 by this: thirds do not add up in floating point.
_SHARE_SLACK = 1e-9


class Role(StrEnum):
    """Which phase of a request a replica takes."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class InitialState(StrEnum):
    """How a replica stands when a run begins."""

    READY = "ready"
    STOPPED = "stopped"
    ASLEEP = "asleep"


class Sharing(StrEnum):
    """How replicas share a GPU."""

    PARTITIONED = "partitioned"  # fixed shares of compute, bandwidth and memory, as MIG and MPS
    TIME_SLICED = "time_sliced"  # fixed shares of memory; compute by turns


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """One machine with GPUs of one kind."""

    name: str
    """Unique in the cluster."""
    zone: str
    """Failure domain: servers of a zone may fail together."""
    gpu: str
    """Name in `hardware.GPUS`."""
    num_gpus: int
    """GPUs in the machine."""
    network_bytes_per_s: float = DEFAULT_NETWORK_GBPS * BYTES_PER_S_PER_GBPS
    """Bandwidth to other servers, one direction."""
    network_latency_s: float = DEFAULT_NETWORK_LATENCY_S
    """To set up a transfer to another server."""
    disk_bytes_per_s: float = DEFAULT_DISK_BYTES_PER_S
    """Rate at which weights are read from the machine's disk."""
    gpus_per_pcie_root: int = 1
    """GPUs that share one set of PCIe lanes to the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One engine: a model on some GPUs of a server."""

    name: str
    """Unique in the cluster."""
    server: str
    """Name of its server."""
    model: str
    """Name in `model_profile.MODELS`."""
    gpu_indices: tuple[int, ...]
    """GPUs of the server that it holds, counted from 0."""
    precision: Precision = Precision.BF16
    """Format of weights and matrix multiplications."""
    max_num_seqs: int = 256
    """Most sequences in a batch."""
    max_batch_tokens: int = 512
    """Most tokens in an iteration, prefill chunk and decodes together."""
    kv_memory_frac: float = 0.9
    """Share of GPU memory that the engine may use, weights included."""
    page_tokens: int = 16
    """Tokens of a KV page."""
    pipeline_parallel: int = 1
    """Stages that the layers are cut into; each holds as many of the GPUs."""
    expert_parallel: int = 1
    """GPUs of a stage that the experts are spread over, whole; the rest cut each expert."""
    speculation: Speculation | None = None
    """Speculative decoding; None without."""
    kv_blocks: int | None = None
    """KV pages as the engine itself reports them (vLLM's `num_gpu_blocks`); None computes them."""
    kv_watermark_frac: float = KV_WATERMARK_FRAC
    """Share of KV pages that admission leaves free."""
    preemption: Preemption = Preemption.RECOMPUTE
    """What becomes of preempted KV."""
    host_kv_bytes: float = 0.0
    """Host memory for KV, over all GPUs of the replica: of swapped sequences and cached blocks."""
    has_host_prefix_cache: bool = False
    """Blocks that the GPU's prefix cache evicts are kept in host memory."""
    max_loras: int = 0
    """LoRA adapters on the GPUs at a time; 0 takes no notice of requests' adapters."""
    adapter_bytes: float = ADAPTER_BYTES
    """Bytes of one adapter, loaded by each GPU."""
    power_cap_w: float | None = None
    """Most that each of its GPUs may draw; None for the board's own limit."""
    role: Role = Role.BOTH
    """Which phase of a request it takes."""
    initial_state: InitialState = InitialState.READY
    """How it stands when a run begins: standby replicas are stopped or asleep."""
    is_spill: bool = False
    """It is kept for emergencies: short requests are sent there while the shield says so."""
    engine_init_s: float = DEFAULT_ENGINE_INIT_S
    """Time from loaded weights to ready at a cold start."""
    gpu_frac: float = 1.0
    """Share of its GPUs that is its own."""
    sharing: Sharing = Sharing.PARTITIONED
    """How it shares its GPUs, if its share is below 1."""
    measured: MeasuredLatency | None = None
    """Its iteration times as measured, in place of its roofline's."""

    @property
    def compute_frac(self) -> float:
        """Share of its GPUs' compute and bandwidth that it has while it runs."""
        return 1.0 if self.sharing is Sharing.TIME_SLICED else self.gpu_frac

    @property
    def tensor_parallel(self) -> int:
        """GPUs that work as one on a layer."""
        return len(self.gpu_indices) // self.pipeline_parallel

    @property
    def num_gpus(self) -> int:
        """All GPUs that it holds."""
        return len(self.gpu_indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Servers and replicas of a fleet, checked against the catalogues and each other.

    Raises: `ConfigError` with every fault.
    """

    name: str
    """Name of the cluster."""
    servers: tuple[ServerSpec, ...]
    """Machines, in the order of the file."""
    replicas: tuple[ReplicaSpec, ...]
    """Engines, in the order of the file."""
    inter_zone_bytes_per_s: float = DEFAULT_INTER_ZONE_GBPS * BYTES_PER_S_PER_GBPS
    """Bandwidth from each zone to each other."""
    inter_zone_latency_s: float = DEFAULT_INTER_ZONE_LATENCY_S
    """One way."""

    def __post_init__(self) -> None:
        """Report all faults of the specs at once."""
        faults = list(spec_faults(self.servers, self.replicas, replica_label))
        if faults:
            raise ConfigError(faults_message("cluster", self.name, faults))

    def server_of(self, replica: ReplicaSpec) -> ServerSpec:
        """The server that holds the replica."""
        for server in self.servers:
            if server.name == replica.server:
                return server
        names = [server.name for server in self.servers]
        raise ValueError(unknown_name_message("server", replica.server, names))

    def gpu_of(self, replica: ReplicaSpec) -> Gpu:
        """The kind of GPU that the replica runs on."""
        return GPUS[self.server_of(replica).gpu]

    def model_of(self, replica: ReplicaSpec) -> ModelProfile:
        """The model that the replica serves."""
        return MODELS[replica.model]


def kv_pages(cluster: ClusterSpec, replica: ReplicaSpec) -> int:
    """KV pages, at least 1: the engine's own count, or what fits beside weights and the rest."""
    if replica.kv_blocks is not None:
        return replica.kv_blocks
    model = cluster.model_of(replica)
    return int(free_kv_bytes(cluster.gpu_of(replica), model, replica) // page_bytes(model, replica))


def host_kv_pages(cluster: ClusterSpec, replica: ReplicaSpec) -> int:
    """KV pages that the replica's share of host memory holds."""
    return int(replica.host_kv_bytes // page_bytes(cluster.model_of(replica), replica))


def pcie_copy_bytes_per_s(gpu: Gpu) -> float:
    """Bandwidth of large copies between a GPU and host memory, one direction."""
    return gpu.pcie_bytes_per_s * PCIE_USE_FRAC


def page_copy_s(cluster: ClusterSpec, replica: ReplicaSpec) -> float:
    """Time to copy one KV page to or from host memory; each GPU copies its part of it."""
    rate = pcie_copy_bytes_per_s(cluster.gpu_of(replica)) * replica.num_gpus
    return page_bytes(cluster.model_of(replica), replica) / rate


def replica_label(replica: ReplicaSpec) -> str:
    """How faults of specs made by hand name a replica."""
    return f"replica {replica.name!r}"


def spec_faults(
    servers: Sequence[ServerSpec],
    replicas: Sequence[ReplicaSpec],
    label: Callable[[ReplicaSpec], str],
) -> Iterator[str]:
    """What is wrong with specs that are well-formed one by one."""
    for kind, specs in (("server", servers), ("replica", replicas)):
        for name, count in Counter(spec.name for spec in specs).items():
            if count > 1:
                yield f"{kind} name {name!r} is used {count} times; names must be unique"
    by_name = {server.name: server for server in servers}
    for server in by_name.values():
        if server.gpu not in GPUS:
            yield f"server {server.name!r}: {unknown_name_message('GPU', server.gpu, GPUS)}"
        held = [replica for replica in replicas if replica.server == server.name]
        yield from _placement_faults(server, held)
    for replica in replicas:
        if replica.server not in by_name:
            text = unknown_name_message("server", replica.server, by_name)
            yield f"{label(replica)}.server: {text}"
        elif replica.model not in MODELS:
            text = unknown_name_message("model", replica.model, MODELS)
            yield f"{label(replica)}.model: {text}"
        elif by_name[replica.server].gpu in GPUS:
            fault = _replica_fault(replica, GPUS[by_name[replica.server].gpu])
            if fault:
                yield f"{label(replica)}.{fault}"
    yield from _role_faults(replicas, label)


def _role_faults(
    replicas: Sequence[ReplicaSpec], label: Callable[[ReplicaSpec], str]
) -> Iterator[str]:
    """Prefill replicas whose KV nobody of their model can take, and decode ones that get none."""
    for role, other in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
        served = {kv_kind(replica) for replica in replicas if replica.role is not role}
        for replica in replicas:
            if replica.role is role and kv_kind(replica) not in served:
                yield (
                    f"{label(replica)}.role: is '{role}', but no replica of model "
                    f"{replica.model!r} and the same KV format is '{other}' or 'both'; add one"
                )


def kv_kind(replica: ReplicaSpec) -> tuple[str, Precision]:
    """What two replicas must have in common to pass KV on: the model, and the format of KV."""
    return replica.model, replica.precision.attention_precision


def _placement_faults(server: ServerSpec, held: Sequence[ReplicaSpec]) -> Iterator[str]:
    """GPUs of a server that replicas hold beyond their whole, or that it does not have."""
    uses: Counter[int] = Counter()
    fractions: dict[int, float] = {}
    for replica in held:
        for index in replica.gpu_indices:
            uses[index] += 1
            fractions[index] = fractions.get(index, 0.0) + replica.gpu_frac
    over = sorted(index for index, total in fractions.items() if total > 1.0 + _SHARE_SLACK)
    if over:
        totals = ", ".join(f"{fractions[index]:g}" for index in over)
        yield (
            f"server {server.name!r}: GPUs {over} are held by more than one replica with gpu_frac "
            f"{totals} together; lower the shares to at most 1, or move a replica"
        )
    if any(not 0 <= index < server.num_gpus for index in uses):
        yield (
            f"server {server.name!r}: num_gpus is {server.num_gpus}, its replicas take "
            f"{len(uses)} (GPUs {min(uses)} to {max(uses)}); lower count or tensor_parallel, "
            "or raise num_gpus"
        )


def _memory_fault(replica: ReplicaSpec) -> str | None:
    """What is wrong with the replica's settings of KV and host memory, as `key: text`, or None."""
    if replica.kv_blocks is not None and replica.kv_blocks < 1:
        return f"kv_blocks: must be at least 1, got {replica.kv_blocks}; omit it to compute it"
    if replica.host_kv_bytes < 0:
        return f"host_kv_bytes: must be at least 0, got {replica.host_kv_bytes}"
    if not 0 <= replica.kv_watermark_frac < 1:
        return f"kv_watermark_frac: must be in [0, 1), got {replica.kv_watermark_frac}"
    if replica.max_loras < 0:
        return f"max_loras: must be at least 0, got {replica.max_loras}"
    if replica.adapter_bytes <= 0:
        return f"adapter_bytes: must be above 0, got {replica.adapter_bytes}"
    if replica.host_kv_bytes > 0:
        return None
    if replica.preemption is Preemption.SWAP:
        return "preemption: 'swap' needs host memory, got none; set host_kv_gb (host_kv_bytes)"
    if replica.has_host_prefix_cache:
        return "has_host_prefix_cache: needs host memory, got none; set host_kv_gb (host_kv_bytes)"
    return None


def _precision_fault(replica: ReplicaSpec, gpu: Gpu, model: ModelProfile) -> str | None:
    """Why the replica's format of weights cannot be, as `key: text`, or None."""
    if replica.precision not in gpu.peak_flops:
        known = ", ".join(gpu.peak_flops)
        return (
            f"precision: {gpu.name!r} has no {replica.precision.value!r} arithmetic; "
            f"expected one of {known}"
        )
    if model.precisions and replica.precision not in model.precisions:
        return (
            f"precision: model {model.key!r} is not had in {replica.precision.value!r}; "
            f"expected one of {', '.join(model.precisions)}"
        )
    return None


def _replica_fault(replica: ReplicaSpec, gpu: Gpu) -> str | None:
    """Why the replica cannot run on GPUs of this kind, as `key: text`, or None."""
    memory_fault = _memory_fault(replica)
    if memory_fault:
        return memory_fault
    if not 0.0 < replica.gpu_frac <= 1.0:
        return f"gpu_frac: must be above 0 and at most 1, got {replica.gpu_frac}"
    model, tensor_parallel = MODELS[replica.model], replica.tensor_parallel
    if replica.num_gpus % replica.pipeline_parallel:
        return (
            f"pipeline_parallel: {replica.pipeline_parallel} does not divide {replica.num_gpus} "
            "GPUs; give as many GPUs to each stage"
        )
    if not model.can_shard(tensor_parallel):
        return (
            f"tensor_parallel: {tensor_parallel} does not divide {model.num_heads} heads and "
            f"{model.num_kv_heads} KV heads of {model.name!r}; choose a divisor"
        )
    fault = parallel_fault(
        model, tensor_parallel, replica.pipeline_parallel, replica.expert_parallel
    )
    if fault:
        return f"{fault.split(maxsplit=1)[0]}: {fault}, with {model.name!r}"
    precision_fault = _precision_fault(replica, gpu, model)
    if precision_fault:
        return precision_fault
    if replica.power_cap_w is not None and cap_fault(gpu, replica.power_cap_w):
        return cap_fault(gpu, replica.power_cap_w)
    missing_bytes = page_bytes(model, replica) - free_kv_bytes(gpu, model, replica)
    if missing_bytes > 0 and replica.kv_blocks is None:
        weight_gb = model.weight_bytes(replica.precision) / 1e9
        activation_gb = activation_bytes(model, replica) / 1e9
        activations = f" and {activation_gb:.1f} GB of activations" if activation_gb else ""
        return (
            f"model: {model.name!r} with {weight_gb:.1f} GB of {replica.precision.value} weights"
            f"{activations} does not fit {replica.num_gpus} x {gpu.name} on server "
            f"{replica.server!r} by {missing_bytes / 1e9:.1f} GB; raise tensor_parallel or choose "
            "a smaller precision"
        )
    return None
