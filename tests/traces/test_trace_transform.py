"""Slices, parts, unions and new terms of traces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.traces.errors import TraceError
from trimtab.traces.schema import RequestTrace, TraceSource
from trimtab.traces.transform import (
    cut_lengths,
    merge,
    separate_copies,
    slice_time,
    split,
    with_default_limits,
    with_service,
)


def make_trace(arrival_s=(0.0, 1.0, 2.5, 4.0), **changes):
    num_rows = len(arrival_s)
    columns = {
        "arrival_s": np.array(arrival_s),
        "input_tokens": np.arange(64, 64 + num_rows),
        "output_tokens": np.arange(1, num_rows + 1),
        "session": [0, None, 0, 3][:num_rows],
        "prefix": (np.arange(num_rows + 1), np.array([5, 6, 5, 7][:num_rows])),
        "source": TraceSource("made", "CC0-1.0"),
    }
    return RequestTrace.from_columns(**{**columns, **changes})


# slice_time and split


def test_a_slice_starts_anew_and_leaves_out_its_end():
    part = slice_time(make_trace(), 1.0, 4.0)
    np.testing.assert_array_equal(part.arrival_s, [0.0, 1.5])
    np.testing.assert_array_equal(part.input_tokens, [65, 66])
    np.testing.assert_array_equal(part.prefix_block_hashes, [6, 5])
    np.testing.assert_array_equal(part.has_session, [False, True])
    assert part.source == make_trace().source


def test_a_slice_may_be_empty_or_reach_past_the_ends():
    trace = make_trace()
    assert len(slice_time(trace, 10.0, 20.0)) == 0
    assert slice_time(trace, 0.0, 1e9) == trace
    np.testing.assert_array_equal(slice_time(trace, -1.0, 1.5).arrival_s, [1.0, 2.0])


def test_a_slice_needs_a_length():
    with pytest.raises(ValueError, match=r"start_s 3\.0 must be below end_s 3\.0"):
        slice_time(make_trace(), 3.0, 3.0)


def test_a_split_divides_time_not_rows():
    early, late = split(make_trace(), [0.75, 0.25])
    np.testing.assert_array_equal(early.arrival_s, [0.0, 1.0, 2.5])
    np.testing.assert_array_equal(late.arrival_s, [1.0])


@pytest.mark.parametrize("fracs", [[], [0.5, 0.4], [1.2, -0.2], [1.0, 0.0]])
def test_a_split_needs_shares_of_the_whole(fracs):
    with pytest.raises(ValueError, match="fracs must be above 0 and sum to 1, got"):
        split(make_trace(), fracs)


@settings(max_examples=30)
@given(
    gaps_s=st.lists(st.floats(0, 10), min_size=1, max_size=20),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_split_loses_nothing(gaps_s, weights):
    num_rows = len(gaps_s)
    trace = RequestTrace.from_columns(
        arrival_s=np.cumsum(gaps_s),
        input_tokens=np.arange(1, num_rows + 1),
        output_tokens=np.ones(num_rows),
    )
    parts = split(trace, [weight / sum(weights) for weight in weights])
    assert len(parts) == len(weights)
    rows = np.concatenate([part.input_tokens for part in parts])
    np.testing.assert_array_equal(rows, trace.input_tokens)
    for part in parts:
        assert (part.arrival_s >= 0.0).all()


# merge


def test_a_merge_is_in_order_and_stable():
    one = make_trace(tenant="one", model="m1", arrival_s=(0.0, 1.0))
    two = make_trace(tenant="two", model="m2", arrival_s=(0.0, 0.5, 1.0))
    both = merge([one, two])
    np.testing.assert_array_equal(both.arrival_s, [0.0, 0.0, 0.5, 1.0, 1.0])
    tenants = [both.tenant_names[i] for i in both.tenant_index]
    assert tenants == ["one", "two", "two", "one", "two"]
    assert set(both.model_names) == {"m1", "m2"}


def test_a_merge_separates_sessions_and_prefixes():
    both = merge([make_trace(), make_trace()])
    # Rows alternate between the two traces; in each, rows 0 and 2 share session and block.
    ids, hashes = both.session_ids, both.prefix_block_hashes
    for values in (ids, hashes):
        assert values[0] == values[4]
        assert values[1] == values[5]
        assert values[0] != values[1]
        assert np.unique(values).size == 2 * 3
    np.testing.assert_array_equal(both.has_session, np.repeat([True, False, True, True], 2))


def test_a_merge_of_parts_of_one_trace_keeps_their_ids():
    trace = make_trace()
    early = RequestTrace(trace.table.slice(0, 2), 64, trace.source)
    late = RequestTrace(trace.table.slice(2, 2), 64, trace.source)
    assert merge([late, early], are_ids_shared=True) == trace


def test_a_merge_names_every_source_once():
    other = make_trace(source=TraceSource("other", "CC BY 4.0", "someone"))
    assert merge([make_trace(), make_trace()]).source == make_trace().source
    source = merge([make_trace(), other, make_trace()]).source
    assert source == TraceSource("made + other", "CC0-1.0; CC BY 4.0", "someone", "")


def test_what_cannot_be_merged():
    with pytest.raises(ValueError, match="at least 1 trace, got 0"):
        merge([])
    other = make_trace(block_tokens=16, source=TraceSource("fine"))
    with pytest.raises(TraceError, match="'fine' has block_tokens 16; expected 64 as trace 'made'"):
        merge([make_trace(), other])


def test_separate_copies_ranks_sessions_densely():
    trace = make_trace(session=[2**62, 4, 2**62, None])
    apart = separate_copies(trace, np.array([0, 0, 1, 1]))
    assert apart.session_ids[:3].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(apart.has_session, [True, True, True, False])
    assert apart.prefix_block_hashes[0] != apart.prefix_block_hashes[2]


# with_service


def test_new_terms_replace_only_what_is_given():
    trace = make_trace(priority=[0, 1, 2, 3], ttft_slo_s=1.0)
    changed = with_service(trace, tenant="gold", tpot_slo_s=0.2)
    assert changed.tenant_names == ("gold",)
    np.testing.assert_array_equal(changed.priority, [0, 1, 2, 3])
    np.testing.assert_array_equal(changed.ttft_slo_s, [1.0] * 4)
    np.testing.assert_array_equal(changed.tpot_slo_s, [0.2] * 4)
    assert with_service(trace) == trace


def test_every_term_can_be_set():
    changed = with_service(
        make_trace(), priority=3, tenant="t", model="m", ttft_slo_s=0.5, tpot_slo_s=0.05
    )
    assert (changed.model_names, changed.tenant_names) == (("m",), ("t",))
    assert set(changed.priority) == {3}
    assert set(changed.ttft_slo_s) == {0.5}
    assert set(changed.tpot_slo_s) == {0.05}


@pytest.mark.parametrize(
    ("terms", "message"),
    [({"priority": -1}, "priority -1"), ({"ttft_slo_s": 0.0}, r"ttft_slo_s 0\.0")],
)
def test_bad_terms_are_refused(terms, message):
    with pytest.raises(TraceError, match=message):
        with_service(make_trace(), **terms)


def test_cut_lengths_bounds_prompts_answers_and_prefixes() -> None:
    trace = RequestTrace.from_columns(
        arrival_s=[0.0, 1.0, 2.0],
        input_tokens=[100, 5, 40],
        output_tokens=[9, 30, 1],
        block_tokens=16,
        prefix=([0, 6, 6, 8], np.arange(8, dtype=np.uint64)),
    )
    cut = cut_lengths(trace, max_input_tokens=40, max_output_tokens=10)
    assert cut.input_tokens.tolist() == [40, 5, 40]
    assert cut.output_tokens.tolist() == [9, 10, 1]
    # Two full blocks fit 40 tokens; what was shorter keeps all it had.
    assert cut.prefix_offsets.tolist() == [0, 2, 2, 4]
    assert cut.prefix_block_hashes.tolist() == [0, 1, 6, 7]
    with pytest.raises(ValueError, match="max_output_tokens must be at least 1, got 0"):
        cut_lengths(trace, max_input_tokens=1, max_output_tokens=0)


def test_default_limits_are_those_of_the_priority_and_keep_a_requests_own() -> None:
    trace = RequestTrace.from_columns(
        arrival_s=[0.0, 1.0, 2.0],
        input_tokens=[10] * 3,
        output_tokens=[1] * 3,
        priority=[0, 1, 5],
        ttft_slo_s=[None, 7.0, None],
    )
    limited = with_default_limits(trace, (0.5, 2.0), (0.05, 0.1))
    assert limited.ttft_slo_s.tolist() == [0.5, 7.0, 2.0]
    assert limited.tpot_slo_s.tolist() == [0.05, 0.1, 0.1]
