"""Latency coefficients: by hand, against measured kernels, and as monotone functions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.hardware import GPUS, Precision, gpu
from trimtab.env.latency import LATENCY_DTYPE, iteration_time_s
from trimtab.env.model_profile import MODELS, AttentionKind, model
from trimtab.env.roofline import (
    EFFICIENCIES,
    ENGINE_REQUEST_S,
    ENGINE_STEP_S,
    Efficiency,
    latency_coefficients,
)
from trimtab.traces.errors import ConfigError

GPU_NAMES = st.sampled_from(sorted(GPUS))
MODEL_NAMES = st.sampled_from(sorted(MODELS))
WIDTHS = st.sampled_from([1, 2, 4, 8])

# every share 1, sum instead of p-norm, no overheads: the arithmetic can be done by hand
IDEAL = Efficiency(
    memory_frac=1.0,
    compute_frac=1.0,
    attention_frac=1.0,
    kv_frac=1.0,
    roofline_power=1.0,
    layer_s=1e-6,
    request_s=1e-6,
    all_reduce_s=10e-6,
    all_reduce_frac=1.0,
    mixed_context_factor=1.5,
)


def make_record(
    gpu_name: str,
    model_name: str = "llama-3-8b",
    tensor_parallel: int = 1,
    precision: Precision = Precision.BF16,
    efficiency: Efficiency | None = None,
) -> np.void:
    table = latency_coefficients(
        gpu(gpu_name),
        model(model_name),
        tensor_parallel=tensor_parallel,
        precision=precision,
        efficiency=efficiency,
    )
    record: np.void = table[0]
    return record


def decode_ms(record: np.void, num_seqs: int, context_tokens: int) -> float:
    return 1e3 * float(iteration_time_s(record, 0, 0, num_seqs, num_seqs * context_tokens))


def prefill_ms(record: np.void, num_tokens: int, start_tokens: int = 0) -> float:
    return 1e3 * float(iteration_time_s(record, num_tokens, start_tokens, 0, 0))


def test_shape_and_type() -> None:
    table = latency_coefficients(gpu("A100-80G"), model("llama-3-8b"))
    assert table.shape == (1,)
    assert table.dtype == LATENCY_DTYPE
    assert np.concatenate([table, table]).shape == (2,)


def test_coefficients_by_hand() -> None:
    record = make_record("A100-80G", efficiency=IDEAL)
    assert record["step_s"] == pytest.approx(ENGINE_STEP_S + 32e-6)
    assert record["request_s"] == pytest.approx(ENGINE_REQUEST_S + 1e-6)
    # all weights but the input table of 128,256 x 4,096
    assert record["weight_s"] == pytest.approx(2 * (8_030_261_248 - 525_336_576) / 2.039e12)
    assert record["expert_s"] == 0.0
    assert record["expert_miss_frac"] == 0.0
    # neither input table nor output head
    assert record["token_s"] == pytest.approx(2 * (8_030_261_248 - 2 * 525_336_576) / 312e12)
    assert record["roofline_power"] == 1.0
    assert record["prefill_attention_s"] == pytest.approx(4 * 32 * 32 * 128 / 312e12)
    assert record["decode_context_s"] == pytest.approx(131_072 / 2.039e12)
    assert record["mixed_context_factor"] == 1.5
    assert record["communication_token_s"] == 0.0


def test_tensor_parallel_coefficients_by_hand() -> None:
    one = make_record("A100-80G", "llama-3-70b", 1, efficiency=IDEAL)
    four = make_record("A100-80G", "llama-3-70b", 4, efficiency=IDEAL)
    for field in ("weight_s", "token_s", "prefill_attention_s", "decode_context_s"):
        assert four[field] == pytest.approx(one[field] / 4)
    # two all-reduces of 10 us in each of 80 layers
    assert four["step_s"] - one["step_s"] == pytest.approx(160 * 10e-6)
    # 160 all-reduces of 8,192 values of 2 bytes; a ring of 4 moves 2 x 3/4 of them
    assert four["communication_token_s"] == pytest.approx(160 * 8192 * 2 * 1.5 / 300e9)


def test_experts_by_hand() -> None:
    record = make_record("H100-80G", "mixtral-8x7b", 2, efficiency=IDEAL)
    assert record["expert_s"] == pytest.approx(2 * 45_097_156_608 / 3.35e12 / 2)
    assert record["expert_miss_frac"] == pytest.approx(0.75)
    assert make_record("H100-80G", "qwen3-30b-a3b")["expert_miss_frac"] == pytest.approx(120 / 128)


def test_one_token_reads_fewer_experts_than_many() -> None:
    record = make_record("H100-80G", "mixtral-8x7b", 2)
    all_ms = 1e3 * float(record["expert_s"] + record["weight_s"])
    assert decode_ms(record, 1, 16) < 0.5 * all_ms
    assert decode_ms(record, 64, 16) > all_ms


def test_eight_bits_halve_weights_and_keep_the_cache() -> None:
    wide, narrow = make_record("H100-80G"), make_record("H100-80G", precision=Precision.FP8)
    assert narrow["weight_s"] == pytest.approx(wide["weight_s"] / 2)
    assert narrow["token_s"] == pytest.approx(wide["token_s"] / 2, rel=0.01)
    assert narrow["decode_context_s"] == wide["decode_context_s"]
    assert narrow["prefill_attention_s"] == wide["prefill_attention_s"]


def test_pcie_groups_of_four_reduce_far_slower_than_pairs() -> None:
    pair = make_record("L40S-48G", tensor_parallel=2)["communication_token_s"]
    four = make_record("L40S-48G", tensor_parallel=4)["communication_token_s"]
    # measured 13.6 / 1.8 ms for 16 MB
    assert four / pair == pytest.approx(13.6 / 1.8, rel=0.4)


@pytest.mark.parametrize(
    ("gpu_name", "num_tokens", "kernels_ms"),
    [
        # GEMM and attention kernels of 32 layers, aiconfigurator 0.12; MLP shapes scaled from
        # 16,384 x 4,096 and 4,096 x 12,288
        ("A100-80G", 1024, 59.9),
        ("A100-80G", 4096, 249.6),
        ("H100-80G", 1024, 18.6),
        ("H100-80G", 4096, 81.0),
    ],
)
def test_prefill_is_near_measured_kernels(
    gpu_name: str, num_tokens: int, kernels_ms: float
) -> None:
    # the sum leaves out small kernels and the engine, which weigh most in the short prompt
    assert 0.9 < prefill_ms(make_record(gpu_name), num_tokens) / kernels_ms < 1.25


@pytest.mark.parametrize(("gpu_name", "kernels_ms"), [("A100-80G", 23.1), ("H100-80G", 12.0)])
def test_decode_is_near_measured_kernels(gpu_name: str, kernels_ms: float) -> None:
    # the same composition for 64 sequences of 2,048 tokens, output head included
    assert decode_ms(make_record(gpu_name), 64, 2048) == pytest.approx(kernels_ms, rel=0.15)


def test_decode_is_near_a_real_run() -> None:
    # vLLM, Llama-3.1-70B FP8, H100 TP4, 16 streams of 1,024 + 1,024: TPOT 13.2 ms, in which the
    # prefills of others are included (aiconfigurator silicon sample)
    record = make_record("H100-80G", "llama-3-70b", 4, Precision.FP8)
    assert 0.75 < decode_ms(record, 16, 1536) / 13.2 < 1.05


@pytest.mark.parametrize(
    ("record", "low_ms", "high_ms"),
    [
        (("A100-80G", "llama-3-8b", 1), 9, 16),
        (("H100-80G", "llama-3-70b", 4), 10, 25),
        (("L40S-48G", "llama-3-8b", 1), 25, 40),
    ],
)
def test_decode_of_32_sequences_of_1k(
    record: tuple[str, str, int], low_ms: float, high_ms: float
) -> None:
    assert low_ms < decode_ms(make_record(*record), 32, 1024) < high_ms


def test_prefill_of_1k_on_h100() -> None:
    assert 15 < prefill_ms(make_record("H100-80G"), 1024) < 60


def test_newer_gpus_are_faster() -> None:
    names = ["L40S-48G", "A100-40G", "A100-80G", "H100-80G", "H200-141G", "B200-180G"]
    times_ms = [decode_ms(make_record(name), 32, 1024) for name in names]
    assert times_ms == sorted(times_ms, reverse=True)


@pytest.mark.parametrize("gpu_name", sorted(GPUS))
@pytest.mark.parametrize("model_name", sorted(MODELS))
def test_every_pair_has_finite_coefficients(gpu_name: str, model_name: str) -> None:
    record = make_record(gpu_name, model_name)
    values = np.array([record[field] for field in LATENCY_DTYPE.names or ()])
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0)
    assert record["weight_s"] > 0
    assert record["roofline_power"] >= 1
    assert 1 < decode_ms(record, 8, 512) < 300


def test_every_gpu_is_calibrated() -> None:
    assert set(EFFICIENCIES) == set(GPUS)


@given(GPU_NAMES, MODEL_NAMES, WIDTHS, st.integers(1, 255), st.integers(1, 8000))
def test_more_work_takes_longer(
    gpu_name: str, model_name: str, tensor_parallel: int, num_seqs: int, context_tokens: int
) -> None:
    record = make_record(gpu_name, model_name, tensor_parallel)
    base_ms = decode_ms(record, num_seqs, context_tokens)
    assert decode_ms(record, num_seqs + 1, context_tokens) > base_ms
    assert decode_ms(record, num_seqs, context_tokens + 1) > base_ms
    assert prefill_ms(record, num_seqs + 1) > prefill_ms(record, num_seqs)
    assert prefill_ms(record, num_seqs, context_tokens) > prefill_ms(record, num_seqs)


@given(GPU_NAMES, MODEL_NAMES, st.sampled_from([1, 2, 4]))
def test_wider_groups_read_and_multiply_faster_and_talk_more(
    gpu_name: str, model_name: str, tensor_parallel: int
) -> None:
    narrow = make_record(gpu_name, model_name, tensor_parallel)
    wide = make_record(gpu_name, model_name, 2 * tensor_parallel)
    for field in ("weight_s", "token_s", "prefill_attention_s"):
        assert wide[field] == pytest.approx(narrow[field] / 2)
    # equal where every GPU keeps a copy of a KV head
    assert wide["decode_context_s"] <= narrow["decode_context_s"] * (1 + 1e-12)
    assert wide["communication_token_s"] > narrow["communication_token_s"]
    assert wide["step_s"] >= narrow["step_s"]


@given(GPU_NAMES, MODEL_NAMES, st.floats(1.01, 3.0))
def test_more_bandwidth_never_hurts(gpu_name: str, model_name: str, factor: float) -> None:
    slow = gpu(gpu_name)
    fast = replace(slow, hbm_bytes_per_s=factor * slow.hbm_bytes_per_s)
    before, after = (latency_coefficients(entry, model(model_name))[0] for entry in (slow, fast))
    assert after["weight_s"] == pytest.approx(before["weight_s"] / factor)
    assert decode_ms(after, 8, 1000) < decode_ms(before, 8, 1000)


def test_refuses_a_precision_the_gpu_lacks() -> None:
    with pytest.raises(ConfigError, match=r"GPU 'A100-80G' has no 'fp8'.* fp16, bf16, int8"):
        make_record("A100-80G", precision=Precision.FP8)


def test_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"40 heads and 8 KV heads do not.* tensor_parallel 3"):
        make_record("H100-80G", "qwen-2.5-32b", 3)
    with pytest.raises(ValueError, match="tensor_parallel must be at least 1, got 0"):
        make_record("H100-80G", tensor_parallel=0)


@pytest.mark.parametrize(
    ("attention", "window_tokens"), [(AttentionKind.MLA, None), (AttentionKind.SLIDING, 4096)]
)
def test_refuses_attention_without_a_model(
    attention: AttentionKind, window_tokens: int | None
) -> None:
    profile = replace(
        model("llama-3-8b"), name="odd", attention=attention, window_tokens=window_tokens
    )
    with pytest.raises(ConfigError, match=f"model 'odd': '{attention.value}' attention has no"):
        latency_coefficients(gpu("H100-80G"), profile)


def test_full_attention_is_modelled() -> None:
    full = replace(model("llama-3-8b"), num_kv_heads=32, attention=AttentionKind.FULL)
    wide = latency_coefficients(gpu("H100-80G"), full)[0]
    assert wide["decode_context_s"] == pytest.approx(
        4 * make_record("H100-80G")["decode_context_s"]
    )


def test_own_gpu_needs_a_calibration() -> None:
    own = replace(gpu("H100-80G"), name="H100-PCIE")
    with pytest.raises(ConfigError, match=r"unknown calibration 'H100-PCIE'.*pass efficiency="):
        latency_coefficients(own, model("llama-3-8b"))
    assert latency_coefficients(own, model("llama-3-8b"), efficiency=IDEAL).shape == (1,)


@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("memory_frac", 0.0, "above 0 and at most 1"),
        ("kv_frac", 1.2, "above 0 and at most 1"),
        ("roofline_power", 0.5, "at least 1"),
        ("mixed_context_factor", 0.9, "at least 1"),
    ],
)
def test_refuses_an_efficiency_out_of_bounds(field: str, value: float, bounds: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be {bounds}, got {value}"):
        replace(IDEAL, **{field: value})
