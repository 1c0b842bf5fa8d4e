"""The fleet as it is built: servers, their GPUs, and the replicas placed on them.

A cluster file names servers and groups of replicas; GPUs are handed out in order. Every fault of
a file is reported at once, with the path of its key.

Does not know: load, time or latency; what a fleet does at a moment is the simulator's business.
Every `*.yaml` in `env/data/` is a cluster that `load_cluster` finds by its name.
Source: page arithmetic as in vLLM; memory not for KV from aiconfigurator 0.12 `systems/*.yaml`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ..traces.errors import ConfigError
from .hardware import GPUS, Gpu, Precision, nearest_name, unknown_name_message
from .model_profile import MODELS, ModelProfile

DATA_DIR = Path(__file__).parent / "data"

# bytes per GPU for CUDA context, activations and buffers, `other_mem` of aiconfigurator (3.5 GiB)
OTHER_BYTES_PER_GPU = 3_758_096_384
# Gb/s per server when a file names none: one 200 Gb/s adapter, aiconfigurator a100_sxm
DEFAULT_NETWORK_GBPS = 200.0
# bytes/s in a Gb/s
_BYTES_PER_S_PER_GBPS = 1e9 / 8

_UNKNOWN_NAME: Literal["unknown_name"] = "unknown_name"


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
    network_bytes_per_s: float = DEFAULT_NETWORK_GBPS * _BYTES_PER_S_PER_GBPS
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

    @property
    def tensor_parallel(self) -> int:
        """GPUs that work as one."""
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
        faults = list(_spec_faults(self.servers, self.replicas, _replica_label))
        if faults:
            raise ConfigError(_faults_message(self.name, faults))

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


def bundled_cluster_names() -> tuple[str, ...]:
    """Names of the clusters that come with the package."""
    return tuple(sorted(path.stem for path in DATA_DIR.glob("*.yaml")))


def load_cluster(path_or_name: str | Path) -> ClusterSpec:
    """Read a cluster from a YAML file, or a bundled one by its name.

    Raises: `ConfigError` with every fault of the file: key path, value and nearest known key.
    """
    path = _cluster_path(path_or_name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"cluster file '{path}' cannot be read as YAML: {error}"
        raise ConfigError(msg) from error
    faults: list[str] = []
    file = _validated(_ClusterFile, content, "", faults)
    if file is None:
        raise ConfigError(_faults_message(str(path), faults))
    server_entries = _entries(_ServerEntry, file.servers, "servers", faults)
    replica_entries = _entries(_ReplicaEntry, file.replicas, "replicas", faults)
    servers = [entry.spec() for entry in server_entries.values()]
    replicas, paths = _expand(replica_entries)
    if len(servers) < len(file.servers):
        # A server whose own entry is faulty must not make its replicas look homeless as well.
        names = {server.name for server in servers}
        replicas = [replica for replica in replicas if replica.server in names]
    faults += _spec_faults(servers, replicas, lambda replica: paths[replica.name])
    if faults:
        raise ConfigError(_faults_message(str(path), list(dict.fromkeys(faults))))
    return ClusterSpec(name=file.name, servers=tuple(servers), replicas=tuple(replicas))


def _replica_label(replica: ReplicaSpec) -> str:
    """How faults of specs made by hand name a replica."""
    return f"replica {replica.name!r}"


def _known_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The name itself; for pydantic, a fault that names the nearest when it is not known."""
    if name not in known:
        code, template = _UNKNOWN_NAME, "{text}"
        raise PydanticCustomError(code, template, {"text": unknown_name_message(kind, name, known)})
    return name


class _Entry(BaseModel):
    """Base of what a cluster file may hold: typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _ClusterFile(_Entry):
    """Top level of a cluster file; the lists' items are checked one by one."""

    name: str = Field(min_length=1)
    servers: list[Any] = Field(min_length=1)
    replicas: list[Any] = Field(min_length=1)


class _ServerEntry(_Entry):
    """One item of `servers`."""

    name: str = Field(min_length=1)
    gpu: Annotated[str, AfterValidator(lambda name: _known_name("GPU", name, GPUS))]
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
            network_bytes_per_s=self.network_gbps * _BYTES_PER_S_PER_GBPS,
        )


