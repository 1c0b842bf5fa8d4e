"""A model described layer by layer, and the totals that follow.

A group stands for `count` equal layers. Its parameters are given, or follow from the widths:
attention as the sizes say, three matrices of an MLP, three of every expert, the router, two norms.

Does not know: files, or whether totals make physical sense (`model_checks.py`).
Source: the layers of Llama, Qwen, Mixtral and DeepSeek models on the Hugging Face hub.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .model_shape import AttentionKind, ModelProfile, ShapeFault

# share by which given and computed numbers of parameters may differ: biases, further norms, sinks
PARAMS_TOLERANCE = 0.02


class LayerKind(StrEnum):
    """What stands after a layer's attention."""

    DENSE = "dense"  # one MLP
    EXPERT = "expert"  # experts, of which a router picks some for each token


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Equal layers of a model."""

    count: int = 1
    """Layers."""
    kind: LayerKind = LayerKind.DENSE
    """What stands after the attention."""
    attention: AttentionKind | None = None
    """How they store and read context; None as the model says. `full` and `gqa` see all of it."""
    window_tokens: int | None = None
    """Attention window; None as the model says."""
    params: int | None = None
    """All weights of one layer; None computes them from the widths."""
    expert_params: int | None = None
    """Weights of all experts of one layer; None computes them from `expert_width`."""
    mlp_width: int | None = None
    """Inner values of the MLP, shared experts counted in."""
    expert_width: int | None = None
    """Inner values of one expert."""

    @property
    def has_experts(self) -> bool:
        """Whether a router picks experts."""
        return self.kind is LayerKind.EXPERT


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTotals:
    """What layers come to together, as fields of a `ModelProfile`."""

    num_layers: int
    """All layers."""
    total_params: int
    """All weights: layers, embedding tables and the last norm."""
    expert_params: int
    """All experts of all layers."""
    num_expert_layers: int | None
    """Layers with experts; None for all or none."""
    attention: AttentionKind
    """How context is stored and read."""
    window_tokens: int | None
    """Attention window."""
    num_window_layers: int | None
    """Layers with the window; None for all or none."""


def group_faults(groups: Sequence[LayerGroup], sizes: ModelProfile) -> Iterator[ShapeFault]:
    """What is wrong with groups one by one, and beside each other."""
    for index, group in enumerate(groups):
        place = f"layers[{index}]"
        yield from _own_faults(group, sizes, place)
    kinds = {_attention(group, sizes) for group in groups}
    if AttentionKind.MLA in kinds and len(kinds) > 1:
        others = ", ".join(sorted(kind.value for kind in kinds))
        text = f"latent attention cannot stand beside another kind, got {others}; use one"
        yield ShapeFault("layers", text)
    windows = {_window(group, sizes) for group in groups if _is_windowed(group, sizes)}
    if len(windows) > 1:
        text = f"all windows must be equal, got {sorted(str(window) for window in windows)}"
        yield ShapeFault("layers", f"{text}; give the one that most layers have")


def _own_faults(group: LayerGroup, sizes: ModelProfile, place: str) -> Iterator[ShapeFault]:
    if group.has_experts and sizes.num_experts < 1:
        text = "has experts; give num_experts and experts_per_token of the model"
        yield ShapeFault(f"{place}.kind", text)
    if not group.has_experts and (group.expert_params or group.expert_width):
        yield ShapeFault(f"{place}.kind", "a dense layer has no experts; say kind: expert")
    if group.has_experts and group.expert_params is None and group.expert_width is None:
        yield ShapeFault(place, "give expert_width, or expert_params, of the layer's experts")
    if not group.has_experts and group.params is None and group.mlp_width is None:
        yield ShapeFault(place, "give params, the weights of one layer, or mlp_width")
    if _is_windowed(group, sizes) and _window(group, sizes) is None:
        yield ShapeFault(place, "sliding attention needs window_tokens; give it")
    if group.window_tokens is not None and not _is_windowed(group, sizes):
        kind = _attention(group, sizes).value
        text = f"belongs to sliding attention, got {group.window_tokens} with {kind!r}"
        yield ShapeFault(f"{place}.window_tokens", text)
    for name, given, computed in (
        ("params", group.params, _computed_params(group, sizes)),
        ("expert_params", group.expert_params, _width_experts(group, sizes)),
    ):
        if given is not None and computed is not None and _differ(given, computed):
            text = f"is {given:,}, but the widths come to {computed:,}; leave out one of them"
            yield ShapeFault(f"{place}.{name}", text)


def _differ(given: float, computed: float) -> bool:
    return abs(given - computed) > PARAMS_TOLERANCE * computed


def _attention(group: LayerGroup, sizes: ModelProfile) -> AttentionKind:
    return sizes.attention if group.attention is None else group.attention


def _is_windowed(group: LayerGroup, sizes: ModelProfile) -> bool:
    return _attention(group, sizes) is AttentionKind.SLIDING


def _window(group: LayerGroup, sizes: ModelProfile) -> int | None:
    return sizes.window_tokens if group.window_tokens is None else group.window_tokens


def _width_experts(group: LayerGroup, sizes: ModelProfile) -> int | None:
    if group.expert_width is None:
        return None
    return 3 * sizes.hidden_size * group.expert_width * sizes.num_experts


def layer_expert_params(group: LayerGroup, sizes: ModelProfile) -> int:
    """Weights of all experts of one layer."""
    return group.expert_params or _width_experts(group, sizes) or 0


def _computed_params(group: LayerGroup, sizes: ModelProfile) -> int | None:
    """Weights of one layer by its widths; None where a width is missing."""
    if group.mlp_width is None and not group.has_experts:
        return None
    if group.mlp_width is None and group.params is not None:
        return None  # shared experts may be in what is given
    hidden = sizes.hidden_size
    own = sizes.attention_params + 2 * hidden + 3 * hidden * (group.mlp_width or 0)
    router = hidden * sizes.num_experts if group.has_experts else 0
    return own + router + layer_expert_params(group, sizes)


def layer_params(group: LayerGroup, sizes: ModelProfile) -> int:
    """All weights of one layer."""
    return group.params or _computed_params(group, sizes) or 0


def layer_totals(groups: Sequence[LayerGroup], sizes: ModelProfile) -> LayerTotals:
    """What groups without faults come to; `sizes` holds all that is no total."""
    num_layers = sum(group.count for group in groups)
    num_experts = sum(group.count for group in groups if group.has_experts)
    windowed = [group for group in groups if _is_windowed(group, sizes)]
    num_windowed = sum(group.count for group in windowed)
    num_tables = 1 if sizes.has_tied_embeddings else 2
    rest = num_tables * sizes.embedding_params + sizes.hidden_size
    kinds = {_attention(group, sizes) for group in groups}
    if windowed:
        attention = AttentionKind.SLIDING
    elif AttentionKind.MLA in kinds:
        attention = AttentionKind.MLA
    else:
        is_own = sizes.attention in (AttentionKind.FULL, AttentionKind.GQA)
        attention = sizes.attention if is_own else AttentionKind.GQA
    return LayerTotals(
        num_layers=num_layers,
        total_params=rest + sum(group.count * layer_params(group, sizes) for group in groups),
        expert_params=sum(group.count * layer_expert_params(group, sizes) for group in groups),
        num_expert_layers=num_experts if 0 < num_experts < num_layers else None,
        attention=attention,
        window_tokens=_window(windowed[0], sizes) if windowed else None,
        num_window_layers=num_windowed if 0 < num_windowed < num_layers else None,
    )


def total_faults(totals: LayerTotals, given: dict[str, Any]) -> Iterator[ShapeFault]:
    """Totals of a file that its layers do not come to."""
    for name in ("num_layers", "num_expert_layers", "window_tokens", "num_window_layers"):
        value, computed = given.get(name), getattr(totals, name)
        if name.endswith("_layers") and computed is None:
            computed = totals.num_layers if value == totals.num_layers else None
        if value is not None and value != computed:
            text = f"is {value}, but the layers come to {computed or 'none'}; leave out one of them"
            yield ShapeFault(name, text)
    for name in ("total_params", "expert_params"):
        value, computed = given.get(name), getattr(totals, name)
        if value and _differ(value, computed):
            ratio = f" ({value / computed:.3g} times)" if computed else ""
            text = f"is {value:,}, but the layers come to {computed:,}{ratio}"
            yield ShapeFault(name, f"{text}; correct one, or leave out the total")
