"""What a model file may hold, and how it becomes a `ModelProfile` or a list of all its faults.

Does not know: where files are, or the catalogue (`model_file.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from .config_file import Entry, keyed_faults
from .file_fault import Fault, placed
from .hardware import Precision
from .kv_curve import KvCurve
from .model_checks import PublishedFigures, physical_faults
from .model_layers import (
    LayerGroup,
    LayerKind,
    group_faults,
    layer_totals,
    total_faults,
)
from .model_shape import (
    AttentionKind,
    BatchRange,
    LatentShape,
    ModelProfile,
    ShapeFault,
    contradictions,
)
from .model_text import parse_text
from .model_version import version_text

# No size of a model comes near these; figures beyond would leave floating point.
_MOST_SIZE = 10**8
_MOST_PARAMS = 10**15
# Bytes of a sequence's KV: a petabyte.
_MOST_BYTES = 10**15

_Size = Annotated[int, Field(ge=1, le=_MOST_SIZE)]
_Params = Annotated[int, Field(ge=1, le=_MOST_PARAMS)]
_KV_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        {"type": "null"},
    ]
}
_VERSION_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}


class _LatentEntry(Entry):
    """Sizes of latent attention."""

    query_rank: int = Field(ge=0, le=_MOST_SIZE)
    kv_rank: _Size
    rope_dim: _Size
    nope_dim: _Size
    value_dim: _Size


class _BatchEntry(Entry):
    """Sequences in a batch."""

    min: _Size
    """Fewest sequences that are worth an iteration."""
    max: _Size
    """Most sequences that latency allows."""


class _LayerEntry(Entry):
    """One item of `layers`."""

    count: int = Field(default=1, ge=1, le=100_000)
    """Equal layers that this entry stands for."""
    kind: Annotated[LayerKind, Field(strict=False)] = LayerKind.DENSE
    """Whether an MLP or experts stand after the attention."""
    attention: Annotated[AttentionKind | None, Field(strict=False)] = None
    """As the model's if not given; `full` and `gqa` both see all context."""
    window_tokens: _Size | None = None
    """Attention window, as the model's if not given; one length in the whole model."""
    params: _Params | None = None
    """All weights of one layer; computed from the widths if not given."""
    expert_params: _Params | None = None
    """Weights of all routed experts of one layer; computed from expert_width if not given."""
    mlp_width: _Size | None = None
    """Inner values of the MLP, shared experts together."""
    expert_width: _Size | None = None
    """Inner values of one expert."""

    def group(self) -> LayerGroup:
        """The layers that this entry describes."""
        return LayerGroup(**dict(self))


class _ModelFile(Entry):
    """Top level of a model file."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^@\s]([^@\r\n\t]*[^@\s])?$")
    """Catalogue name, as used in cluster files; no @."""
    version: Any = Field(default=None, json_schema_extra=_VERSION_SCHEMA)
    """Whole number, or up to three with dots between in quotes. `name@version` is the model."""
    source: str = Field(default="", max_length=2000)
    licence: str = Field(default="", max_length=2000)
    num_layers: _Size | None = None
    """Transformer blocks; needed unless `layers` says."""
    hidden_size: _Size
    num_heads: _Size
    num_kv_heads: _Size
    head_dim: _Size
    vocab_size: _Size
    has_tied_embeddings: bool
    total_params: _Params | None = None
    """All weights; needed unless `layers` says."""
    expert_params: int = Field(default=0, ge=0, le=_MOST_PARAMS)
    num_experts: int = Field(default=0, ge=0, le=_MOST_SIZE)
    experts_per_token: int = Field(default=0, ge=0, le=_MOST_SIZE)
    num_expert_layers: _Size | None = None
    active_params: _Params | None = None
    """Weights that one token uses, as published; checked against the experts."""
    attention: Annotated[AttentionKind, Field(strict=False)] = AttentionKind.GQA
    window_tokens: _Size | None = None
    num_window_layers: _Size | None = None
    latent: _LatentEntry | None = None
    layers: list[Any] = Field(default_factory=list, max_length=10_000)
    """Groups of equal layers, instead of totals; totals that are given as well are checked."""
    activation_bytes_per_token: int = Field(default=0, ge=0, le=_MOST_BYTES)
    """Peak memory of activations for each token of max_batch_tokens, over all GPUs of a replica
    together; taken from the room for KV. 0: the 3.5 GiB of every GPU are taken to hold them."""
    kv_bytes_per_token: Any = Field(default=None, json_schema_extra=_KV_SCHEMA)
    """What KV takes on one GPU, instead of what heads and layers imply: bytes a token, or a list
    of [tokens, bytes in all] for a cache that grows ever slower."""
    kv_reference_tokens: _Size | None = None
    """Length for which the pages of such a list are counted exactly; by its first slope if not
    given, which never counts too few."""
    recommended_batch: _BatchEntry | None = None
    """Range of sequences in a batch that the model's makers advise."""
    precisions: list[Annotated[Precision, Field(strict=False)]] | None = Field(
        default=None, min_length=1
    )
    """Formats that the weights are had in; a replica with another is refused. Any if not given."""

    @field_validator("version")
    @classmethod
    def _check_version(cls, value: Any) -> str | None:
        return None if value is None else version_text(value)

    @field_validator("kv_bytes_per_token")
    @classmethod
    def _check_kv(cls, value: Any) -> tuple[tuple[int, float], ...] | None:
        return None if value is None else _kv_points(value)