class _ReplicaEntry(_Entry):
    """One item of `replicas`: `count` equal replicas on one server."""

    server: str
    model: Annotated[str, AfterValidator(lambda name: _known_name("model", name, MODELS))]
    tensor_parallel: int = Field(default=1, ge=1)
    count: int = Field(default=1, ge=1)
    precision: Annotated[Precision, Field(strict=False)] = Precision.BF16
    max_num_seqs: int = Field(default=256, ge=1)
    max_batch_tokens: int = Field(default=512, ge=1)
    kv_memory_frac: float = Field(default=0.9, gt=0, le=1)
    page_tokens: int = Field(default=16, ge=1)

    def spec(self, name: str, first_gpu: int) -> ReplicaSpec:
        """One replica of this entry, on the GPUs from `first_gpu` on."""
        return ReplicaSpec(
            name=name,
            server=self.server,
            model=self.model,
            gpu_indices=tuple(range(first_gpu, first_gpu + self.tensor_parallel)),
            precision=self.precision,
            max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens,
            kv_memory_frac=self.kv_memory_frac,
            page_tokens=self.page_tokens,
        )


EntryT = TypeVar("EntryT", bound=_Entry)


def _cluster_path(path_or_name: str | Path) -> Path:
    """The file that a path or a bundled name means."""
    path = Path(path_or_name)
    if path.is_file():
        return path
    names = bundled_cluster_names()
    if str(path_or_name) in names:
        return DATA_DIR / f"{path_or_name}.yaml"
    message = unknown_name_message("cluster", str(path_or_name), names)
    msg = f"{message}; or give the path of a YAML file"
    raise ConfigError(msg)


def _validated(kind: type[EntryT], content: object, path: str, faults: list[str]) -> EntryT | None:
    """The content as an entry of this kind, or None with its faults appended."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults += [_fault_text(kind, path, detail) for detail in error.errors()]
        return None


def _entries(
    kind: type[EntryT], items: Sequence[Any], key: str, faults: list[str]
) -> dict[str, EntryT]:
    """The valid entries of a list by their key path; the faults of the others are appended."""
    paths = [f"{key}[{index}]" for index in range(len(items))]
    validated = {
        path: _validated(kind, item, path, faults) for path, item in zip(paths, items, strict=True)
    }
    return {path: entry for path, entry in validated.items() if entry is not None}


def _fault_text(kind: type[BaseModel], path: str, detail: ErrorDetails) -> str:
    """One fault: key path, what is wrong, the value, what was expected."""
    keys = [str(part) for part in detail["loc"]]
    key_path = ".".join(part for part in (path, *keys) if part) or "file"
    known = list(kind.model_fields)
    if detail["type"] == "extra_forbidden":
        nearest = nearest_name(keys[-1], known)
        hint = f"did you mean {nearest!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{key_path}: unknown key with value {detail['input']!r}; {hint}"
    if detail["type"] == "missing":
        return f"{key_path}: key is missing; add it"
    if detail["type"] == "model_type":
        return f"{key_path}: must be a mapping of {', '.join(known)}, got {detail['input']!r}"
    text = detail["msg"]
    is_unknown = detail["type"] == _UNKNOWN_NAME
    return f"{key_path}: {text}" if is_unknown else f"{key_path}: {text}, got {detail['input']!r}"


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
            num_used_gpus[entry.server] += entry.tensor_parallel
            replicas.append(replica)
            paths[replica.name] = path
    return replicas, paths


def _faults_message(source: str, faults: Sequence[str]) -> str:
    """All faults of a cluster in one message, each on its line."""
    lines = "".join(f"\n  - {fault}" for fault in faults)
    return f"cluster '{source}' has {len(faults)} fault(s):{lines}"


def _spec_faults(
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
    if not model.can_shard(tensor_parallel):
        return (
            f"tensor_parallel: {tensor_parallel} does not divide {model.num_heads} heads and "
            f"{model.num_kv_heads} KV heads of {model.name!r}; choose a divisor"
        )
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
            f"does not fit {tensor_parallel} x {gpu.name} on server {replica.server!r} by "
            f"{missing_bytes / 1e9:.1f} GB; raise tensor_parallel or choose a smaller precision"
        )
    return None


def _kv_bytes(gpu: Gpu, model: ModelProfile, replica: ReplicaSpec) -> float:
    """Bytes left for KV on all GPUs of the replica; negative when the weights do not fit."""
    usable_bytes = gpu.hbm_bytes * replica.kv_memory_frac - OTHER_BYTES_PER_GPU
    return usable_bytes * replica.tensor_parallel - model.weight_bytes(replica.precision)


def _page_bytes(model: ModelProfile, replica: ReplicaSpec) -> int:
    """Bytes of one KV page over all GPUs of the replica."""
    token_bytes = model.kv_bytes_per_token(
        replica.precision.attention_precision, tensor_parallel=replica.tensor_parallel
    )
    return token_bytes * replica.page_tokens
