"""The shape of an LLM: bytes and FLOPs as functions of its published sizes.

Does not know: which models there are (`model_profile.py`, `model_file.py`), GPUs, latency, or how
a replica is placed; `gemms.py` lists a model's matrix multiplications. Quantised profiles count
every weight at the precision asked for, although engines leave embeddings in 16 bits (1-7 % of the
bytes). KV pages hold every token in every layer, windowed layers included, as an engine with one
page size does, unless the profile says what its KV takes (`kv_curve.py`).
Source: each architecture's `config.json` on the Hugging Face hub.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple

from .hardware import Precision
from .kv_curve import KvCurve
from .model_version import is_version


class AttentionKind(StrEnum):
    """How a model's attention stores and reads its context."""

    FULL = "full"  # every query head has its own KV head
    GQA = "gqa"  # groups of query heads share a KV head
    MLA = "mla"  # a compressed latent stands for keys and values
    SLIDING = "sliding"  # only the last `window_tokens` are attended to


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Sizes of latent attention (MLA), values a token or head."""

    query_rank: int
    """Width of the compressed query; 0 when queries are not compressed."""
    kv_rank: int
    """Width of the latent that stands for keys and values."""
    rope_dim: int
    """Values with positions, shared by all heads."""
    nope_dim: int
    """Values of a head's key without positions."""
    value_dim: int
    """Values of a head's value."""

    def __post_init__(self) -> None:
        """Refuse sizes that no head can have."""
        if self.query_rank < 0 or min(self.kv_rank, self.rope_dim, self.nope_dim) < 1:
            msg = f"latent sizes must be at least 1 (query_rank 0 for none), got {self}"
            raise ValueError(msg)

    @property
    def cached_values(self) -> int:
        """Values that a token keeps in a layer's cache."""
        return self.kv_rank + self.rope_dim


class BatchRange(NamedTuple):
    """Sequences in a batch."""

    min: int
    """Fewest."""
    max: int
    """Most."""


