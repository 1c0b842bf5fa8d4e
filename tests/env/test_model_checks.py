"""Physical sense of model files: slips are refused with both figures, published models pass."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import KV_TOKEN_BYTES, SIZES, make_text

from trimtab.env.kv_curve import KvCurve
from trimtab.env.model_checks import implied_kv_bytes, physical_faults
from trimtab.env.model_entry import read_text
from trimtab.env.model_file import read_model
from trimtab.env.model_profile import MODELS, SHIPPED_MODELS, ModelProfile

EXPERTS = {
    "total_params": 46_702_792_704,
    "vocab_size": 32_000,
    "expert_params": 45_097_156_608,
    "num_experts": 8,
    "experts_per_token": 2,
}
LATENT = {"query_rank": 0, "kv_rank": 512, "rope_dim": 64, "nope_dim": 128, "value_dim": 128}


def faults_of(text: str) -> list[str]:
    return [str(fault) for fault in read_text(text).faults]


@pytest.mark.parametrize("name", [*sorted(SHIPPED_MODELS), "mistral-7b"])
def test_published_models_make_sense(name: str) -> None:
    profile = MODELS[name] if name in MODELS else read_model(name)
    assert list(physical_faults(profile)) == []
    said = replace(profile, kv_bytes=KvCurve.per_token(implied_kv_bytes(profile)))
    assert list(physical_faults(said)) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        # ten times off, either way
        (
            {"total_params": 80_302_612_480},
            r"line 9: total_params: is 80.3 B, but the sizes imply 3.198 B to 28.16 B \(1.051 B of "
            r"tables, 1.342 B of attention, MLPs of 0.5 to 16 times hidden_size\): expected at "
            r"most 28.16 B, 2.85 times off",
        ),
        ({"total_params": 803_026_125}, r"is 803 M, .* expected at least 3.198 B, 3.98 times off"),
        ({"head_dim": 4096}, r"32 heads of 4096 values are 131,072, expected 0.125 to 8 times"),
        ({"vocab_size": 12}, "line 7: vocab_size: expected 250 to 4,000,000 rows, got 12"),
        (
            {"attention": "full"},
            "'full' gives each of 32 query heads its own KV head, got num_kv_heads 8; say gqa",
        ),
        (
            {"attention": "sliding", "window_tokens": 99_000_000},
            r"beyond the longest context of any model \(10,485,760\), got 99,000,000",
        ),
        ({"active_params": 9_000_000_000}, "active_params: must be at most total_params, got 9,0"),
        (
            {**EXPERTS, "active_params": 26_000_000_000},
            "active_params: is 26 B, but 2 of 8 experts imply 12.88 B",
        ),
        (
            {**EXPERTS, "expert_params": 46_702_792_705},
            "expert_params: must be below total_params, got 46.7 B of 46.7 B",
        ),
        (
            {**EXPERTS, "expert_params": 45_097_156},
            "45.1 M over 32 layers of 8 experts make each 14.3 values wide, expected 128 to 65,5",
        ),
        (
            {"kv_bytes_per_token": 10 * KV_TOKEN_BYTES},
            r"gives 1,310,720 bytes at 1 tokens, but 32 layers imply 131,072 in 16 bits \(expected "
            r"16,384 to 163,840\); give bytes of all layers",
        ),
        ({"kv_bytes_per_token": KV_TOKEN_BYTES / 32}, "gives 4,096 bytes at 1 tokens"),
        ({"kv_bytes_per_token": [[99_000_000, 1e13]]}, "tokens must be at most 10,485,760"),
        (
            {"kv_bytes_per_token": [[10, 1e6], [20, 3e6]]},
            "kv_bytes_per_token: .* grow no faster with length, got 100000 .* and 200000 beyond",
        ),
        ({"kv_bytes_per_token": "much"}, r"bytes a token, or a list of .*, got 'much'"),
        ({"kv_bytes_per_token": [[1.5, 2]]}, r"each must be \[tokens, .*found \[1.5, 2\]"),
        ({"kv_bytes_per_token": True}, "got True"),
        ({"kv_reference_tokens": 64}, "belongs to kv_bytes_per_token, got 64 without"),
        (
            {"activation_bytes_per_token": 4_456_448},
            r"is 4,456,448, expected 8,192 \(one hidden vector of 4,096 values in 16 bits\) to "
            r"873,472 .* not of all layers or of training",
        ),
        ({"activation_bytes_per_token": 12}, "activation_bytes_per_token: is 12, expected 8,192"),
        (
            {"recommended_batch": {"min": 64, "max": 8}},
            "recommended_batch: min must be at most max, got 64 and 8; swap them",
        ),
        ({"recommended_batch": {"min": 1, "max": 2_000_000}}, "at most 1,000,000 sequences"),
        ({"precisions": ["bf16", "bf16"]}, r"must differ from each other, got \['bf16', 'bf16'\]"),
        ({"precisions": ["fp4"]}, "precisions.0: .*'fp16', 'bf16', 'fp8' or 'int8', got 'fp4'"),
        (
            {"attention": "mla", "latent": {**LATENT, "kv_rank": 8192}},
            "latent.kv_rank: must be at most hidden_size 4,096, got 8,192",
        ),
        (
            {
                "attention": "mla",
                "num_heads": 8,
                "latent": {**LATENT, "nope_dim": 4, "value_dim": 4},
            },
            r"a latent of 576 values must be smaller than .* stands for \(576\)",
        ),
        (
            {"attention": "mla", "latent": {**LATENT, "nope_dims": 4}},
            "latent.nope_dims: unknown key with value 4; did you mean 'nope_dim'",
        ),
        ({"version": 1.5}, r"version: .*up to three with dots .*\(put it in quotes\), got 1.5"),
        ({"version": "v2"}, "version: .*must be a whole number.*, got 'v2'"),
        ({"name": "own@2"}, "name: .*got 'own@2'"),
        ({"total_params": 10**30}, "total_params: .*less than or equal to 1000000000000000"),
    ],
)
def test_faults(changes: dict[str, Any], text: str) -> None:
    faults = faults_of(make_text(**changes))
    assert re.search(text, "\n".join(faults)), faults


def test_all_faults_at_once_in_the_order_of_the_file() -> None:
    text = make_text(
        num_kv_heads=5,
        vocab_size=12,
        total_params=8_030_261_248,
        attention="sliding",
        recommended_batch={"min": 9, "max": 3},
        precisions=["fp8", "fp8"],
    )
    faults = read_text(text).faults
    # what the text says first comes first; no key says that a window is missing
    assert [(fault.line, fault.key) for fault in faults] == [
        (None, "window_tokens"),
        (5, "num_kv_heads"),
        (7, "vocab_size"),
        (11, "recommended_batch"),
        (14, "precisions"),
    ]


def test_wrong_types_and_wrong_layers_are_reported_together() -> None:
    faults = faults_of(make_text(num_heads="many", colour="red", layers=[{"count": 0}, {"mlp": 4}]))
    assert len(faults) == 4
    assert any("line 4: num_heads: " in fault and "got 'many'" in fault for fault in faults)
    assert any("layers[0].count: " in fault and "got 0" in fault for fault in faults)


@given(
    name=st.sampled_from(sorted(SHIPPED_MODELS)),
    factor=st.one_of(st.floats(0.001, 0.1), st.floats(30.0, 1000.0)),
)
def test_a_total_far_off_is_always_refused(name: str, factor: float) -> None:
    total = max(1, round(MODELS[name].total_params * factor))
    wrong = ModelProfile.unchecked(**{**_values(MODELS[name]), "total_params": total})
    found = [fault for fault in physical_faults(wrong) if "params" in fault.key]
    assert found
    assert all(fault.text for fault in found)


def _values(profile: ModelProfile) -> dict[str, Any]:
    return {name: getattr(profile, name) for name in profile.__dataclass_fields__}


def test_todays_files_mean_what_they_meant() -> None:
    profile = read_text(make_text()).profile
    assert profile is not None
    bare = replace(MODELS["llama-3-8b"], name="own")
    assert profile == bare
    assert set(SIZES) == {"name", *(key for key in _values(bare) if key in SIZES and key != "name")}
