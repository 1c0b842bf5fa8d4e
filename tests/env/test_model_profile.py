"""The model catalogue: known answers from published shapes, and properties of the arithmetic."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.hardware import Precision
from trimtab.env.model_profile import MODELS, AttentionKind, LatentShape, ModelProfile, model
from trimtab.traces.errors import ConfigError

BF16, FP8 = Precision.BF16, Precision.FP8
KIB = 1024
EVERY_MODEL = pytest.mark.parametrize("profile", MODELS.values(), ids=list(MODELS))

# config.json: width of an MLP or of one expert, and biases or head norms of a layer
MLP_WIDTH = {
    "llama-3.2-1b": 8192,
    "llama-3-8b": 14336,
    "llama-3-70b": 28672,
    "qwen-2.5-32b": 27648,
    "mixtral-8x7b": 14336,
    "qwen3-30b-a3b": 768,
    "qwen3-235b-a22b": 1536,
    "qwen3-8b": 12288,
    "qwen3-14b": 17408,
    "qwen3-32b": 25600,
    "gemma-3-27b": 21504,
    "gpt-oss-20b": 2880,
}
EXTRA_LAYER_PARAMS = {
    "qwen-2.5-32b": 5120 + 2 * 1024,
    "qwen3-30b-a3b": 2 * 128,
    "qwen3-235b-a22b": 2 * 128,
    "qwen3-8b": 2 * 128,
    "qwen3-14b": 2 * 128,
    "qwen3-32b": 2 * 128,
    # two norms more, and those of query and key
    "gemma-3-27b": 2 * 5376 + 2 * 128,
    # biases of attention, sinks, and biases of router and experts
    "gpt-oss-20b": 64 * 64 + 2 * 8 * 64 + 2880 + 64 + 32 + 32 * 3 * 2880,
}


def make_sliding(window_tokens: int) -> ModelProfile:
    return replace(
        MODELS["llama-3-8b"], attention=AttentionKind.SLIDING, window_tokens=window_tokens
    )


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("llama-3.2-1b", 32),
        ("llama-3-8b", 128),
        ("llama-3-70b", 320),
        ("qwen-2.5-32b", 256),
        ("mixtral-8x7b", 128),
        ("qwen3-30b-a3b", 96),
    ],
)
def test_kv_bytes_per_token(name: str, kib: int) -> None:
    assert model(name).kv_bytes_per_token(BF16) == kib * KIB
    assert model(name).kv_bytes_per_token(FP8) == kib * KIB // 2


def test_kv_heads_are_copied_when_the_group_is_wider() -> None:
    profile = model("qwen3-30b-a3b")
    assert profile.kv_bytes_per_token(BF16, tensor_parallel=4) == 96 * KIB
    assert profile.kv_bytes_per_token(BF16, tensor_parallel=8) == 192 * KIB


@pytest.mark.parametrize("name", sorted(MLP_WIDTH))
def test_total_params_follow_from_the_shape(name: str) -> None:
    profile = MODELS[name]
    hidden, head_dim = profile.hidden_size, profile.head_dim
    attention = hidden * head_dim * 2 * (profile.num_heads + profile.num_kv_heads)
    mlp = 3 * hidden * MLP_WIDTH[profile.name]
    if profile.is_moe:
        mlp *= profile.num_experts
        assert profile.expert_params == mlp * profile.num_layers
        mlp += hidden * profile.num_experts  # the router
    norms = 2 * hidden + EXTRA_LAYER_PARAMS.get(profile.name, 0)
    tables = profile.vocab_size * hidden * (1 if profile.has_tied_embeddings else 2)
    total = profile.num_layers * (attention + mlp + norms) + tables + hidden
    assert profile.total_params == total


@pytest.mark.parametrize(
    ("name", "billions"),
    [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.35), ("llama-3-8b", 8.03), ("llama-3-70b", 70.55)],
)
def test_active_params(name: str, billions: float) -> None:
    assert model(name).active_params / 1e9 == pytest.approx(billions, abs=0.03)


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("llama-3-8b", 16.06), ("llama-3-70b", 141.1), ("mixtral-8x7b", 93.4)]
)
def test_weight_bytes(name: str, gigabytes: float) -> None:
    assert model(name).weight_bytes(BF16) / 1e9 == pytest.approx(gigabytes, rel=0.001)
    assert model(name).weight_bytes(FP8) * 2 == model(name).weight_bytes(BF16)


@EVERY_MODEL
def test_parts_of_the_weights_add_up(profile: ModelProfile) -> None:
    lookup = 0 if profile.has_tied_embeddings else profile.embedding_params
    parts = profile.dense_read_bytes(BF16) + profile.expert_bytes(BF16) + 2 * lookup
    assert parts == profile.weight_bytes(BF16)
    assert 0 < profile.layer_params < profile.active_params <= profile.total_params
    assert profile.is_moe == (profile.active_params < profile.total_params)
    assert profile.is_moe == (profile.expert_use_frac > 0)


@EVERY_MODEL
def test_entry_is_found_by_name(profile: ModelProfile) -> None:
    assert model(profile.name) is profile


def test_matmul_flops_per_token() -> None:
    # 32 layers of 218.1 M weights, 2 FLOPs each
    assert model("llama-3-8b").matmul_flops_per_token() == pytest.approx(13.96e9, rel=0.001)


def test_attention_flops_by_hand() -> None:
    profile = model("llama-3-8b")
    pair_flops = 4 * 32 * 32 * 128
    assert profile.attention_flops_per_pair() == pair_flops
    # one token sees itself; three tokens see 1, 2, 3; after 10 cached ones 11, 12, 13
    assert profile.attention_flops(1) == pair_flops
    assert profile.attention_flops(3) == 6 * pair_flops
    assert profile.attention_flops(3, 10) == 36 * pair_flops


@given(
    num_tokens=st.integers(0, 60), start_tokens=st.integers(0, 60), window_tokens=st.integers(1, 80)
)
def test_sliding_attention_counts_pairs_one_by_one(
    num_tokens: int, start_tokens: int, window_tokens: int
) -> None:
    profile = make_sliding(window_tokens)
    pairs = sum(min(start_tokens + i, window_tokens) for i in range(1, num_tokens + 1))
    flops = profile.attention_flops(num_tokens, start_tokens)
    assert flops == pairs * profile.attention_flops_per_pair()


@given(
    first=st.integers(1, 4000),
    second=st.integers(1, 4000),
    name=st.sampled_from(sorted(MODELS)),
)
def test_chunks_of_a_prompt_cost_what_the_prompt_costs(first: int, second: int, name: str) -> None:
    profile = model(name)
    chunks = profile.attention_flops(first) + profile.attention_flops(second, first)
    assert chunks == pytest.approx(profile.attention_flops(first + second))


@pytest.mark.parametrize(
    ("name", "tensor_parallel", "expected"),
    [
        ("llama-3-8b", 1, True),
        ("llama-3-8b", 8, True),
        ("llama-3-8b", 16, True),
        ("llama-3-8b", 3, False),
        ("llama-3-8b", 0, False),
        ("qwen-2.5-32b", 8, True),
        ("qwen-2.5-32b", 16, False),
        ("qwen-2.5-32b", 5, False),
    ],
)
def test_can_shard(name: str, tensor_parallel: int, expected: bool) -> None:
    assert model(name).can_shard(tensor_parallel) is expected


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("llama3-8b", "llama-3-8b"), ("Mixtral-8x7B", "mixtral-8x7b"), ("qwen-32b", "qwen-2.5-32b")],
)
def test_unknown_model_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown model '{name}'; did you mean '{nearest}'"):
        model(name)


def test_unknown_model_lists_all() -> None:
    with pytest.raises(ConfigError, match="unknown model 'zzz'; known: llama-3-70b, llama-3-8b"):
        model("zzz")


def test_latent_attention_by_hand() -> None:
    profile = model("deepseek-v3")
    # 512 of the latent and 64 with positions, in 61 layers; each GPU of a group keeps them all
    assert profile.kv_bytes_per_token(BF16) == 61 * 576 * 2
    assert profile.kv_bytes_per_token(BF16, tensor_parallel=8) == 8 * 61 * 576 * 2
    assert profile.can_shard(16)
    assert not profile.can_shard(3)
    # 37 B of 671 B parameters are active
    assert profile.active_params / 1e9 == pytest.approx(37.5, abs=0.3)
    assert profile.total_params / 1e9 == pytest.approx(671.0, abs=0.1)
    # 128 heads: keys of 192 values, values of 128
    assert profile.layer_flops_per_pair == 2 * 128 * (192 + 128)


def test_refuses_half_a_latent_model() -> None:
    with pytest.raises(ValueError, match=r"latent belongs to mla attention, got None with 'mla'"):
        replace(model("llama-3-8b"), attention=AttentionKind.MLA)
    with pytest.raises(ValueError, match=r"latent sizes must be at least 1"):
        LatentShape(query_rank=0, kv_rank=0, rope_dim=64, nope_dim=128, value_dim=128)


def test_windowed_layers_are_counted() -> None:
    profile = model("gemma-3-27b")
    assert (profile.window_layers, profile.num_layers) == (52, 62)
    # one token after 10,000: full layers see 10,001, the others 1,024
    pairs = 10 * 10_001 + 52 * 1024
    assert profile.attention_flops(1, 10_000) == pairs * 4 * 32 * 128
    with pytest.raises(ValueError, match=r"num_window_layers must be between 1 and .*, got 63"):
        replace(profile, num_window_layers=63)


@pytest.mark.parametrize(
    ("name", "mlp", "expert"),
    [("llama-3-70b", 28672, 0), ("mixtral-8x7b", 0, 14336), ("deepseek-v3", 2856, 2048)],
)
def test_widths_follow_from_the_parameters(name: str, mlp: int, expert: int) -> None:
    assert model(name).mlp_width == mlp
    assert model(name).expert_width == expert


def test_refuses_uneven_heads() -> None:
    with pytest.raises(ValueError, match=r"multiple of num_kv_heads, got \(32, 5\)"):
        replace(model("llama-3-8b"), num_kv_heads=5)


@pytest.mark.parametrize(
    ("expert_params", "num_experts", "experts_per_token"),
    [(10, 0, 0), (0, 8, 2), (10, 8, 8), (10, 8, 0)],
)
def test_refuses_half_an_expert_model(
    expert_params: int, num_experts: int, experts_per_token: int
) -> None:
    with pytest.raises(ValueError, match=rf"got \({expert_params}, {num_experts}, "):
        replace(
            model("llama-3-8b"),
            expert_params=expert_params,
            num_experts=num_experts,
            experts_per_token=experts_per_token,
        )


def test_refuses_a_window_without_sliding_attention() -> None:
    with pytest.raises(ValueError, match=r"window_tokens belongs to sliding.*got 4096 with 'gqa'"):
        replace(model("llama-3-8b"), window_tokens=4096)
    with pytest.raises(ValueError, match="got None with 'sliding'"):
        replace(model("llama-3-8b"), attention=AttentionKind.SLIDING)
