"""Conversations laid over traces without sessions."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.traces.bundled import load_bundled
from trimtab.traces.conversations import assign_sessions
from trimtab.traces.schema import RequestTrace
from trimtab.traces.statistics import statistics


def make_trace(*rows, **changes):
    """A trace of (arrival_s, input_tokens, output_tokens) rows."""
    arrival_s, inputs, outputs = zip(*rows, strict=True)
    return RequestTrace.from_columns(
        arrival_s=list(arrival_s), input_tokens=list(inputs), output_tokens=list(outputs), **changes
    )


def assign_all(trace, **changes):
    return assign_sessions(trace, **{"seed": 0, "follow_up_frac": 1.0, **changes})


def blocks_of(trace, row):
    return trace.prefix_block_hashes[trace.prefix_offsets[row] : trace.prefix_offsets[row + 1]]


def choose_slowly(rows, min_gap_s, max_gap_s, max_new_tokens):
    """The rule in plain words: what each request continues, or None."""
    continued, choices = set(), []
    for i, (arrival_s, inputs, _) in enumerate(rows):
        best = None
        for j in range(i):
            total = rows[j][1] + rows[j][2]
            gap_is_right = (
                rows[j][0] <= arrival_s - min_gap_s and arrival_s - rows[j][0] <= max_gap_s
            )
            fits = 1 <= inputs - total <= max_new_tokens
            if j not in continued and gap_is_right and fits:
                best_total = -1 if best is None else rows[best][1] + rows[best][2]
                best = j if total >= best_total else best
        choices.append(best)
        continued.add(best)
    return choices


def test_the_best_fitting_earlier_request_is_continued():
    trace = assign_all(
        make_trace((0, 100, 20), (1, 300, 20), (2, 500, 300), (20, 400, 1), (21, 180, 1))
    )
    # 400 continues 300 + 20, 180 continues 100 + 20; 500 + 300 fits into nothing.
    np.testing.assert_array_equal(trace.session_ids, [0, 1, 2, 1, 0])
    assert trace.has_session.all()


def test_a_follow_up_shares_the_blocks_of_prompt_and_answer():
    trace = assign_all(make_trace((0, 100, 60), (20, 400, 30), (40, 500, 1)))
    np.testing.assert_array_equal(trace.session_ids, [0, 0, 0])
    np.testing.assert_array_equal(np.diff(trace.prefix_offsets), [1, 6, 7])
    first, second, third = (blocks_of(trace, row) for row in range(3))
    np.testing.assert_array_equal(second[:1], first)
    np.testing.assert_array_equal(third[:6], second)


def test_separate_conversations_share_no_block():
    trace = assign_all(make_trace((0, 640, 1), (1, 640, 1)))
    assert np.unique(trace.session_ids).size == 2
    assert not set(blocks_of(trace, 0)) & set(blocks_of(trace, 1))


def test_an_earlier_request_is_continued_once():
    trace = assign_all(make_trace((0, 100, 10), (20, 200, 200), (21, 210, 200)))
    np.testing.assert_array_equal(trace.session_ids, [0, 0, 1])


@pytest.mark.parametrize(
    ("gap_s", "is_linked"), [(4.9, False), (5.0, True), (600.0, True), (600.1, False)]
)
def test_the_gap_is_neither_too_short_nor_too_long(gap_s, is_linked):
    trace = assign_all(make_trace((0, 100, 10), (gap_s, 200, 1)))
    assert (trace.session_ids[0] == trace.session_ids[1]) == is_linked


@pytest.mark.parametrize(
    ("inputs", "is_linked"), [(110, False), (111, True), (1110, True), (1111, False)]
)
def test_the_new_message_has_one_token_to_the_limit(inputs, is_linked):
    trace = assign_all(make_trace((0, 100, 10), (20, inputs, 1)))
    assert (trace.session_ids[0] == trace.session_ids[1]) == is_linked


def test_a_stale_best_fit_gives_way_to_a_fresh_one():
    trace = assign_all(make_trace((0, 300, 10), (1, 300, 10), (500, 250, 10), (700, 320, 1)))
    np.testing.assert_array_equal(trace.session_ids, [0, 1, 2, 2])


@pytest.mark.parametrize("label", ["model", "tenant"])
def test_conversations_stay_with_their_model_and_tenant(label):
    rows = ((0, 100, 10), (1, 90, 10), (20, 200, 1))
    trace = assign_all(make_trace(*rows, **{label: ["a", "b", "b"]}))
    np.testing.assert_array_equal(trace.session_ids, [0, 1, 1])


def test_arrivals_and_lengths_stay_as_recorded():
    trace = make_trace((0, 100, 10), (20, 200, 1), tenant="t", ttft_slo_s=0.5)
    assigned = assign_all(trace)
    for name in ("arrival_s", "input_tokens", "output_tokens", "ttft_slo_s", "tenant_index"):
        np.testing.assert_array_equal(getattr(assigned, name), getattr(trace, name))
    assert assigned.source == trace.source


def test_no_follow_ups_when_none_are_wanted():
    trace = assign_all(make_trace((0, 100, 10), (20, 200, 1)), follow_up_frac=0.0)
    assert np.unique(trace.session_ids).size == 2


def test_a_trace_of_no_requests():
    empty = RequestTrace.from_columns(arrival_s=[], input_tokens=[], output_tokens=[])
    assert len(assign_all(empty)) == 0


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(1, 10)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 12),
)
def test_the_fast_rule_is_the_slow_rule(rows, max_new_tokens):
    rows = sorted(rows, key=lambda row: row[0])
    trace = assign_all(
        make_trace(*rows, block_tokens=4),
        min_gap_s=3.0,
        max_gap_s=15.0,
        max_new_tokens=max_new_tokens,
    )
    roots = []
    for i, choice in enumerate(choose_slowly(rows, 3.0, 15.0, max_new_tokens)):
        roots.append(i if choice is None else roots[choice])
    expected = np.unique(roots, return_inverse=True)[1]
    np.testing.assert_array_equal(trace.session_ids, expected)


def test_a_recorded_trace_gets_conversations_quickly_and_repeatably():
    recorded = load_bundled("azure-conv")
    first = assign_sessions(recorded, seed=3)
    start_s = time.process_time()
    assert assign_sessions(recorded, seed=3) == first
    assert time.process_time() - start_s < 1.0
    assert assign_sessions(recorded, seed=4) != first
    figures = statistics(first)
    assert 0.2 < 1.0 - figures.num_sessions / figures.rows <= 0.4
    assert 0.1 < figures.prefix_hit_frac < 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"follow_up_frac": 1.1}, r"follow_up_frac must be in \[0, 1\], got 1\.1"),
        ({"max_gap_s": 5.0}, r"min_gap_s 5\.0 must be from 0 to below max_gap_s 5\.0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        assign_all(make_trace((0, 100, 10)), **arguments)


def test_a_trace_with_sessions_is_left_alone():
    with pytest.raises(ValueError, match="has 1 requests with a session and 0 prefix blocks"):
        assign_all(make_trace((0, 100, 10), session=[4]))
    with pytest.raises(ValueError, match="has 0 requests with a session and 1 prefix blocks"):
        assign_all(make_trace((0, 100, 10), prefix=([0, 1], [4])))
