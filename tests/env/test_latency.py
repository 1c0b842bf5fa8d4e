"""The iteration-time kernel: affine where the jump needs it, and each part by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.hardware import gpu
from trimtab.env.latency import (
    COMMUNICATION_TOKENS,
    LATENCY_DTYPE,
    base_time_s,
    communication_time_s,
    iteration_time_s,
    linear_time_s,
    other_time_s,
    position_time_s,
    predict_parts,
    window_positions,
)
from trimtab.env.model_profile import MODELS, model
from trimtab.env.roofline import latency_coefficients
from trimtab.env.speculation import Speculation

MODEL_NAMES = st.sampled_from(sorted(MODELS))


def make_record(**fields: object) -> np.void:
    """Coefficients that are all 0 but the neutral ones and those named."""
    table = np.zeros(1, dtype=LATENCY_DTYPE)
    table["roofline_power"] = table["micro_batches"] = 1.0
    table["speculative_input_tokens"] = table["speculative_output_tokens"] = 1.0
    for name, value in fields.items():
        table[name] = value
    record: np.void = table[0]
    return record


def make_replica(
    model_name: str = "llama-3-8b", gpu_name: str = "H100-80G", **how: object
) -> np.void:
    record: np.void = latency_coefficients(gpu(gpu_name), model(model_name), **how)[0]  # type: ignore[arg-type]
    return record


@given(MODEL_NAMES, st.integers(1, 256), st.integers(0, 2048), st.integers(0, 1_000_000))
def test_time_is_affine_in_the_decode_context(
    name: str, seqs: int, chunk: int, context_tokens: int
) -> None:
    # windowed layers saturate, and are tracked apart
    if MODELS[name].window_tokens is not None:
        return
    record = make_replica(name, tensor_parallel=4 if MODELS[name].num_heads % 4 == 0 else 1)
    times_s = [
        iteration_time_s(record, chunk, 0, seqs, context_tokens + d) for d in (0, 1000, 3000)
    ]
    assert times_s[2] - times_s[0] == pytest.approx(3 * (times_s[1] - times_s[0]), rel=1e-6)


@given(st.integers(1, 2048), st.integers(0, 8192))
def test_time_is_affine_in_the_chunk_positions(chunk: int, positions: int) -> None:
    record = make_replica()
    base_s = other_time_s(record, chunk, 0.0, 3)
    grown_s = other_time_s(record, chunk, float(positions), 3)
    assert grown_s - base_s == pytest.approx(positions * position_time_s(record, chunk), abs=1e-12)


def test_gemm_by_hand() -> None:
    record = make_record(
        gemm_read_s=[[3e-3, 0, 0, 0, 0, 0]],
        gemm_token_s=[[1e-3, 0, 0, 0, 0, 0]],
        roofline_power=2.0,
    )
    # hypot of 3 ms of reading and 4 tokens of 1 ms
    assert linear_time_s(record, 4.0) == pytest.approx(5e-3)


def test_rows_of_a_tile_are_paid_in_part() -> None:
    record = make_record(gemm_token_s=[[1e-6, 0, 0, 0, 0, 0]], tile_pad_frac=0.5)
    # 130 rows are two tiles of 128: half of the 126 empty ones counts
    assert linear_time_s(record, 130.0) == pytest.approx(193e-6)
    assert linear_time_s(record, 128.0) == pytest.approx(128e-6)


def test_communication_is_interpolated_in_logarithms() -> None:
    times_s = 1e-6 * COMMUNICATION_TOKENS
    record = make_record(communication_s=[times_s])
    for tokens in (1.0, 3.0, 100.0, 32768.0, 100_000.0):
        assert communication_time_s(record, tokens) == pytest.approx(1e-6 * tokens)
    assert communication_time_s(make_record(), 64.0) == 0.0


def test_touched_experts_saturate() -> None:
    record = make_record(expert_s=1.0, expert_miss_frac=0.75)
    assert linear_time_s(record, 1.0) == pytest.approx(0.25)
    assert linear_time_s(record, 2.0) == pytest.approx(0.4375)
    assert linear_time_s(record, 100.0) == pytest.approx(1.0)


def test_head_and_overheads_by_hand() -> None:
    record = make_record(
        step_s=1.0, request_s=0.1, decode_step_s=10.0, prefill_step_s=100.0, head_read_s=3.0,
        head_seq_s=1.0,
    )  # fmt: skip
    assert other_time_s(record, 0, 0.0, 4) == pytest.approx(1 + 5 + 10 + 0.4)
    assert other_time_s(record, 1, 0.0, 0) == pytest.approx(1 + 3 + 100)


@pytest.mark.parametrize(
    ("window", "chunk", "start", "expected"),
    [(100, 3, 0, 6), (2, 3, 0, 5), (4, 3, 3, 12), (4, 3, 10, 12), (100, 3, 10, 36)],
)
def test_window_positions_one_by_one(window: int, chunk: int, start: int, expected: int) -> None:
    assert window_positions(float(window), float(chunk), float(start)) == expected


def test_windowed_layers_stop_growing() -> None:
    profile, windowed = model("llama-3-8b"), make_replica("gpt-oss-20b")
    assert profile.window_tokens is None
    assert windowed["window_tokens"] == 128
    # half of the layers have the window: beyond it the other half grows alone
    short_s = iteration_time_s(windowed, 0, 0, 1, 64) - iteration_time_s(windowed, 0, 0, 1, 0)
    long_s = iteration_time_s(windowed, 0, 0, 1, 1064) - iteration_time_s(windowed, 0, 0, 1, 1000)
    assert short_s == pytest.approx(2 * long_s, rel=1e-6)


def test_parts_add_up_to_the_whole() -> None:
    record = make_replica("gpt-oss-20b")
    table = np.array([record], dtype=LATENCY_DTYPE)
    # 300 new tokens after none beside 5 sequences of 1,000 tokens
    batch = np.array([[300.0, 300 * 301 / 2, 5, 5000, 128 * 129 / 2 + 172 * 128, 640]])
    parts = np.empty((1, 4))
    predict_parts(table, batch, parts)
    assert parts.sum() == pytest.approx(iteration_time_s(record, 300, 0, 5, 5000))


def test_speculation_by_hand() -> None:
    # 3 drafted tokens at 50 %: 1 + 0.5 + 0.25 + 0.125 are kept
    speculation = Speculation(draft_tokens=3, acceptance=0.5, draft_cost_frac=0.1)
    assert speculation.kept_tokens == pytest.approx(1.875)
    plain, fast = make_replica(), make_replica(speculation=speculation)
    verify_s = base_time_s(plain, 0, 0.0, 32) - 32 * plain["request_s"] - plain["step_s"]
    assert verify_s > 0
    # a pure prefill is not sped up
    assert iteration_time_s(fast, 512, 0, 0, 0) == pytest.approx(
        iteration_time_s(plain, 512, 0, 0, 0)
    )
    context = [
        iteration_time_s(r, 0, 0, 8, 8000) - iteration_time_s(r, 0, 0, 8, 0) for r in (plain, fast)
    ]
    assert context[1] == pytest.approx(context[0] * 1.3 / 1.875)


def test_speculation_pays_in_small_batches_and_not_in_large_ones() -> None:
    plain = make_replica()
    fast = make_replica(speculation=Speculation(draft_tokens=4, acceptance=0.6))
    assert iteration_time_s(fast, 0, 0, 1, 1000) < 0.6 * iteration_time_s(plain, 0, 0, 1, 1000)
    assert iteration_time_s(fast, 0, 0, 512, 512) > iteration_time_s(plain, 0, 0, 512, 512)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"draft_tokens": 0, "acceptance": 0.5}, "draft_tokens must be at least 1, got 0"),
        ({"draft_tokens": 1, "acceptance": 1.5}, "acceptance must be between 0 and 1, got 1.5"),
        (
            {"draft_tokens": 1, "acceptance": 1.0, "draft_cost_frac": -1.0},
            "draft_cost_frac must be at least 0, got -1",
        ),
    ],
)
def test_refuses_impossible_speculation(fields: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Speculation(**fields)  # type: ignore[arg-type]
