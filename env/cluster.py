"""The fleet as it is built: servers, their GPUs, and the replicas placed on them.

Does not know: load, time or latency; what a fleet does at a moment is the simulator's business.
`cluster_file.py` reads these specs from YAML.
Source: page arithmetic as in vLLM; memory not for KV from aiconfigurator 0.12 `systems/*.yaml`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..traces.errors import ConfigError
from .config_file import faults_message
from .hardware import GPUS, Gpu, Precision, unknown_name_message
from .model_profile import MODELS, ModelProfile
from .roofline import parallel_fault
from .speculation import Speculation

# bytes per GPU for CUDA context, activations and buffers, `other_mem` of aiconfigurator (3.5 GiB)
OTHER_BYTES_PER_GPU = 3_758_096_384
# Gb/s per server when a file names none: one 200 Gb/s adapter, aiconfigurator a100_sxm
DEFAULT_NETWORK_GBPS = 200.0
# bytes/s in a Gb/s
BYTES_PER_S_PER_GBPS = 1e9 / 8


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
    """KV pages that fit beside weights and other memory on the replica's GPUs, at least 1."""
    free_bytes = _kv_bytes(cluster.gpu_of(replica), cluster.model_of(replica), replica)
    return int(free_bytes // _page_bytes(cluster.model_of(replica), replica))


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


def _placement_faults(server: ServerSpec, held: Sequence[ReplicaSpec]) -> Iterator[str]:
    """GPUs of a server that replicas hold twice, or that it does not have."""
    uses = Counter(index for replica in held for index in replica.gpu_indices)
    shared = sorted(index for index, count in uses.items() if count > 1)
    if shared:
        yield f"server {server.name!r}: GPUs {shared} are held by more than one replica"
    if any(not 0 <= index < server.num_gpus for index in uses):
        yield (
            f"server {server.name!r}: num_gpus is {server.num_gpus}, its replicas take "
            f"{len(uses)} (GPUs {min(uses)} to {max(uses)}); lower count or tensor_parallel, "
            "or raise num_gpus"
        )


def _replica_fault(replica: ReplicaSpec, gpu: Gpu) -> str | None:
    """Why the replica cannot run on GPUs of this kind, as `key: text`, or None."""
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
    if replica.precision not in gpu.peak_flops:
        known = ", ".join(gpu.peak_flops)
        return (
            f"precision: {gpu.name!r} has no {replica.precision.value!r} arithmetic; "
            f"expected one of {known}"
        )
    missing_bytes = _page_bytes(model, replica) - _kv_bytes(gpu, model, replica)
    if missing_bytes > 0:
        weight_gb = model.weight_bytes(replica.precision) / 1e9
        return (
            f"model: {model.name!r} with {weight_gb:.1f} GB of {replica.precision.value} weights "
            f"does not fit {replica.num_gpus} x {gpu.name} on server {replica.server!r} by "
            f"{missing_bytes / 1e9:.1f} GB; raise tensor_parallel or choose a smaller precision"
        )
    return None


def _kv_bytes(gpu: Gpu, model: ModelProfile, replica: ReplicaSpec) -> float:
    """Bytes left for KV on all GPUs of the replica; negative when the weights do not fit."""
    usable_bytes = gpu.hbm_bytes * replica.kv_memory_frac - OTHER_BYTES_PER_GPU
    return usable_bytes * replica.num_gpus - model.weight_bytes(replica.precision)


def _page_bytes(model: ModelProfile, replica: ReplicaSpec) -> int:
    """Bytes of one KV page over all GPUs of the replica."""
    token_bytes = model.kv_bytes_per_token(
        replica.precision.attention_precision, tensor_parallel=replica.tensor_parallel
    )
    return token_bytes * replica.page_tokens