class ShapeFault(NamedTuple):
    """A key of a shape that contradicts the others."""

    key: str
    """Name of the field."""
    text: str
    """What is wrong, the value, and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """Shape of one model, enough to count bytes and FLOPs."""

    name: str
    """Catalogue name, as used in cluster files."""
    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Query heads a layer."""
    num_kv_heads: int
    """Key and value heads a layer."""
    head_dim: int
    """Values a head."""
    vocab_size: int
    """Rows of the embedding table."""
    has_tied_embeddings: bool
    """Input table and output head are the same weights."""
    total_params: int
    """All weights."""
    expert_params: int = 0
    """All experts of all layers together; 0 for a dense model."""
    num_experts: int = 0
    """Experts a layer; 0 for a dense model."""
    experts_per_token: int = 0
    """Experts that one token uses; 0 for a dense model."""
    attention: AttentionKind = AttentionKind.GQA
    """How context is stored and read."""
    window_tokens: int | None = None
    """Attention window; only with sliding attention."""
    num_window_layers: int | None = None
    """Layers with the window; None with sliding attention: all of them."""
    num_expert_layers: int | None = None
    """Layers with experts; None for a model with experts: all of them."""
    latent: LatentShape | None = None
    """Sizes of latent attention; only with MLA."""
    kv_bytes: KvCurve | None = None
    """What the KV of a sequence really takes; None computes it from heads and layers."""
    activation_bytes_per_token: int = 0
    """Peak memory of activations for each token of a batch, over all GPUs of a replica."""
    recommended_batch: BatchRange | None = None
    """Sequences in a batch that the model's makers advise."""
    precisions: tuple[Precision, ...] = ()
    """Formats that the weights are had in; empty for any."""
    version: str | None = None
    """Whole numbers with dots between; None for a model without versions."""
    source: str = ""
    """Where the sizes were taken from."""
    licence: str = ""
    """Terms of the weights."""

    def __post_init__(self) -> None:
        """Refuse a shape that contradicts itself."""
        fault = next(contradictions(self), None)
        if fault is not None:
            msg = f"model {self.name!r}: {fault.text}"
            raise ValueError(msg)

    @classmethod
    def unchecked(cls, **values: Any) -> "ModelProfile":
        """A profile that may contradict itself, for those who report all that is wrong with it."""
        profile = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(profile, field.name, values.get(field.name, field.default))
        return profile

    @property
    def key(self) -> str:
        """Its key in the catalogue: the name, with the version if it has one."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def window_layers(self) -> int:
        """Layers that attend to the last `window_tokens` only."""
        if self.window_tokens is None:
            return 0
        return self.num_layers if self.num_window_layers is None else self.num_window_layers

    @property
    def expert_layers(self) -> int:
        """Layers with experts."""
        if not self.is_moe:
            return 0
        return self.num_layers if self.num_expert_layers is None else self.num_expert_layers

    @property
    def expert_width(self) -> int:
        """Inner values of one expert, as one of its three matrices has them."""
        if not self.is_moe:
            return 0
        matrices = 3 * self.hidden_size * self.num_experts * self.expert_layers
        return self.expert_params // matrices

    @property
    def attention_params(self) -> int:
        """Weights of one layer's attention, biases and norms aside."""
        if self.latent is None:
            return self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        latent, hidden, heads = self.latent, self.hidden_size, self.num_heads
        key_dim = latent.nope_dim + latent.rope_dim
        query_in = latent.query_rank or hidden
        return (
            hidden * (latent.query_rank + latent.cached_values)
            + query_in * heads * key_dim
            + latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
            + heads * latent.value_dim * hidden
        )

    @property
    def mlp_width(self) -> int:
        """Inner values of an MLP's dense part, the mean over the layers; 0 if all are experts.

        Shared experts count as dense. Derived from the parameters: three matrices a layer.
        """
        num_tables = 1 if self.has_tied_embeddings else 2
        dense_params = self.total_params - self.expert_params - num_tables * self.embedding_params
        mlp_params = dense_params - self.num_layers * self.attention_params
        if self.is_moe:
            mlp_params -= self.expert_layers * self.hidden_size * self.num_experts  # the router
        width = mlp_params / (3 * self.hidden_size * self.num_layers)
        # norms and biases look like a width of some tens of values
        return 0 if width < 64 else 8 * round(width / 8)

    @property
    def is_moe(self) -> bool:
        """Whether the model has routed experts."""
        return self.expert_params > 0

    @property
    def expert_use_frac(self) -> float:
        """Share of the expert weights that one token uses; 0 for a dense model."""
        return self.experts_per_token / self.num_experts if self.is_moe else 0.0

    @property
    def active_params(self) -> int:
        """Weights that one token uses, embedding table and output head included."""
        idle_params = self.expert_params * (1.0 - self.expert_use_frac)
        return self.total_params - round(idle_params)

    @property
    def embedding_params(self) -> int:
        """Weights of one embedding table."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_params(self) -> int:
        """Weights of the layers that one token is multiplied with: no table, no output head."""
        num_tables = 1 if self.has_tied_embeddings else 2
        return self.active_params - num_tables * self.embedding_params

    def weight_bytes(self, precision: Precision) -> int:
        """Bytes that the weights take in memory, over all GPUs of a replica."""
        return self.total_params * precision.bytes_per_value

    def expert_bytes(self, precision: Precision) -> int:
        """Bytes of all experts together; 0 for a dense model."""
        return self.expert_params * precision.bytes_per_value

    def dense_read_bytes(self, precision: Precision) -> int:
        """Bytes of non-expert weights that every iteration reads, output head included.

        An input table of its own is looked up by row and not read as a whole.
        """
        lookup_params = 0 if self.has_tied_embeddings else self.embedding_params
        read_params = self.total_params - self.expert_params - lookup_params
        return read_params * precision.bytes_per_value

    def kv_bytes_per_token(self, precision: Precision, *, tensor_parallel: int = 1) -> int:
        """Bytes that one token of context takes over all GPUs of a replica.

        A group wider than `num_kv_heads` keeps one KV head on each GPU, copies included.
        Every GPU of the group keeps the whole latent of MLA. `tensor_parallel` is the group that
        shares a layer; pipeline stages hold different layers. A profile that says what its KV
        takes is taken at its word, whatever the precision; `kv_curve.py` says what is exact.
        """
        if self.kv_bytes is not None:
            return math.ceil(self.kv_bytes.page_token_bytes * self.kv_copies(tensor_parallel))
        if self.latent is not None:
            values = self.latent.cached_values * tensor_parallel
        else:
            values = 2 * max(self.num_kv_heads, tensor_parallel) * self.head_dim
        return self.num_layers * values * precision.bytes_per_value

    def kv_copies(self, tensor_parallel: int) -> float:
        """How often the GPUs of a group that shares a layer keep its KV, together."""
        if self.latent is not None:
            return float(tensor_parallel)
        return max(self.num_kv_heads, tensor_parallel) / self.num_kv_heads

    def kv_read_bytes_per_token(self, precision: Precision, *, tensor_parallel: int = 1) -> float:
        """Bytes that decode reads for each of the first tokens of context, over all GPUs."""
        if self.kv_bytes is None:
            return self.kv_bytes_per_token(precision, tensor_parallel=tensor_parallel)
        return self.kv_bytes.first_slope * self.kv_copies(tensor_parallel)

    @property
    def kv_window_tokens(self) -> int:
        """Context from which on the KV read in windowed layers grows no more; 0 without."""
        if self.window_tokens is None and self.kv_bytes is not None:
            return self.kv_bytes.bend_tokens
        return self.window_tokens or 0

    @property
    def kv_window_layers(self) -> float:
        """Layers whose KV is read up to `kv_window_tokens` only; by a table, a part of a layer."""
        if self.window_tokens is None and self.kv_bytes is not None:
            return self.num_layers * self.kv_bytes.bent_frac
        return self.window_layers

    def matmul_flops_per_token(self) -> float:
        """FLOPs of one token in the layers' matrix multiplications, attention excluded.

        The output head is left out: engines apply it to a sequence's last token only.
        """
        return 2.0 * self.layer_params

    def attention_flops_per_pair(self) -> float:
        """FLOPs of one (token, attended token) pair: QK and PV, 2 FLOPs an element each."""
        return self.num_layers * self.layer_flops_per_pair

    @property
    def layer_flops_per_pair(self) -> float:
        """The same for one layer, as prefill computes it."""
        if self.latent is None:
            return 4.0 * self.num_heads * self.head_dim
        key_dim = self.latent.nope_dim + self.latent.rope_dim
        return 2.0 * self.num_heads * (key_dim + self.latent.value_dim)

    def attention_flops(self, num_tokens: int, start_tokens: int = 0) -> float:
        """FLOPs of causal attention of `num_tokens` new tokens after `start_tokens` cached ones.

        Every token attends to itself and to those before it; in windowed layers to at most
        `window_tokens` of them.
        """
        pairs = num_tokens * start_tokens + num_tokens * (num_tokens + 1) / 2
        layer_pairs = (self.num_layers - self.window_layers) * pairs
        if self.window_tokens is not None:
            window_tokens = self.window_tokens
            num_growing = min(max(window_tokens - start_tokens, 0), num_tokens)
            growing_pairs = num_growing * start_tokens + num_growing * (num_growing + 1) / 2
            pairs = growing_pairs + (num_tokens - num_growing) * window_tokens
            layer_pairs += self.window_layers * pairs
        return self.layer_flops_per_pair * layer_pairs

    def can_shard(self, tensor_parallel: int) -> bool:
        """Whether the heads divide evenly over this many GPUs."""
        if self.latent is not None:
            return tensor_parallel >= 1 and self.num_heads % tensor_parallel == 0
        wide, narrow = (
            max(self.num_kv_heads, tensor_parallel),
            min(self.num_kv_heads, tensor_parallel),
        )
        return tensor_parallel >= 1 and self.num_heads % tensor_parallel == 0 and wide % narrow == 0


def contradictions(shape: ModelProfile) -> Iterator[ShapeFault]:
    """What no model can be: sizes that contradict each other, whatever they mean for bytes."""
    if shape.num_heads % shape.num_kv_heads:
        heads = (shape.num_heads, shape.num_kv_heads)
        text = f"num_heads must be a multiple of num_kv_heads, got {heads}"
        yield ShapeFault("num_kv_heads", text)
    if (shape.expert_params > 0) != (0 < shape.experts_per_token < shape.num_experts):
        experts = (shape.expert_params, shape.num_experts, shape.experts_per_token)
        text = (
            "expert_params, num_experts, experts_per_token must be all 0 "
            f"or 0 < experts_per_token < num_experts, got {experts}"
        )
        yield ShapeFault("num_experts", text)
    if (shape.window_tokens is not None) != (shape.attention is AttentionKind.SLIDING):
        text = (
            f"window_tokens belongs to sliding attention, got {shape.window_tokens} "
            f"with {shape.attention.value!r}"
        )
        yield ShapeFault("window_tokens", text)
    if (shape.latent is not None) != (shape.attention is AttentionKind.MLA):
        text = f"latent belongs to mla attention, got {shape.latent} with {shape.attention.value!r}"
        yield ShapeFault("latent", text)
    if shape.version is not None and not is_version(shape.version):
        text = f"version must be as '2' or '1.4', in its shortest form, got {shape.version!r}"
        yield ShapeFault("version", text)
    for name in ("num_window_layers", "num_expert_layers"):
        count = getattr(shape, name)
        if count is not None and not 0 < count <= shape.num_layers:
            text = f"{name} must be between 1 and num_layers ({shape.num_layers}), got {count}"
            yield ShapeFault(name, text)
