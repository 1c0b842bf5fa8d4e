"""What a model's sizes must be to make physical sense.

Bounds lie well outside every published model, so that what they refuse is a slip: a size in the
wrong unit, a total of another model, a figure for training. Each fault names the value and what
the other sizes imply.

Does not know: files; sizes that contradict each other (`model_shape.contradictions`).
Source: the catalogue's models, and the widest and narrowest of each kind on the Hugging Face hub.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from .hardware import Precision
from .kv_curve import KvCurve
from .model_shape import AttentionKind, ModelProfile, ShapeFault

# bytes of an activation: engines compute in 16 bits whatever the weights' format
_VALUE_BYTES = 2
# bytes of a logit: engines sample in 32 bits
_LOGIT_BYTES = 4
# share by which weights may stay below what attention, tables and experts need
_SLACK_FRAC = 0.02
# inner width of all MLPs by hidden size: 1.5 (Falcon-H1) to 8 (Gemma 2B)
_MLP_RATIO = (0.5, 16.0)
# inner width of an expert by hidden size: 0.25 (DeepSeek-V2-Lite's is 0.69) to 3.5 (Mixtral)
_EXPERT_RATIO = (1 / 32, 16.0)
# values of all query heads by hidden size: 0.76 (Gemma 3 27B) to 2.3 (DeepSeek V3)
_HEADS_RATIO = (1 / 8, 8.0)
# rows of an embedding table: 256 bytes of byte models to 262,144 of Gemma 3
_VOCAB = (250, 4_000_000)
# tokens: longest published context, 10 M of Llama 4 Scout
_LONGEST_CONTEXT_TOKENS = 10_485_760
# KV bytes by what heads and layers in 16 bits take: 4-bit caches of layers that share KV by twos,
# and a quarter of room for scales and padding
_KV_RATIO = (1 / 8, 1.25)
# activation bytes by token, as values of hidden size and of the widest MLP kept at a time
_MOST_HIDDEN_VALUES = 16
_MOST_WIDTH_VALUES = 8
# share by which published and computed active parameters may differ: some leave out the tables
_ACTIVE_SLACK_FRAC = 0.3
# sequences: beyond any engine's batch
_MOST_SEQS = 1_000_000


class PublishedFigures(NamedTuple):
    """What a file gives only to be checked."""

    active_params: int | None = None
    """Weights that one token uses."""


def physical_faults(
    shape: ModelProfile,
    published: PublishedFigures | None = None,
    known_faults: Collection[str] = (),
) -> Iterator[ShapeFault]:
    """What makes no physical sense; checks that rest on keys with faults are left out."""
    bad = set(known_faults)
    yield from _size_faults(shape)
    if not bad & {"num_kv_heads", "num_experts", "latent", "num_expert_layers"}:
        yield from _param_faults(shape)
        yield from _expert_faults(shape)
        yield from _activation_faults(shape)
        if published is not None and published.active_params is not None:
            yield from _active_faults(shape, published.active_params)
    if shape.latent is not None:
        yield from _latent_faults(shape)
    has_kv = shape.kv_bytes is not None
    if has_kv and not bad & {"num_kv_heads", "latent", "window_tokens", "num_window_layers"}:
        yield from _kv_faults(shape, shape.kv_bytes)
    yield from _batch_faults(shape)
    if len(set(shape.precisions)) < len(shape.precisions):
        text = f"must differ from each other, got {[str(each) for each in shape.precisions]}"
        yield ShapeFault("precisions", text)


def _size_faults(shape: ModelProfile) -> Iterator[ShapeFault]:
    heads, low, high = shape.num_heads * shape.head_dim, *_HEADS_RATIO
    if not low <= heads / shape.hidden_size <= high:
        text = (
            f"{shape.num_heads} heads of {shape.head_dim} values are {heads:,}, expected {low:g} "
            f"to {high:g} times hidden_size {shape.hidden_size:,}; check head_dim and num_heads"
        )
        yield ShapeFault("head_dim", text)
    if not _VOCAB[0] <= shape.vocab_size <= _VOCAB[1]:
        text = f"expected {_VOCAB[0]:,} to {_VOCAB[1]:,} rows, got {shape.vocab_size:,}"
        yield ShapeFault("vocab_size", text)
    if (shape.window_tokens or 0) > _LONGEST_CONTEXT_TOKENS:
        text = (
            f"is beyond the longest context of any model ({_LONGEST_CONTEXT_TOKENS:,}), "
            f"got {shape.window_tokens:,}; say attention: gqa if there is no window"
        )
        yield ShapeFault("window_tokens", text)
    is_full = shape.attention is AttentionKind.FULL
    if is_full and shape.num_kv_heads != shape.num_heads:
        text = (
            f"'full' gives each of {shape.num_heads} query heads its own KV head, got "
            f"num_kv_heads {shape.num_kv_heads}; say gqa, or correct num_kv_heads"
        )
        yield ShapeFault("attention", text)


def _param_faults(shape: ModelProfile) -> Iterator[ShapeFault]:
    """Total parameters against what tables, attention, experts and MLPs come to."""
    hidden, total = shape.hidden_size, shape.total_params
    tables = (1 if shape.has_tied_embeddings else 2) * shape.embedding_params
    attention = shape.num_layers * shape.attention_params
    fixed = tables + attention + shape.expert_params
    low_ratio, high_ratio = (0.0 if shape.is_moe else _MLP_RATIO[0]), _MLP_RATIO[1]
    low, high = (
        fixed + 3 * hidden * shape.num_layers * hidden * ratio for ratio in (low_ratio, high_ratio)
    )
    if low * (1 - _SLACK_FRAC) <= total <= high:
        return
    parts = f"{_short(tables)} of tables, {_short(attention)} of attention"
    if shape.is_moe:
        parts += f", {_short(shape.expert_params)} of experts"
    bound, side = (low, "at least") if total < low else (high, "at most")
    text = (
        f"is {_short(total)}, but the sizes imply {_short(low)} to {_short(high)} ({parts}, MLPs "
        f"of {low_ratio:g} to {high_ratio:g} times hidden_size): expected {side} {_short(bound)}, "
        f"{max(total / bound, bound / total):.3g} times off; correct total_params or the sizes"
    )
    yield ShapeFault("total_params", text)


def _expert_faults(shape: ModelProfile) -> Iterator[ShapeFault]:
    if not shape.is_moe:
        return
    if shape.expert_params >= shape.total_params:
        text = (
            f"must be below total_params, got {_short(shape.expert_params)} of "
            f"{_short(shape.total_params)}; give the weights of routed experts alone"
        )
        yield ShapeFault("expert_params", text)
    ratio = shape.expert_params / (
        3 * shape.hidden_size**2 * shape.num_experts * shape.expert_layers
    )
    if not _EXPERT_RATIO[0] <= ratio <= _EXPERT_RATIO[1]:
        low, high = (round(bound * shape.hidden_size) for bound in _EXPERT_RATIO)
        text = (
            f"{_short(shape.expert_params)} over {shape.expert_layers} layers of "
            f"{shape.num_experts} experts make each {ratio * shape.hidden_size:.3g} values wide, "
            f"expected {low:,} to {high:,}; give all experts of all layers together"
        )
        yield ShapeFault("expert_params", text)


def _active_faults(shape: ModelProfile, active: int) -> Iterator[ShapeFault]:
    if active > shape.total_params:
        text = f"must be at most total_params, got {active:,} of {shape.total_params:,}"
        yield ShapeFault("active_params", text)
    elif abs(active / shape.active_params - 1.0) > _ACTIVE_SLACK_FRAC:
        text = (
            f"is {_short(active)}, but {shape.experts_per_token} of {shape.num_experts} experts "
            f"imply {_short(shape.active_params)}; correct it, or expert_params"
        )
        yield ShapeFault("active_params", text)


def _latent_faults(shape: ModelProfile) -> Iterator[ShapeFault]:
    latent = shape.latent
    assert latent is not None, shape.name
    for name in ("kv_rank", "query_rank"):
        rank = getattr(latent, name)
        if rank > shape.hidden_size:
            text = f"must be at most hidden_size {shape.hidden_size:,}, got {rank:,}"
            yield ShapeFault(f"latent.{name}", text)
    expanded = shape.num_heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
    if latent.cached_values >= expanded:
        text = (
            f"a latent of {latent.cached_values:,} values must be smaller than the keys and values "
            f"that it stands for ({expanded:,}); say attention: gqa, or correct the sizes"
        )
        yield ShapeFault("latent.kv_rank", text)


def _kv_faults(shape: ModelProfile, curve: KvCurve | None) -> Iterator[ShapeFault]:
    """KV bytes against those of heads and layers, in 16 bits."""
    assert curve is not None, shape.name
    if curve.points[-1][0] > _LONGEST_CONTEXT_TOKENS:
        text = (
            f"tokens must be at most {_LONGEST_CONTEXT_TOKENS:,}, the longest context of any "
            f"model, got {curve.points[-1][0]:,}"
        )
        yield ShapeFault("kv_bytes_per_token", text)
    token_bytes = implied_kv_bytes(shape)
    for tokens, given in curve.points:
        most = token_bytes * tokens
        seen = tokens if shape.window_tokens is None else min(tokens, shape.window_tokens)
        windowed_frac = shape.window_layers / shape.num_layers
        least = token_bytes * ((1 - windowed_frac) * tokens + windowed_frac * seen)
        if not _KV_RATIO[0] * least <= given <= _KV_RATIO[1] * most:
            bounds = f"{_KV_RATIO[0] * least:,.0f} to {_KV_RATIO[1] * most:,.0f}"
            text = (
                f"gives {given:,.0f} bytes at {tokens:,} tokens, but {shape.num_layers} layers "
                f"imply {most:,.0f} in 16 bits (expected {bounds}); give bytes of all layers, for "
                "one sequence on one GPU"
            )
            yield ShapeFault("kv_bytes_per_token", text)
            return


def implied_kv_bytes(shape: ModelProfile) -> int:
    """KV bytes of a token by heads and layers, in 16 bits, whatever the profile says."""
    bare = ModelProfile.unchecked(
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        latent=shape.latent,
        kv_bytes=None,
    )
    return bare.kv_bytes_per_token(Precision.BF16)


def _activation_faults(shape: ModelProfile) -> Iterator[ShapeFault]:
    given = shape.activation_bytes_per_token
    if not given:
        return
    experts = shape.expert_width * shape.experts_per_token
    width = max(shape.mlp_width, shape.num_heads * shape.head_dim) + experts
    values = _MOST_HIDDEN_VALUES * shape.hidden_size + _MOST_WIDTH_VALUES * width
    low = _VALUE_BYTES * shape.hidden_size
    high = _VALUE_BYTES * values + _LOGIT_BYTES * shape.vocab_size
    if not low <= given <= high:
        text = (
            f"is {given:,}, expected {low:,} (one hidden vector of {shape.hidden_size:,} values in "
            f"16 bits) to {high:,} (the widest layer and the logits); give the peak of inference "
            "in bytes, not of all layers or of training"
        )
        yield ShapeFault("activation_bytes_per_token", text)


def _batch_faults(shape: ModelProfile) -> Iterator[ShapeFault]:
    batch = shape.recommended_batch
    if batch is None:
        return
    if batch.min > batch.max:
        text = f"min must be at most max, got {batch.min} and {batch.max}; swap them"
        yield ShapeFault("recommended_batch", text)
    if batch.max > _MOST_SEQS:
        text = f"must be at most {_MOST_SEQS:,} sequences, got {batch.max:,}"
        yield ShapeFault("recommended_batch.max", text)


def _short(count: float) -> str:
    """A count of parameters as people say it."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:,.0f}"
