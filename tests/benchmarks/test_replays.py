"""The end-to-end half of the fidelity benchmark: what it reads, what it compares, how well it does.

Tests that need the shared measurements are skipped where those are absent (set TRIMTAB_SHARED).
"""

import csv
import gzip

import numpy as np
import pytest
from loading import load

replays, points = load("replays"), load("serving_points")
SHARED = replays.shared_dir()
needs_shared = pytest.mark.skipif(SHARED is None, reason="no shared data; set TRIMTAB_SHARED")


def make_moments(queued_s, first_token_s, last_token_s):
    return replays.Moments(
        queued_s=np.array(queued_s),
        first_token_s=np.array(first_token_s),
        last_token_s=np.array(last_token_s),
    )


def make_row(**cells):
    row = {
        "mode": "agg",
        "precision": "fp8",
        "attention_dp_size": "1",
        "system": "h200_sxm",
        "tp_size": "4",
        "moe_tp_size": "4",
        "moe_ep_size": "1",
        "model_path": "meta-llama/Llama-3.1-70B",
    }
    return {**row, **cells}


def make_point(**fields):
    values = {
        "model": "llama-3-8b",
        "gpu": "H100-80G",
        "precision": points.Precision.BF16,
        "backend": "vllm",
        "tensor_parallel": 1,
        "expert_parallel": 1,
        "concurrency": 4,
        "input_tokens": 1000,
        "output_tokens": 50,
        "ttft_s": 0.1,
        "tpot_s": 0.01,
    }
    return points.Point(**{**values, **fields})


def test_metrics_are_differences_of_moments():
    moments = make_moments([1.0, 2.0], [1.5, 2.25], [5.5, 2.75])
    metrics = moments.metrics(np.array([5, 2]))
    np.testing.assert_allclose(metrics["ttft"], [0.5, 0.25])
    np.testing.assert_allclose(metrics["tpot"], [1.0, 0.5])
    np.testing.assert_allclose(metrics["e2e"], [4.5, 0.75])


def test_a_miss_is_named_with_its_error():
    real = make_moments([0.0], [1.0], [11.0])
    slow = make_moments([0.0], [1.1], [12.1])
    row = replays.compare(real, slow, np.array([11]))
    assert row["tpot_mean_error_frac"] == pytest.approx(0.1)
    expected = ["tpot mean +10.0% (allowed 5%)", "e2e mean +10.0% (allowed 5%)"]
    assert replays.misses(row)[:2] == expected
    assert replays.misses(replays.compare(real, real, np.array([11]))) == []


@needs_shared
@pytest.mark.parametrize("name", replays.RUNS)
def test_recorded_moments_are_in_order(name):
    workload, real = replays.load_run(replays.RUNS[name], SHARED)
    arrival_s = workload.requests["arrival_s"]
    assert arrival_s.size == 300
    assert arrival_s[0] == 0.0
    # The quickest request is taken as seen at once; all clocks then agree on the order.
    assert (real.queued_s - arrival_s).min() == pytest.approx(0.0, abs=1e-6)
    assert (real.first_token_s > real.queued_s).all()
    assert (real.last_token_s > real.first_token_s).all()


@needs_shared
@pytest.mark.parametrize("name", replays.RUNS)
def test_a_replay_stays_near_the_run(name):
    """Far wider than the targets: a guard against a broken replay, not a claim."""
    run = replays.RUNS[name]
    workload, real = replays.load_run(run, SHARED)
    _, simulated = replays.simulate(run, workload)
    assert (simulated.queued_s >= workload.requests["arrival_s"]).all()
    assert (simulated.first_token_s > simulated.queued_s).all()
    row = replays.compare(real, simulated, workload.requests["output_tokens"])
    assert abs(row["tpot_mean_error_frac"]) < 0.15
    assert abs(row["e2e_mean_error_frac"]) < 0.15


@needs_shared
def test_scheduling_ahead_is_what_short_waits_show():
    """Without it the MoE run's median TTFT comes out a third too short."""
    run = replays.RUNS["qwen3-30b-a3b-dp2"]
    workload, _ = replays.load_run(run, SHARED)
    tokens = workload.requests["output_tokens"]
    medians = [
        np.median(
            replays.simulate(run, workload, is_async_scheduling=flag)[1].metrics(tokens)["ttft"]
        )
        for flag in (False, True)
    ]
    assert medians[1] > 1.2 * medians[0]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({}, None),
        ({"mode": "disagg"}, "disaggregated"),
        ({"precision": "fp4"}, "4-bit weights"),
        ({"attention_dp_size": "4"}, "attention data parallel"),
        ({"tp_size": "64", "moe_ep_size": "8"}, "attention data parallel"),
        ({"tp_size": "2"}, "attention data parallel"),
        ({"system": "gb200"}, "GPU gb200"),
        ({"model_path": "zhipuai/GLM-5"}, "model zhipuai/GLM-5"),
    ],
)
def test_each_point_left_out_has_a_reason(cells, reason):
    assert points.why_not(make_row(**cells)) == reason


@needs_shared
def test_every_row_is_a_point_or_left_out():
    kept, left_out = points.read_points(SHARED)
    with gzip.open(SHARED / points.POINTS_FILE, "rt") as file:
        num_rows = sum(1 for _ in csv.DictReader(file))
    assert len(kept) + sum(left_out.values()) == num_rows
    assert len(kept) > 500


def test_more_in_flight_take_longer():
    few, many = (points.simulate(make_point(concurrency=count)) for count in (2, 64))
    assert few[0] < many[0]
    assert few[1] < many[1]
    assert points.simulate(make_point()) == points.simulate(make_point())


def test_an_8_bit_cache_halves_what_decode_reads():
    """At one concurrency that 16 bits cannot hold, requests no longer wait for pages."""
    point = make_point(
        precision=points.Precision.FP8,
        tensor_parallel=1,
        concurrency=96,
        input_tokens=8000,
        output_tokens=300,
    )
    wide_ttft_s, _ = points.simulate(make_point(**{**fields_of(point), "backend": "sglang"}))
    narrow_ttft_s, _ = points.simulate(point)
    assert narrow_ttft_s < 0.8 * wide_ttft_s


def fields_of(point):
    return {name: getattr(point, name) for name in point.__slots__}


def test_summary_has_median_error_and_bias():
    rows = [(make_point(), -0.1, 0.2), (make_point(), 0.3, 0.2), (make_point(), 0.1, -0.4)]
    row = points.summary(rows)["gpu"]["H100-80G"]
    assert row["num_points"] == 3
    assert row["ttft_median_frac"] == pytest.approx(0.1)
    assert row["ttft_bias_frac"] == pytest.approx(0.1)
    assert row["tpot_median_frac"] == pytest.approx(0.2)
    assert row["tpot_bias_frac"] == pytest.approx(0.2)
