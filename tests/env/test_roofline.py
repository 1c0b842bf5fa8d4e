"""Latency coefficients: by hand, against measured kernels, and as monotone functions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.calibration import Calibration, Efficiency, TransferTable
from trimtab.env.datasheet import calibration_of
from trimtab.env.gemms import activation_values, layer_gemms
from trimtab.env.hardware import GPUS, Precision, gpu
from trimtab.env.latency import LATENCY_DTYPE, iteration_time_s, linear_time_s
from trimtab.env.model_profile import MODELS, AttentionKind, ModelProfile, model
from trimtab.env.roofline import ENGINE_REQUEST_S, ENGINE_STEP_S, latency_coefficients
from trimtab.traces.errors import ConfigError

GPU_NAMES = st.sampled_from(sorted(GPUS))
MODEL_NAMES = st.sampled_from(sorted(MODELS))
WIDTHS = st.sampled_from([1, 2, 4, 8])

# 10 us for a transfer of any size
CONSTANT = TransferTable(num_bytes=(1.0, 1e12), seconds=(1e-5, 1e-5))
# every share 1, sum instead of p-norm, next to no overheads: the arithmetic can be done by hand
IDEAL = Calibration(
    gpu="A100-80G",
    efficiency=Efficiency(
        memory_frac=1.0,
        compute_frac=1.0,
        roofline_power=1.0,
        tile_pad_frac=0.0,
        narrow_values=0.0,
        sustained_frac=0.0,
        activation_frac=1.0,
        layer_s=1e-6,
        attention_frac=1.0,
        prefill_layer_s=2e-6,
        prefill_position_s=3e-9,
        kv_frac=1.0,
        decode_layer_s=4e-6,
        decode_seq_layer_s=5e-9,
        mixed_tile_rows=64.0,
        expert_memory_frac=1.0,
        expert_compute_frac=1.0,
        expert_narrow_values=0.0,
        expert_sustained_frac=0.0,
        expert_layer_s=6e-6,
        expert_overlap_frac=0.0,
        sampling_bytes=0.0,
    ),
    all_reduce={2: CONSTANT, 4: CONSTANT, 8: CONSTANT},
    all_to_all={8: CONSTANT},
    send_recv=CONSTANT,
)


def make_record(
    gpu_name: str,
    model_name: str = "llama-3-8b",
    tensor_parallel: int = 1,
    precision: Precision = Precision.BF16,
    calibration: Calibration | None = None,
) -> np.void:
    table = latency_coefficients(
        gpu(gpu_name),
        model(model_name),
        tensor_parallel=tensor_parallel,
        precision=precision,
        calibration=calibration,
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
    record = make_record("A100-80G", calibration=IDEAL)
    assert record["step_s"] == pytest.approx(ENGINE_STEP_S + 32e-6)
    assert record["prefill_step_s"] == pytest.approx(64e-6)
    assert record["decode_step_s"] == pytest.approx(128e-6)
    assert record["request_s"] == pytest.approx(ENGINE_REQUEST_S + 160e-9)
    # all weights but the input table of 128,256 x 4,096
    assert record["weight_s"] == pytest.approx(2 * (8_030_261_248 - 525_336_576) / 2.039e12)
    assert record["expert_s"] == 0.0
    assert record["expert_miss_frac"] == 0.0
    # neither input table nor output head; norms are no matrix multiplication
    assert record["token_s"] == pytest.approx(2 * (8_030_261_248 - 2 * 525_336_576) / 312e12, 1e-3)
    assert record["head_read_s"] == pytest.approx(2 * 525_336_576 / 2.039e12)
    assert record["head_seq_s"] == pytest.approx(2 * 525_336_576 / 312e12)
    # QKV of 4,096 x 6,144 is the first of the multiplications
    assert record["gemm_read_s"][0] == pytest.approx(32 * 2 * 4096 * 6144 / 2.039e12)
    assert record["gemm_token_s"][0] == pytest.approx(32 * 2 * 4096 * 6144 / 312e12)
    assert np.count_nonzero(record["gemm_read_s"]) == 4
    assert record["roofline_power"] == 1.0
    assert record["prefill_attention_s"] == pytest.approx(4 * 32 * 32 * 128 / 312e12)
    assert record["prefill_position_s"] == pytest.approx(32 * 3e-9)
    assert record["decode_context_s"] == pytest.approx(131_072 / 2.039e12)
    # 64 rows of a tile for every query head, beside reading the context
    in_vain_s = 64 * 4 * 32 * 32 * 128 / 312e12
    factor = 1 + in_vain_s / (131_072 / 2.039e12)
    assert record["mixed_context_factor"] == pytest.approx(factor)
    assert record["communication_token_s"] == 0.0
    assert not record["communication_s"].any()


def test_tensor_parallel_coefficients_by_hand() -> None:
    one = make_record("A100-80G", "llama-3-70b", 1, calibration=IDEAL)
    four = make_record("A100-80G", "llama-3-70b", 4, calibration=IDEAL)
    for field in ("weight_s", "token_s", "prefill_attention_s", "decode_context_s"):
        assert four[field] == pytest.approx(one[field] / 4)
    # two all-reduces of 10 us in each of 80 layers, whatever the tokens
    assert four["communication_s"] == pytest.approx(np.full(16, 160e-5))
    assert one["step_s"] == four["step_s"]


def test_experts_by_hand() -> None:
    record = make_record("H100-80G", "mixtral-8x7b", 2, calibration=IDEAL)
    assert record["expert_s"] == pytest.approx(2 * 45_097_156_608 / 3.35e12 / 2)
    assert record["expert_miss_frac"] == pytest.approx(0.75)
    flops = 2 * 45_097_156_608 * 2 / 8 / 2
    moved = 32 * 2 * (2 * 4096 + 3 * 14336 / 2) * 2
    assert record["expert_token_s"] == pytest.approx(flops / 989e12 + moved / 3.35e12)
    assert record["step_s"] == pytest.approx(ENGINE_STEP_S + 32e-6 + 32 * 6e-6)
    narrow = make_record("H100-80G", "qwen3-30b-a3b", calibration=IDEAL)
    assert narrow["expert_miss_frac"] == pytest.approx(120 / 128)


def parallel(model_name: str, calibration: Calibration | None = IDEAL, **groups: int) -> np.void:
    record: np.void = latency_coefficients(
        gpu("H100-80G"), model(model_name), calibration=calibration, **groups
    )[0]  # type: ignore[arg-type]
    return record


def test_pipeline_stages_cut_the_batch() -> None:
    whole = parallel("llama-3-70b", tensor_parallel=4)
    staged = parallel("llama-3-70b", tensor_parallel=4, pipeline_parallel=2)
    # 64 tokens are two micro-batches of 32, and each passes two links of 10 us
    assert linear_time_s(staged, 64.0) == pytest.approx(linear_time_s(whole, 32.0) + 2e-5)
    assert staged["decode_context_s"] == pytest.approx(whole["decode_context_s"] / 2)
    assert staged["prefill_attention_s"] == pytest.approx(whole["prefill_attention_s"] / 2)
    # a full batch gains, a single sequence does not
    assert decode_ms(staged, 256, 1024) < 0.75 * decode_ms(whole, 256, 1024)
    assert decode_ms(staged, 1, 16) > 0.95 * decode_ms(whole, 1, 16)


def test_expert_parallelism_by_hand() -> None:
    cut = parallel("qwen3-30b-a3b", tensor_parallel=4)
    spread = parallel("qwen3-30b-a3b", tensor_parallel=4, expert_parallel=4)
    assert spread["expert_s"] == pytest.approx(cut["expert_s"])
    # every GPU of the group has all tokens, so the sums after the experts stay
    np.testing.assert_array_equal(spread["communication_s"], cut["communication_s"])
    # the busiest GPU has 2.5 times the mean
    flops = 6 * 2048 * 768
    row_s = flops / 989e12 + (2 * 2048 + 3 * 768) * 2 / 3.35e12
    assert spread["expert_token_s"] == pytest.approx(48 * 8 / 4 * 2.5 * row_s)


def test_latent_attention_keeps_a_narrow_cache() -> None:
    latent = parallel("deepseek-v3", None, tensor_parallel=8)
    full = parallel("llama-3-70b", None, tensor_parallel=8)
    assert model("deepseek-v3").kv_bytes_per_token(Precision.BF16) == 61 * 576 * 2
    # every GPU keeps the whole latent: 70 KB a token, against 41 KB of 70B's share
    assert latent["decode_context_s"] < 3 * full["decode_context_s"]
    assert decode_ms(latent, 1, 1000) < decode_ms(latent, 64, 1000)


def test_one_token_reads_fewer_experts_than_many() -> None:
    record = make_record("H100-80G", "mixtral-8x7b", 2)
    all_ms = 1e3 * float(record["expert_s"] + record["weight_s"])
    assert decode_ms(record, 1, 16) < 0.5 * all_ms
    assert decode_ms(record, 64, 16) > all_ms


def test_eight_bits_halve_weights_and_keep_the_cache() -> None:
    ideal = replace(
        IDEAL.efficiency,
        eight_bit_memory_frac=1.0,
        eight_bit_compute_frac=1.0,
        eight_bit_narrow_values=0.0,
    )
    calibration = replace(IDEAL, efficiency=ideal)
    wide = make_record("H100-80G", calibration=calibration)
    narrow = make_record("H100-80G", precision=Precision.FP8, calibration=calibration)
    assert narrow["weight_s"] == pytest.approx(wide["weight_s"] / 2)
    assert narrow["token_s"] == pytest.approx(wide["token_s"] / 2, rel=0.01)
    assert narrow["decode_context_s"] == wide["decode_context_s"]
    assert narrow["prefill_attention_s"] == wide["prefill_attention_s"]


def test_eight_bits_are_faster_on_measured_gpus() -> None:
    for name in ("H100-80G", "H200-141G", "B200-180G"):
        wide, narrow = make_record(name), make_record(name, precision=Precision.FP8)
        assert 0.5 < prefill_ms(narrow, 4096) / prefill_ms(wide, 4096) < 0.95
        assert 0.5 < decode_ms(narrow, 8, 512) / decode_ms(wide, 8, 512) < 0.95


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


@pytest.mark.parametrize("model_name", ["llama-3.2-1b", "llama-3-8b"])
def test_a_cpu_decodes_as_fast_as_its_memory_lets_it(model_name: str) -> None:
    entry, record = gpu("XEON8480-256G"), make_record("XEON8480-256G", model_name)
    # 8B: 16.06 GB of weights less the embedding, at 307 GB/s: 49 ms, had it all its bandwidth
    read_bytes = model(model_name).dense_read_bytes(Precision.BF16)
    ideal_ms = 1e3 * read_bytes / entry.hbm_bytes_per_s
    assert 1.0 < decode_ms(record, 1, 128) / ideal_ms < 1.4
    # 2 FLOP a parameter and token: 1,000 tokens of 8B take 140 ms at the peak
    flops = read_bytes * 1000
    ideal_ms = 1e3 * flops / entry.peak_flops[Precision.BF16]
    assert 1.0 < prefill_ms(record, 1000) / ideal_ms < 2.5


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
    values = np.concatenate([np.ravel(record[field]) for field in LATENCY_DTYPE.names or ()])
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0)
    assert record["weight_s"] > 0
    assert record["roofline_power"] >= 1
    # weights once, at a share of the bandwidth, and some overhead
    ideal_ms = (
        1e3 * model(model_name).dense_read_bytes(Precision.BF16) / gpu(gpu_name).hbm_bytes_per_s
    )
    assert ideal_ms < decode_ms(record, 8, 512)


def test_every_gpu_has_a_calibration() -> None:
    assert {calibration_of(entry).gpu for entry in GPUS.values()} == set(GPUS)


@given(GPU_NAMES, MODEL_NAMES, WIDTHS, st.integers(1, 255), st.integers(1, 8000))
def test_more_work_takes_longer(
    gpu_name: str, model_name: str, tensor_parallel: int, num_seqs: int, context_tokens: int
) -> None:
    if not model(model_name).can_shard(tensor_parallel):
        return
    record = make_record(gpu_name, model_name, tensor_parallel)
    base_ms = decode_ms(record, num_seqs, context_tokens)
    assert decode_ms(record, num_seqs + 1, context_tokens) > base_ms
    assert decode_ms(record, num_seqs, context_tokens + 1) >= base_ms
    assert prefill_ms(record, num_seqs + 1) > prefill_ms(record, num_seqs)
    assert prefill_ms(record, num_seqs, context_tokens) > prefill_ms(record, num_seqs)


@given(GPU_NAMES, MODEL_NAMES, st.sampled_from([1, 2, 4]))
def test_wider_groups_read_and_multiply_faster_and_talk_more(
    gpu_name: str, model_name: str, tensor_parallel: int
) -> None:
    if not model(model_name).can_shard(2 * tensor_parallel):
        return
    narrow = make_record(gpu_name, model_name, tensor_parallel)
    wide = make_record(gpu_name, model_name, 2 * tensor_parallel)
    for field in ("weight_s", "prefill_attention_s"):
        assert wide[field] == pytest.approx(narrow[field] / 2)
    # narrow shards multiply less efficiently
    assert narrow["token_s"] / 2 <= wide["token_s"] < narrow["token_s"]
    # equal where every GPU keeps a copy of a KV head
    assert wide["decode_context_s"] <= narrow["decode_context_s"] * (1 + 1e-12)
    # over PCIe a ring; over NVLink as measured: eight GPUs may reduce a little faster than four
    least = 1.0 if gpu(gpu_name).nvlink_bytes_per_s is None else 0.8
    assert wide["communication_token_s"] > least * narrow["communication_token_s"]
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
    ("groups", "text"),
    [
        ({"pipeline_parallel": 99}, "pipeline_parallel must be between 1 and 48 layers, got 99"),
        ({"expert_parallel": 3}, "expert_parallel must divide tensor_parallel 1, got 3"),
        ({"tensor_parallel": 3}, "32 heads and 4 KV heads do not divide over tensor_parallel 3"),
    ],
)
def test_refuses_parallelism_that_does_not_divide(groups: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parallel("qwen3-30b-a3b", **groups)
    with pytest.raises(ConfigError, match="must be 1 for a model without experts, got 2"):
        parallel("llama-3-8b", tensor_parallel=2, expert_parallel=2)


def test_full_attention_is_modelled() -> None:
    full = replace(model("llama-3-8b"), num_kv_heads=32, attention=AttentionKind.FULL)
    wide = latency_coefficients(gpu("H100-80G"), full)[0]
    assert wide["decode_context_s"] == pytest.approx(
        4 * make_record("H100-80G")["decode_context_s"]
    )


def test_own_gpu_follows_its_datasheet() -> None:
    own = replace(gpu("H100-80G"), name="H100-PCIE")
    record = latency_coefficients(own, model("llama-3-8b"))[0]
    assert decode_ms(record, 32, 1024) == pytest.approx(
        decode_ms(make_record("H100-80G"), 32, 1024), rel=0.3
    )


def seven_billion(width: int = 14336, **experts: int) -> ModelProfile:
    """The shape of Mistral 7B, or the same with four experts in place of each MLP."""
    attention, hidden, layers = 4096 * 128 * 2 * 40, 4096, 32
    num_experts = experts.get("num_experts", 1)
    mlps = layers * num_experts * 3 * hidden * width
    total = 2 * 32_000 * hidden + hidden + layers * (attention + 2 * hidden) + mlps
    if experts:
        total += layers * hidden * num_experts
    return ModelProfile(
        name="seven-billion",
        num_layers=layers,
        hidden_size=hidden,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32_000,
        has_tied_embeddings=False,
        total_params=total,
        expert_params=mlps if experts else 0,
        **experts,
    )


def traffic_bytes(profile: ModelProfile, num_tokens: int) -> tuple[float, float]:
    """Weights that a prefill reads, and those with all that its operators move beside."""
    weights = profile.dense_read_bytes(Precision.BF16) + profile.expert_bytes(Precision.BF16)
    values = sum(gemm.num_layers * (gemm.n + gemm.k) for gemm in layer_gemms(profile))
    values += activation_values(profile)
    inner = profile.expert_layers * profile.experts_per_token
    values += inner * (2 * profile.hidden_size + 3 * profile.expert_width)
    return weights, weights + 2 * values * num_tokens


def test_dense_against_four_experts() -> None:
    """A 7B dense prefill of 1,024 tokens against 4 experts, 2 for each token.

    About 2.3 times the time holds on A100-80G in BF16 (and within 10 % on H100 and MI300X) when
    each expert is as wide as the dense MLP: 12.9 B of 24.2 B parameters are then active. Experts
    of half the width keep the active parameters at 7.2 B; then time grows by a third, and memory
    traffic by 79 % counting weights and by 36 % counting activations as well: 68 % lies between
    the two ways to count. No single configuration shows both figures.
    """
    dense = seven_billion()
    assert dense.total_params == 7_241_732_096
    wide = seven_billion(num_experts=4, experts_per_token=2)
    equal = seven_billion(7168, num_experts=4, experts_per_token=2)
    assert wide.active_params / 1e9 == pytest.approx(12.9, abs=0.05)
    assert equal.active_params / dense.active_params == pytest.approx(1.0, abs=0.01)

    def ratio(profile: ModelProfile, gpu_name: str) -> float:
        times = [
            prefill_ms(latency_coefficients(gpu(gpu_name), entry)[0], 1024)
            for entry in (profile, dense)
        ]
        return times[0] / times[1]

    for name in ("A100-80G", "H100-80G", "MI300X-192G"):
        assert ratio(wide, name) == pytest.approx(2.3, rel=0.1)
    assert ratio(equal, "A100-80G") == pytest.approx(1.33, rel=0.1)
    weights, everything = (
        moe / plain
        for moe, plain in zip(traffic_bytes(equal, 1024), traffic_bytes(dense, 1024), strict=True)
    )
    assert weights == pytest.approx(1.79, abs=0.03)
    assert everything == pytest.approx(1.36, abs=0.05)
    assert everything < 1.68 < weights
