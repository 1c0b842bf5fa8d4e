"""Request traces: what is accepted, what is refused, and what the NumPy views say."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.traces.errors import TraceError, TrimtabError
from trimtab.traces.schema import REQUEST_SCHEMA, RequestTrace, TraceSource


def make_trace(**changes):
    columns = {
        "arrival_s": [0.0, 1.0, 2.5],
        "input_tokens": [130, 64, 1],
        "output_tokens": [1, 2, 3],
    }
    return RequestTrace.from_columns(**{**columns, **changes})


def test_defaults_of_the_columns_not_given():
    trace = make_trace()
    assert len(trace) == 3
    assert trace.block_tokens == 64
    assert trace.model_names == ("default",)
    assert trace.tenant_names == ("default",)
    np.testing.assert_array_equal(trace.model_index, [0, 0, 0])
    np.testing.assert_array_equal(trace.priority, [0, 0, 0])
    np.testing.assert_array_equal(trace.prefix_offsets, [0, 0, 0, 0])
    assert np.isnan(trace.ttft_slo_s).all()
    assert np.isnan(trace.tpot_slo_s).all()
    assert not trace.has_session.any()
    assert trace.adapter_names == ()
    np.testing.assert_array_equal(trace.adapter_index, [0, 0, 0])
    np.testing.assert_array_equal(trace.num_sequences, [1, 1, 1])


def test_every_column_comes_back_as_given():
    trace = make_trace(
        model=["big", "small", "big"],
        tenant=["a", "a", "b"],
        priority=[0, 1, 127],
        session=[7, None, 7],
        prefix=([0, 2, 3, 3], [1, 2**64 - 1, 1]),
        ttft_slo_s=[0.5, None, float("nan")],
        tpot_slo_s=0.1,
        source=TraceSource("made by hand"),
        adapter=["b", None, "a"],
        num_sequences=[1, 4, 2],
    )
    assert trace.table.schema == REQUEST_SCHEMA
    np.testing.assert_array_equal(trace.arrival_s, [0.0, 1.0, 2.5])
    np.testing.assert_array_equal(trace.input_tokens, [130, 64, 1])
    np.testing.assert_array_equal(trace.output_tokens, [1, 2, 3])
    assert [trace.model_names[i] for i in trace.model_index] == ["big", "small", "big"]
    assert [trace.tenant_names[i] for i in trace.tenant_index] == ["a", "a", "b"]
    np.testing.assert_array_equal(trace.priority, [0, 1, 127])
    np.testing.assert_array_equal(trace.prefix_offsets, [0, 2, 3, 3])
    np.testing.assert_array_equal(trace.prefix_block_hashes, np.array([1, 2**64 - 1, 1], np.uint64))
    np.testing.assert_array_equal(trace.ttft_slo_s, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(trace.tpot_slo_s, [0.1, 0.1, 0.1])
    assert trace.table["ttft_slo_s"].null_count == 2
    assert trace.adapter_names == ("a", "b")
    np.testing.assert_array_equal(trace.adapter_index, [2, 0, 1])
    np.testing.assert_array_equal(trace.num_sequences, [1, 4, 2])


def test_a_table_of_before_adapters_and_sequences_has_none():
    trace = make_trace(session=[1, 2, 1])
    older = RequestTrace(trace.table.drop_columns(["adapter", "num_sequences"]))
    assert older == trace


def test_one_adapter_and_one_count_stand_for_every_row():
    trace = make_trace(adapter="a", num_sequences=3)
    np.testing.assert_array_equal(trace.adapter_index, [1, 1, 1])
    np.testing.assert_array_equal(trace.num_sequences, [3, 3, 3])


def test_a_request_has_at_least_one_sequence():
    with pytest.raises(TraceError, match="row 1: num_sequences 0; expected at least 1"):
        make_trace(num_sequences=[1, 0, 1])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("arrival_s", "f8"),
        ("input_tokens", "i4"),
        ("output_tokens", "i4"),
        ("priority", "i1"),
        ("session_ids", "i8"),
        ("prefix_offsets", "i8"),
        ("prefix_block_hashes", "u8"),
        ("ttft_slo_s", "f8"),
        ("tpot_slo_s", "f8"),
        ("model_index", "i4"),
        ("tenant_index", "i4"),
    ],
)
def test_views_have_their_type_and_are_read_only(name, dtype):
    array = getattr(make_trace(), name)
    assert array.dtype == np.dtype(dtype)
    assert array.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0


def test_requests_without_a_session_get_ids_above_all_named_ones():
    trace = make_trace(session=[None, 7, None])
    np.testing.assert_array_equal(trace.session_ids, [8, 7, 9])
    np.testing.assert_array_equal(make_trace().session_ids, [0, 1, 2])


def test_span_and_mean_rate():
    trace = make_trace(arrival_s=[1.0, 2.0, 3.5])
    assert trace.span_s == 2.5
    assert trace.mean_rate_rps == pytest.approx(1.2)


def test_one_request_has_no_span_and_no_rate():
    trace = RequestTrace.from_columns(arrival_s=[3.0], input_tokens=[1], output_tokens=[1])
    assert trace.span_s == 0.0
    assert trace.mean_rate_rps == 0.0


def test_a_trace_of_no_requests():
    trace = RequestTrace.from_columns(arrival_s=[], input_tokens=[], output_tokens=[])
    assert len(trace) == 0
    assert trace.span_s == 0.0
    assert trace.model_names == ()
    np.testing.assert_array_equal(trace.prefix_offsets, [0])


def test_a_slice_of_the_table_keeps_rows_and_hashes_together():
    trace = make_trace(prefix=([0, 2, 3, 3], [10, 20, 30]), model=["a", "b", "b"])
    part = RequestTrace(trace.table.slice(1, 2), trace.block_tokens)
    np.testing.assert_array_equal(part.prefix_offsets, [0, 1, 1])
    np.testing.assert_array_equal(part.prefix_block_hashes, [30])
    assert part.model_names == ("b",)
    np.testing.assert_array_equal(part.model_index, [0, 0])


def test_chunks_with_different_dictionaries_are_unified():
    first, second = make_trace(model="a"), make_trace(arrival_s=[3.0, 4.0, 5.0], model="b")
    both = RequestTrace(pa.concat_tables([first.table, second.table]))
    assert both.model_names == ("a", "b")
    np.testing.assert_array_equal(both.model_index, [0, 0, 0, 1, 1, 1])


def test_equal_columns_make_equal_traces():
    assert make_trace() == make_trace()
    assert make_trace() != make_trace(tenant="other")
    assert make_trace() != make_trace(block_tokens=16)


def test_with_columns_replaces_one_and_checks_again():
    trace = make_trace()
    moved = trace.with_columns(arrival_s=pa.array([1.0, 1.0, 9.0]))
    np.testing.assert_array_equal(moved.arrival_s, [1.0, 1.0, 9.0])
    np.testing.assert_array_equal(moved.input_tokens, trace.input_tokens)
    with pytest.raises(TraceError, match=r"row 1: arrival_s 0\.5 is before"):
        trace.with_columns(arrival_s=pa.array([1.0, 0.5, 9.0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_s": [0.0, 4.0, 3.2]}, r"row 2: arrival_s 3\.2 is before .*\(4\.0\); sort"),
        ({"arrival_s": [0.0, float("nan"), 3.2]}, r"row 1: arrival_s nan; expected a finite"),
        ({"arrival_s": [-1.0, 0.0, 3.2]}, r"row 0: arrival_s -1\.0; .* at least 0"),
        ({"input_tokens": [0, 5, 5]}, "row 0: input_tokens 0; expected at least 1"),
        ({"output_tokens": [1, -5, 5]}, "row 1: output_tokens -5; expected at least 1"),
        ({"priority": [0, 0, -1]}, "row 2: priority -1; expected at least 0"),
        ({"session": [0, -3, None]}, r"row 1: session -3; expected a number from 0"),
        ({"session": [0, 2**62 + 1, None]}, r"row 1: session 4611686018427387905"),
        ({"ttft_slo_s": [0.5, 0.0, None]}, r"row 1: ttft_slo_s 0\.0; .* above 0, or null"),
        ({"tpot_slo_s": float("inf")}, "row 0: tpot_slo_s inf"),
        (
            {"prefix": ([0, 4, 4, 4], [1, 2, 3, 4])},
            "row 0: prefix_blocks has 4 blocks of 64 tokens; .* input_tokens 130",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_row(changes, message):
    with pytest.raises(TraceError, match=message):
        make_trace(**changes)


def test_a_partial_last_block_is_accepted():
    trace = make_trace(prefix=([0, 3, 3, 4], [1, 2, 3, 9]))
    np.testing.assert_array_equal(trace.prefix_offsets, [0, 3, 3, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_tokens": [1, 2]}, "input_tokens has 2 rows; expected 3"),
        ({"model": ["a"]}, "model has 1 rows; expected 3"),
        ({"input_tokens": [1, 2.5, 3]}, r"input_tokens 2\.5 in row 1 is not a whole number"),
        ({"output_tokens": [1, 2, 2**31]}, "output_tokens 2147483648 in row 2"),
        ({"priority": 300}, "priority 300 in row 0 .* from -128 to 127"),
        ({"prefix": ([0, 1, 1, 1], [1, 2])}, r"offsets run over \(0, 1\); expected 0 to 2"),
        ({"prefix": ([0, 2, 1, 2], [1, 2])}, "offsets fall after row 1"),
        ({"block_tokens": 0}, "block_tokens must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_a_value_error(changes, message):
    with pytest.raises(ValueError, match=message):
        make_trace(**changes)


def test_a_table_of_another_schema_names_the_columns():
    table = make_trace().table.drop_columns(["priority"])
    with pytest.raises(TraceError, match=r"lacks \['priority'\].*from_columns"):
        RequestTrace(table)
    renamed = make_trace().table.rename_columns(
        ["arrived" if name == "arrival_s" else name for name in REQUEST_SCHEMA.names]
    )
    with pytest.raises(TraceError, match=r"arrived: double.*lacks \['arrival_s'\]"):
        RequestTrace(renamed)


def test_a_null_in_a_column_that_needs_values():
    table = make_trace().table
    place = REQUEST_SCHEMA.get_field_index("input_tokens")
    table = table.set_column(place, REQUEST_SCHEMA.field(place), pa.array([1, None, 3], pa.int32()))
    with pytest.raises(TraceError, match="input_tokens has 1 nulls; expected none"):
        RequestTrace(table)


def test_errors_are_of_the_one_tree():
    assert issubclass(TraceError, TrimtabError)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.integers(1, 5000),
            st.integers(1, 5000),
            st.integers(0, 127),
            st.one_of(st.none(), st.integers(0, 50)),
            st.sampled_from(["a", "b", "ü"]),
        ),
        max_size=30,
    )
)
def test_any_sorted_columns_come_back(rows):
    rows = sorted(rows, key=lambda row: row[0])
    arrival_s, inputs, outputs, priority, session, tenant = (
        zip(*rows, strict=True) if rows else [[]] * 6
    )
    trace = RequestTrace.from_columns(
        arrival_s=list(arrival_s),
        input_tokens=list(inputs),
        output_tokens=list(outputs),
        priority=np.array(priority, np.int64),
        session=list(session),
        tenant=list(tenant),
    )
    np.testing.assert_array_equal(trace.arrival_s, list(arrival_s))
    np.testing.assert_array_equal(trace.input_tokens, list(inputs))
    assert [trace.tenant_names[i] for i in trace.tenant_index] == list(tenant)
    named = [s for s in session if s is not None]
    lone = [trace.session_ids[i] for i, s in enumerate(session) if s is None]
    assert [trace.session_ids[i] for i, s in enumerate(session) if s is not None] == named
    assert len(set(lone)) == len(lone)
    assert not set(lone) & set(named)
