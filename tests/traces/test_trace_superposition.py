"""Workloads of any rate from one recorded trace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.traces.schema import RequestTrace
from trimtab.traces.statistics import statistics
from trimtab.traces.superposition import superpose


def make_trace(num_rows=100, rate_rps=2.0, **changes):
    columns = {
        "arrival_s": np.arange(num_rows) / rate_rps,
        "input_tokens": np.arange(num_rows) + 64,
        "output_tokens": np.ones(num_rows),
        "session": np.arange(num_rows) // 2,
        "prefix": (np.arange(num_rows + 1), np.arange(num_rows) // 2),
    }
    return RequestTrace.from_columns(**{**columns, **changes})


@settings(max_examples=40)
@given(
    rate_rps=st.floats(0.1, 50.0),
    span_s=st.floats(10.0, 200.0),
    seed=st.integers(0, 1000),
)
def test_the_rate_is_exact_and_the_times_are_inside(rate_rps, span_s, seed):
    trace = superpose(make_trace(), rate_rps=rate_rps, span_s=span_s, seed=seed)
    assert len(trace) == round(rate_rps * span_s)
    assert trace.arrival_s[0] >= 0.0
    assert trace.arrival_s[-1] < span_s


def test_the_same_seed_gives_the_same_workload():
    trace = make_trace()
    one, again = (superpose(trace, rate_rps=7.0, span_s=30.0, seed=4) for _ in range(2))
    assert one == again
    assert one != superpose(trace, rate_rps=7.0, span_s=30.0, seed=5)


def test_one_window_keeps_gaps_and_order():
    """A whole copy of a regular trace is regular again, at its own pace."""
    trace = superpose(make_trace(), rate_rps=2.0, span_s=40.0, seed=1)
    np.testing.assert_allclose(np.diff(trace.arrival_s), 0.5)
    rows = trace.input_tokens - 64
    assert set(np.diff(rows)) <= {1, -99}


def test_a_thinned_window_is_part_of_one_copy():
    trace = superpose(make_trace(), rate_rps=0.5, span_s=40.0, seed=1)
    steps = np.diff(trace.arrival_s) / 0.5
    np.testing.assert_allclose(steps, np.rint(steps))
    assert np.unique(trace.input_tokens).size == len(trace) == 20


def test_copies_share_neither_sessions_nor_blocks():
    trace = superpose(make_trace(), rate_rps=10.0, span_s=40.0, seed=2)
    # In the recorded trace a session has two requests, which share one block.
    sessions, counts = np.unique(trace.session_ids, return_counts=True)
    assert counts.max() == 2
    blocks, block_counts = np.unique(trace.prefix_block_hashes, return_counts=True)
    assert block_counts.max() == 2
    assert blocks.size == sessions.size
    for session in sessions[counts == 2]:
        pair = np.flatnonzero(trace.session_ids == session)
        hashes = trace.prefix_block_hashes[trace.prefix_offsets[pair]]
        assert hashes[0] == hashes[1]
        assert abs(np.diff(trace.arrival_s[pair])[0]) == pytest.approx(0.5)


def test_a_workload_longer_than_the_trace_goes_round_as_new_copies():
    trace = superpose(make_trace(), rate_rps=2.0, span_s=175.0, seed=3)
    assert len(trace) == 350
    np.testing.assert_allclose(np.diff(trace.arrival_s), 0.5)
    assert np.unique(trace.session_ids, return_counts=True)[1].max() == 2
    is_start = trace.input_tokens == 64
    assert np.unique(trace.session_ids[is_start]).size == is_start.sum() >= 3


def test_requests_without_sessions_stay_without():
    trace = superpose(make_trace(session=None), rate_rps=5.0, span_s=20.0, seed=0)
    assert not trace.has_session.any()
    assert np.unique(trace.session_ids).size == 100


def test_bursts_keep_their_time_scale():
    """On for 10 s, off for 40 s: one copy has whole idle bins, many copies are smoother."""
    on_s = np.concatenate([50.0 * k + np.arange(100) / 10.0 for k in range(20)])
    bursty = RequestTrace.from_columns(
        arrival_s=on_s, input_tokens=np.ones(2000), output_tokens=np.ones(2000)
    )
    one = superpose(bursty, rate_rps=2.0, span_s=900.0, seed=1)
    many = superpose(bursty, rate_rps=200.0, span_s=900.0, seed=1)
    counts = np.bincount((one.arrival_s / 10.0).astype(int), minlength=90)
    assert (counts == 0).mean() > 0.4
    assert statistics(one).peak_10s_rps == pytest.approx(10.0, rel=0.15)
    relative = statistics(many).dispersion_10s / 200.0
    assert relative < statistics(one).dispersion_10s / 2.0 / 5.0


def test_a_trace_that_starts_late_is_taken_from_its_first_request():
    late = make_trace(arrival_s=1000.0 + np.arange(100) / 2.0)
    one, two = (superpose(t, rate_rps=3.0, span_s=20.0, seed=6) for t in (late, make_trace()))
    np.testing.assert_allclose(one.arrival_s, two.arrival_s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate_rps": 0.0}, r"rate_rps must be finite and above 0, got 0\.0"),
        ({"span_s": float("inf")}, "span_s must be finite and above 0, got inf"),
        ({"rate_rps": 0.01}, r"rate_rps 0\.01 over span_s 10\.0 asks for 0 requests"),
    ],
)
def test_arguments_that_ask_for_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        superpose(make_trace(), **{"rate_rps": 1.0, "span_s": 10.0, "seed": 0, **arguments})


def test_a_trace_of_one_moment_cannot_be_repeated():
    trace = make_trace(num_rows=2, arrival_s=[3.0, 3.0])
    with pytest.raises(ValueError, match=r"spans 0\.0 s with 2 requests"):
        superpose(trace, rate_rps=1.0, span_s=10.0, seed=0)
