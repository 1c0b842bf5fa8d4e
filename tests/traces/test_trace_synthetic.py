"""Synthetic load: determinism, the distributions asked for, conversations and shared prompts."""

import dataclasses
import itertools

import numpy as np
import pytest

from trimtab.traces.arrivals import ArrivalProcess, arrivals_within, first_arrivals
from trimtab.traces.statistics import statistics
from trimtab.traces.synthetic import SyntheticConfig, generate

STEADY = {"burst_log_rate_std": 0.0, "burst_count_cv": 0.0, "ramp_amplitude_frac": 0.0}


def make_process(**changes):
    parameters = {
        "rate_rps": 20.0,
        "log_rate_std": 0.0,
        "log_rate_memory_s": 30.0,
        "count_cv": 0.0,
        "ramp_amplitude_frac": 0.0,
        "ramp_period_s": 100.0,
    }
    return ArrivalProcess(**{**parameters, **changes})


def make_rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def make_turns(trace):
    """Rows of each session of more than one turn, in order."""
    order = np.argsort(trace.session_ids, kind="stable")
    bounds = np.flatnonzero(np.diff(trace.session_ids[order])) + 1
    return [rows for rows in np.split(order, bounds) if rows.size > 1]


# Arrivals


def test_a_steady_process_is_poisson():
    arrival_s = arrivals_within(make_process(), 2000.0, make_rng())
    counts = np.bincount(arrival_s.astype(int))
    assert counts.mean() == pytest.approx(20.0, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_a_gamma_factor_adds_its_variance():
    arrival_s = arrivals_within(make_process(count_cv=0.5), 4000.0, make_rng())
    counts = np.bincount(arrival_s.astype(int))
    # Variance of a gamma-mixed Poisson of mean m: m + (cv m)^2.
    assert counts.var() == pytest.approx(20.0 + (0.5 * 20.0) ** 2, rel=0.1)


def test_a_wandering_rate_keeps_its_mean_and_is_correlated():
    process = make_process(log_rate_std=0.5, log_rate_memory_s=10.0)
    counts = np.bincount(arrivals_within(process, 20_000.0, make_rng()).astype(int))
    assert counts.mean() == pytest.approx(20.0, rel=0.05)
    rate = counts - counts.mean()
    # Variance beyond Poisson is that of the log-normal; one memory on, 1/e of it is left.
    beyond = counts.var() - counts.mean()
    assert beyond == pytest.approx(20.0**2 * (np.exp(0.25) - 1.0), rel=0.2)
    assert (rate[10:] * rate[:-10]).mean() / beyond == pytest.approx(np.exp(-1.0), abs=0.1)


def test_the_ramp_is_a_sine():
    process = make_process(ramp_amplitude_frac=0.8)
    arrival_s = arrivals_within(process, 10_000.0, make_rng())
    up = ((arrival_s % 100.0) < 50.0).mean()
    # The rising half holds 1/2 + amplitude / pi of the requests.
    assert up == pytest.approx(0.5 + 0.8 / np.pi, abs=0.01)


def test_first_arrivals_are_as_many_as_asked_and_sorted():
    for num_requests in (1, 7, 5000):
        arrival_s = first_arrivals(make_process(log_rate_std=1.0), num_requests, make_rng())
        assert arrival_s.size == num_requests
        assert (np.diff(arrival_s) >= 0).all()
        assert arrival_s[0] >= 0.0


# Traces


def test_the_same_configuration_gives_the_same_trace():
    config = SyntheticConfig(num_requests=3000, seed=5)
    assert generate(config) == generate(config)


def test_another_seed_gives_another_trace_without_common_blocks():
    one, two = (generate(SyntheticConfig(num_requests=500, seed=seed)) for seed in (1, 2))
    assert one != two
    assert not set(one.prefix_block_hashes) & set(two.prefix_block_hashes)


def test_the_global_random_state_is_neither_read_nor_moved():
    config = SyntheticConfig(num_requests=200)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = generate(config)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    assert generate(config) == first


def test_changing_the_structure_leaves_the_arrivals():
    one = generate(SyntheticConfig(num_requests=500))
    two = generate(SyntheticConfig(num_requests=500, follow_up_frac=0.9, input_mean_tokens=50.0))
    np.testing.assert_array_equal(one.arrival_s, two.arrival_s)


def test_rate_and_length_of_a_span():
    trace = generate(SyntheticConfig(span_s=500.5, rate_rps=40.0, **STEADY))
    assert trace.arrival_s[-1] < 500.5
    assert len(trace) == pytest.approx(500.5 * 40.0, rel=0.03)


def test_lengths_have_the_means_asked_for():
    config = SyntheticConfig(num_requests=40_000, follow_up_frac=0.0, shared_prompt_frac=0.0)
    trace = generate(config)
    # The cap at 12,000 tokens takes a little off the mean of 1,000.
    assert trace.input_tokens.mean() == pytest.approx(1000.0, rel=0.03)
    assert trace.output_tokens.mean() == pytest.approx(200.0, rel=0.03)
    assert np.log(trace.input_tokens).std() == pytest.approx(0.9, abs=0.03)
    assert np.log(trace.output_tokens).std() == pytest.approx(0.8, abs=0.03)
    assert trace.input_tokens.max() <= 12_000
    assert statistics(trace).num_sessions == len(trace)


def test_a_follow_up_holds_the_earlier_prompt_and_answer():
    trace = generate(SyntheticConfig(num_requests=5000, rate_rps=20.0))
    conversations = make_turns(trace)
    assert len(conversations) > 500
    offsets, hashes = trace.prefix_offsets, trace.prefix_block_hashes
    for rows in conversations:
        for earlier, later in itertools.pairwise(rows):
            history = trace.input_tokens[earlier] + trace.output_tokens[earlier]
            assert history < trace.input_tokens[later] <= 12_000
            assert trace.arrival_s[later] - trace.arrival_s[earlier] >= 10.0
            before = hashes[offsets[earlier] : offsets[earlier + 1]]
            after = hashes[offsets[later] : offsets[later + 1]]
            np.testing.assert_array_equal(before, after[: before.size])
        assert np.unique(trace.priority[rows]).size == 1


def test_the_share_of_follow_ups_is_near_what_was_asked():
    trace = generate(SyntheticConfig(num_requests=40_000, rate_rps=50.0))
    is_follow_up = np.ones(len(trace), bool)
    is_follow_up[np.unique(trace.session_ids, return_index=True)[1]] = False
    # At the start no conversation is waiting for its next turn yet.
    assert is_follow_up[:500].sum() == 0
    assert is_follow_up[20_000:].mean() == pytest.approx(0.4, abs=0.02)


def test_every_prompt_has_all_its_full_blocks():
    trace = generate(SyntheticConfig(num_requests=1000, block_tokens=16))
    assert trace.block_tokens == 16
    np.testing.assert_array_equal(np.diff(trace.prefix_offsets), trace.input_tokens // 16)


def test_shared_prompts_are_as_many_and_as_long_as_asked():
    config = SyntheticConfig(
        num_requests=4000, follow_up_frac=0.0, shared_prompt_frac=1.0, num_shared_prompts=6
    )
    trace = generate(config)
    assert trace.input_tokens.min() > 2048
    first_blocks = trace.prefix_block_hashes[trace.prefix_offsets[:-1]]
    hashes, counts = np.unique(first_blocks, return_counts=True)
    assert hashes.size == 6
    expected = 1.0 / np.arange(1, 7) / (1.0 / np.arange(1, 7)).sum()
    np.testing.assert_allclose(np.sort(counts)[::-1] / 4000, expected, atol=0.03)
    last_shared = np.unique(trace.prefix_block_hashes[trace.prefix_offsets[:-1] + 31])
    assert last_shared.size == 6
    long_rows = np.flatnonzero(trace.input_tokens >= 2048 + 64)
    first_own = trace.prefix_block_hashes[trace.prefix_offsets[long_rows] + 32]
    assert np.unique(first_own).size == long_rows.size


def test_classes_have_their_share_and_their_limits():
    trace = generate(SyntheticConfig(num_requests=20_000, urgent_frac=0.3, follow_up_frac=0.0))
    is_urgent = trace.priority == 0
    assert is_urgent.mean() == pytest.approx(0.3, abs=0.02)
    assert set(trace.ttft_slo_s[is_urgent]) == {0.5}
    assert set(trace.tpot_slo_s[is_urgent]) == {0.05}
    assert set(trace.ttft_slo_s[~is_urgent]) == {2.0}
    assert set(trace.tpot_slo_s[~is_urgent]) == {0.1}


def test_the_source_names_the_seed():
    trace = generate(SyntheticConfig(num_requests=5, seed=42, model="m", tenant="t"))
    assert "42" in trace.source.name
    assert (trace.model_names, trace.tenant_names) == (("m",), ("t",))


def test_more_burst_is_more_dispersed():
    calm = statistics(generate(SyntheticConfig(span_s=2000.0, rate_rps=10.0, **STEADY)))
    wild = statistics(
        generate(SyntheticConfig(span_s=2000.0, rate_rps=10.0, burst_log_rate_std=0.6))
    )
    assert calm.dispersion_10s == pytest.approx(1.0, abs=0.3)
    assert wild.dispersion_10s > 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_requests": None}, "exactly one .* num_requests=None and span_s=None"),
        ({"span_s": 5.0}, r"exactly one .* num_requests=10 and span_s=5\.0"),
        ({"num_requests": 0}, "num_requests must be finite and above 0, got 0"),
        ({"rate_rps": -1.0}, r"rate_rps must be finite and above 0, got -1\.0"),
        ({"rate_rps": float("nan")}, "rate_rps must be finite and above 0, got nan"),
        ({"follow_up_frac": 1.5}, r"follow_up_frac must be in \[0, 1\], got 1\.5"),
        ({"burst_count_cv": -0.1}, r"burst_count_cv must be finite, at least 0, got -0\.1"),
        ({"seed": -1}, "seed must be finite, at least 0, got -1"),
        ({"shared_prompt_tokens": 12_000}, "shared_prompt_tokens 12000 must be below"),
        ({"block_tokens": 0}, "block_tokens must be finite and above 0, got 0"),
    ],
)
def test_a_bad_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**{"num_requests": 10, **changes})


def test_the_configuration_is_frozen_and_documented():
    config = SyntheticConfig(num_requests=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