MODEL_ENTRIES: dict[str, type[Entry]] = {
    "file": _ModelFile,
    "latent": _LatentEntry,
    "layers": _LayerEntry,
    "recommended_batch": _BatchEntry,
}
"""What a model file holds: its top level, and the mappings and lists in it."""


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and 0 < value <= _MOST_BYTES


def _kv_points(value: Any) -> tuple[tuple[int, float], ...]:
    """Points of a KV curve from what a file gives.

    Raises: `ValueError` for anything but a number or a list of pairs that a cache can be.
    """
    if _is_number(value):
        return ((1, float(value)),)
    if not isinstance(value, list) or not 1 <= len(value) <= 1000:
        msg = "must be bytes a token, or a list of [tokens, bytes in all]"
        raise ValueError(msg)
    for pair in value:
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
        if not is_pair or not isinstance(pair[0], int):
            msg = f"each must be [tokens, bytes in all], a whole and a number, found {pair!r:.80}"
            raise ValueError(msg)
    points = tuple((int(tokens), float(total)) for tokens, total in value)
    KvCurve(points=points)
    return points


class Reading(NamedTuple):
    """A model, or what is wrong with its description."""

    profile: ModelProfile | None
    """None when there are faults."""
    faults: tuple[Fault, ...]
    """In the order of the file."""
    content: Any = None
    """What was read."""


def read_text(text: str | bytes, *, is_json: bool = False) -> Reading:
    """Read a model from the text of a file."""
    parsed = parse_text(text, is_json=is_json)
    if parsed.faults:
        return Reading(None, parsed.faults)
    return read_content(parsed.content, parsed.lines)


def read_content(content: Any, lines: Mapping[str, int]) -> Reading:
    """Read a model from what a file holds; `lines` says where its keys stand."""
    faults: list[tuple[str, str]] = []
    try:
        file = _ModelFile.model_validate(content)
    except ValidationError as error:
        faults += keyed_faults(_ModelFile, error)
        layers = content.get("layers") if isinstance(content, dict) else None
        list(_layer_groups(layers if isinstance(layers, list) else [], faults))
        return Reading(None, placed(faults, lines))
    groups = list(_layer_groups(file.layers, faults))
    if file.kv_reference_tokens is not None and file.kv_bytes_per_token is None:
        text = f"belongs to kv_bytes_per_token, got {file.kv_reference_tokens} without; leave out"
        faults.append(("kv_reference_tokens", text))
    values = _profile_values(file)
    if file.layers and not faults:
        faults += _fill_totals(file, groups, values)
    for name in ("num_layers", "total_params"):
        if values[name] is None and not file.layers:
            faults.append((name, "key is missing; add it, or describe the layers under `layers`"))
    if values["num_layers"] is not None and values["total_params"] is not None:
        shape = ModelProfile.unchecked(**values)
        faults += contradictions(shape)
        published = PublishedFigures(active_params=file.active_params)
        faults += physical_faults(shape, published, [key for key, _ in faults])
    if faults:
        return Reading(None, placed(faults, lines))
    return Reading(ModelProfile(**values), (), content)


def _fill_totals(
    file: _ModelFile, groups: list[LayerGroup], values: dict[str, Any]
) -> list[ShapeFault]:
    """Put what the layers come to in the place of totals that are not given."""
    sizes = ModelProfile.unchecked(**values)
    faults = list(group_faults(groups, sizes))
    if faults:
        return faults
    totals = layer_totals(groups, sizes)
    values.update({name: getattr(totals, name) for name in (*_TOTALS, "attention")})
    for name in ("total_params", "expert_params"):
        values[name] = getattr(file, name) or values[name]
    return list(total_faults(totals, {name: getattr(file, name) for name in _TOTALS}))


_TOTALS = (
    "num_layers",
    "total_params",
    "expert_params",
    "num_expert_layers",
    "window_tokens",
    "num_window_layers",
)


def _layer_groups(items: list[Any], faults: list[tuple[str, str]]) -> Iterator[LayerGroup]:
    for index, item in enumerate(items):
        try:
            yield _LayerEntry.model_validate(item).group()
        except ValidationError as error:
            faults += keyed_faults(_LayerEntry, error, f"layers[{index}]")


def _profile_values(file: _ModelFile) -> dict[str, Any]:
    """Fields of a profile, as far as the file gives them."""
    apart = {"layers", "active_params", "kv_bytes_per_token", "kv_reference_tokens"}
    values = {name: getattr(file, name) for name in _ModelFile.model_fields if name not in apart}
    if file.latent is not None:
        values["latent"] = LatentShape(**file.latent.model_dump())
    if file.recommended_batch is not None:
        values["recommended_batch"] = BatchRange(**file.recommended_batch.model_dump())
    values["precisions"] = tuple(file.precisions or ())
    if file.kv_bytes_per_token is not None:
        values["kv_bytes"] = KvCurve(
            points=file.kv_bytes_per_token, reference_tokens=file.kv_reference_tokens
        )
    return values
