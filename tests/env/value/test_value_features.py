"""What the value network sees: known answers of the closed form, and what must not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.cluster import ReplicaSpec
from trimtab.env.hardware import GPUS
from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.lookahead.lengths import NUM_LENGTH_BINS, fill_residuals, prior_lengths
from trimtab.env.lookahead.mirror import MIRROR_DTYPE, ROW_DTYPE
from trimtab.env.model_profile import MODELS
from trimtab.env.replica_latency import replica_latency
from trimtab.env.value.features import (
    FEATURE_NAMES,
    NUM_FEATURES,
    SUMS_DTYPE,
    chance,
    fill_features,
)

KNOBS = Knobs.of(slo_margin=1.0, value_queue=1.0)
REPLICA = ReplicaSpec(name="r", server="s", model="llama-3-8b", gpu_indices=(0,))
LATENCY = replica_latency(GPUS["A100-80G"], MODELS["llama-3-8b"], REPLICA)
RESIDUALS = np.zeros((2, NUM_LENGTH_BINS))
for row in RESIDUALS:
    fill_residuals(row, prior_lengths(200.0))


def request(**values):
    """A row of a mirror: by default one that came at 10 s, waits, and has loose limits."""
    plain = {
        "priority": 0, "input_tokens": 500, "uncached_tokens": 500, "num_sequences": 1,
        "weight": 2.0, "ttft_slo_s": 5.0, "tpot_slo_s": 0.5, "arrival_s": 10.0, "placed_s": 10.0,
        "first_token_s": np.nan, "generated_tokens": 0,
    }  # fmt: skip
    return plain | values


def running(banked_tokens=20, **values):
    """One that decodes since 8 s, its last token at 10 s; so many tokens ahead of its limit."""
    tpot_s = values.get("tpot_slo_s", 0.05)
    num_tokens = int(2.0 / tpot_s) + banked_tokens + 1
    plain = {"arrival_s": 7.5, "placed_s": 7.5, "first_token_s": 8.0, "tpot_slo_s": tpot_s}
    return request(**plain, generated_tokens=num_tokens) | values


def features(others, new, *, now_s=10.0, slow_factor=1.0, kv_tokens=100_000, usage_frac=0.0):
    """The features of a replica by name; `others` are the rows before the one in hand."""
    mirror, rows = np.zeros(1, MIRROR_DTYPE), np.zeros(len(others) + 1, ROW_DTYPE)
    settings = {"max_num_seqs": 256, "max_batch_tokens": 2048, "min_chunk_tokens": 16}
    settings |= {"kv_tokens": kv_tokens, "num_rows": len(others)}
    settings |= {"progress_at_s": now_s, "stepped_at_s": now_s}
    for name, value in settings.items():
        mirror[name] = value
    for i, one in enumerate([*others, new]):
        for name, value in one.items():
            rows[i][name] = value
    out = np.zeros(NUM_FEATURES, np.float32)
    records = [a.view(np.recarray)[0] for a in (mirror, np.zeros(1, SUMS_DTYPE), LATENCY)]
    linear_s = np.full(4096, np.nan)
    knobs = KNOBS.record().view(np.recarray)[0]
    latency = (records[2], linear_s, slow_factor, 1.0, usage_frac)
    rows = rows.view(np.recarray)
    fill_features(out, records[0], rows, RESIDUALS, latency, now_s, knobs, records[1])
    return dict(zip(FEATURE_NAMES, out.tolist(), strict=True))


@pytest.mark.parametrize("banked_s", [-0.5, -0.05, 0.0, 0.05, 0.5])
@pytest.mark.parametrize("gain_s", [-0.01, 0.0, 0.01])
def test_the_chance_is_that_of_exponential_lengths(banked_s, gain_s):
    tokens = np.random.default_rng(0).exponential(50.0, size=200_000)
    simulated = float((banked_s + tokens * gain_s >= 0.0).mean())
    assert chance(banked_s, gain_s, 50.0) == pytest.approx(simulated, abs=0.005)


def test_an_empty_replica_meets_loose_limits_and_none_that_it_cannot():
    assert features([], request())["own_met"] == 1.0
    prefill_s = float(iteration_time_s(LATENCY.view(np.recarray)[0], 500.0, 0.0, 0.0, 0.0))
    assert features([], request(ttft_slo_s=0.5 * prefill_s))["own_met"] == 0.0
    # More than one iteration without prefill takes.
    assert features([], request(tpot_slo_s=0.001))["own_met"] == 0.0


def test_a_request_costs_those_that_have_nothing_saved():
    new = request(input_tokens=4000, uncached_tokens=4000)
    endangered = features([running(banked_tokens=1, tpot_slo_s=0.012)], new)
    at_ease = features([running(banked_tokens=20, tpot_slo_s=0.1)], new)
    assert endangered["run_loss"] < -0.5
    assert at_ease["run_loss"] == 0.0
    lost = features([running(banked_tokens=1, tpot_slo_s=0.012, arrival_s=0.0)], new)
    assert lost["run_loss"] == 0.0  # its first token was late: it has nothing to lose


def test_urgent_requests_delay_others_and_not_the_other_way_round():
    chunk_s = float(iteration_time_s(LATENCY.view(np.recarray)[0], 2048.0, 1024.0, 0.0, 0.0))
    # Prefilled within a third of the limit, if nothing comes before.
    batch = request(priority=1, uncached_tokens=2048, input_tokens=2048, ttft_slo_s=3.0 * chunk_s)
    urgent = request(uncached_tokens=8192, input_tokens=8192)
    assert features([batch], urgent)["wait_loss"] < -0.4
    late = batch | {"uncached_tokens": 8192, "input_tokens": 8192}
    loss = features([request(ttft_slo_s=3.0 * chunk_s)], late)["wait_loss"]
    assert loss == pytest.approx(0.0, abs=0.01)


def test_a_full_cache_makes_it_wait():
    others = [running(input_tokens=9000, uncached_tokens=9000, tpot_slo_s=0.2) for _ in range(10)]
    roomy, full = (features(others, request(), kv_tokens=tokens) for tokens in (200_000, 90_500))
    assert roomy["room_share"] == 0.0
    assert full["room_share"] > 0.0
    assert full["ttft_share"] > roomy["ttft_share"]
    seen_on_page = features(others, request(), kv_tokens=200_000, usage_frac=1.0)
    assert seen_on_page["room_share"] > 0.0


@given(seed=st.integers(0, 1000))
def test_the_order_of_those_that_run_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    others = [
        running(banked_tokens=int(rng.integers(0, 30)), input_tokens=int(rng.integers(100, 4000)))
        for _ in range(8)
    ]
    shuffled = [others[i] for i in rng.permutation(8)]
    one, other = features(others, request()), features(shuffled, request())
    for name, value in one.items():
        assert other[name] == pytest.approx(value, abs=1e-4), name


def test_features_are_free_of_units_of_time():
    """All twice as slow, with limits twice as long, looks the same."""
    others = [running(banked_tokens=3), request(uncached_tokens=900)]
    plain = features(others, request(ttft_slo_s=0.4))
    slower = []
    for one in (*others, request(ttft_slo_s=0.4)):
        times = ("ttft_slo_s", "tpot_slo_s", "arrival_s", "placed_s", "first_token_s")
        slower.append(one | {name: 2.0 * one[name] for name in times})
    twice = features(slower[:-1], slower[-1], now_s=20.0, slow_factor=2.0)
    for name, value in plain.items():
        if name != "log_slow_factor":
            assert twice[name] == pytest.approx(value, abs=1e-4), name
