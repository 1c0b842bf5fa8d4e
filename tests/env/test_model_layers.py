"""Models described layer by layer: published totals come out, and slips are named."""

import re
from typing import Any

import pytest
import yaml
from model_files import make_text

from trimtab.env.hardware import Precision
from trimtab.env.model_entry import read_text
from trimtab.env.model_profile import MODELS, SHIPPED_MODELS
from trimtab.env.model_shape import ModelProfile

DENSE = {
    "llama-3.2-1b": 8192,
    "llama-3-8b": 14336,
    "llama-3-70b": 28672,
    "qwen-2.5-32b": 27648,
    "qwen3-8b": 12288,
    "qwen3-14b": 17408,
    "qwen3-32b": 25600,
}
EXPERTS = {
    "mixtral-8x7b": 14336,
    "qwen3-30b-a3b": 768,
    "qwen3-235b-a22b": 1536,
    "minimax-m2": 1536,
}
# layers as config.json has them
LAYERS: dict[str, list[dict[str, Any]]] = {
    **{name: [{"count": MODELS[name].num_layers, "mlp_width": w}] for name, w in DENSE.items()},
    **{
        name: [{"count": MODELS[name].num_layers, "kind": "expert", "expert_width": width}]
        for name, width in EXPERTS.items()
    },
    "gemma-3-27b": [
        {"count": 52, "attention": "sliding", "window_tokens": 1024, "mlp_width": 21504},
        {"count": 10, "attention": "full", "mlp_width": 21504},
    ],
    "gpt-oss-20b": [
        {"count": 12, "kind": "expert", "attention": kind, "expert_width": 2880}
        for kind in ("sliding", "gqa")
    ],
    "deepseek-v3": [
        {"count": 3, "kind": "dense", "attention": "mla", "mlp_width": 18432},
        {
            "count": 58,
            "kind": "expert",
            "attention": "mla",
            "mlp_width": 2048,
            "expert_width": 2048,
        },
    ],
}
COMMON = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
LATENT = ("query_rank", "kv_rank", "rope_dim", "nope_dim", "value_dim")


def described(profile: ModelProfile) -> ModelProfile:
    """The catalogue's model, made from its layers alone."""
    content: dict[str, Any] = {"name": profile.name, "layers": LAYERS[profile.name]}
    names = (*COMMON, "has_tied_embeddings", "num_experts", "experts_per_token")
    content.update({name: getattr(profile, name) for name in names})
    if profile.latent is not None:
        content["latent"] = {name: getattr(profile.latent, name) for name in LATENT}
    if profile.name == "gpt-oss-20b":
        content["window_tokens"] = 128
    reading = read_text(yaml.safe_dump(content))
    assert reading.profile is not None, [str(fault) for fault in reading.faults]
    return reading.profile


def test_every_model_of_the_catalogue_is_described() -> None:
    assert set(LAYERS) == SHIPPED_MODELS


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers_come_to_the_published_model(name: str) -> None:
    known, made = MODELS[name], described(MODELS[name])
    # biases, norms of heads and sinks are all that widths leave out
    assert made.total_params == pytest.approx(known.total_params, rel=1e-3)
    for field in (
        "num_layers",
        "expert_params",
        "num_expert_layers",
        "attention",
        "window_tokens",
        "num_window_layers",
        "latent",
    ):
        assert getattr(made, field) == getattr(known, field)
    for precision in Precision:
        assert made.kv_bytes_per_token(precision) == known.kv_bytes_per_token(precision)
        weight_bytes = known.weight_bytes(precision)
        assert made.weight_bytes(precision) == pytest.approx(weight_bytes, rel=1e-3)
    assert made.mlp_width == pytest.approx(known.mlp_width, abs=8)
    assert made.expert_width == known.expert_width


def faults_of(text: str) -> list[str]:
    return [str(fault) for fault in read_text(text).faults]


def test_given_totals_are_kept_when_the_layers_come_near() -> None:
    layers = [{"count": 32, "mlp_width": 14336}]
    made = read_text(make_text(layers=layers)).profile
    assert made is not None
    assert made.total_params == 8_030_261_248
    # parameters of one layer, in the place of widths
    alone = make_text(("num_layers", "total_params"), layers=[{"count": 32, "params": 218_112_000}])
    counted = read_text(alone).profile
    assert counted is not None
    assert (counted.num_layers, counted.total_params) == (32, 8_030_261_248)


@pytest.mark.parametrize(
    ("layers", "changes", "text"),
    [
        ([{"count": 31, "mlp_width": 14336}], {}, "num_layers: is 32, but the layers come to 31"),
        (
            [{"count": 32, "mlp_width": 1433}],
            {},
            r"total_params: is 8,030,261,248, but the layers come to .* \(2.72 times\)",
        ),
        ([{"count": 32}], {}, r"layers\[0\]: give params, the weights of one layer, or mlp_width"),
        (
            [{"count": 32, "kind": "expert", "expert_width": 9}],
            {},
            r"layers\[0\].kind: has experts",
        ),
        ([{"count": 32, "kind": "expert"}], {"num_experts": 4}, r"layers\[0\]: give expert_width"),
        (
            [{"mlp_width": 9, "expert_width": 9}],
            {},
            r"layers\[0\].kind: a dense layer has no exper",
        ),
        (
            [{"count": 32, "mlp_width": 14336, "params": 21_811_200}],
            {},
            r"layers\[0\].params: is 21,811,200, but the widths come to 218,112,000",
        ),
        (
            [{"count": 32, "mlp_width": 14336, "attention": "sliding"}],
            {},
            r"layers\[0\]: sliding attention needs window_tokens",
        ),
        (
            [{"count": 32, "mlp_width": 14336, "window_tokens": 64}],
            {},
            r"layers\[0\].window_tokens: belongs to sliding attention, got 64 with 'gqa'",
        ),
        (
            [
                {"count": 16, "mlp_width": 9, "attention": "sliding", "window_tokens": 64},
                {"count": 16, "mlp_width": 9, "attention": "sliding", "window_tokens": 128},
            ],
            {},
            r"layers: all windows must be equal, got \['128', '64'\]",
        ),
        (
            [{"count": 16, "mlp_width": 9}, {"count": 16, "mlp_width": 9, "attention": "mla"}],
            {},
            "layers: latent attention cannot stand beside another kind, got gqa, mla",
        ),
        (
            [{"cuont": 32}],
            {},
            r"layers\[0\].cuont: unknown key with value 32; did you mean 'count'",
        ),
        ([7], {}, r"layers\[0\]: must be a mapping of count, kind"),
    ],
)
def test_faults(layers: list[Any], changes: dict[str, Any], text: str) -> None:
    assert re.search(text, "\n".join(faults_of(make_text(layers=layers, **changes))))
