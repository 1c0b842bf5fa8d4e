"""W3C trace context: what is read, and what is passed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_requests import make_facts

from trimtab.runtime.tracing.trace_context import TraceContext, parse_trace_parent

# The example of the recommendation, section 3.2.4.
EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_callers_context_is_kept_and_our_span_is_below_it() -> None:
    context = TraceContext(0.0)
    ids = context.ids(make_facts(1, 5.0, trace_parent=EXAMPLE))
    assert ids.trace_id == 0x4BF92F3577B34DA6A3CE929D0E0E4736
    assert ids.parent_id == 0x00F067AA0BA902B7
    assert ids.is_sampled
    version, trace, span, flags = ids.header.decode().split("-")
    assert (version, trace, flags) == ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01")
    assert int(span, 16) == ids.span_id != ids.parent_id


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        (EXAMPLE, True),
        (EXAMPLE[:-2] + "00", True),
        ("01" + EXAMPLE[2:] + "-more", True),  # a later version may say more
        (EXAMPLE + "-more", False),
        ("ff" + EXAMPLE[2:], False),
        (EXAMPLE.upper(), False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", False),
        (EXAMPLE + "\n", False),
        ("", False),
    ],
)
def test_only_valid_headers_are_followed(text: str, is_valid: bool) -> None:
    assert (parse_trace_parent(text) is not None) is is_valid
    ids = TraceContext(1.0).ids(make_facts(1, 5.0, trace_parent=text))
    assert (ids.parent_id != 0) is is_valid


def test_a_caller_decides_whether_its_trace_is_sampled() -> None:
    facts = make_facts(1, 5.0, trace_parent=EXAMPLE[:-2] + "00")
    ids = TraceContext(1.0).ids(facts)
    assert not ids.is_sampled
    assert ids.header.endswith(b"-00")


@given(st.text(max_size=60))
def test_what_is_passed_on_can_always_be_read(text: str) -> None:
    ids = TraceContext().ids(make_facts(1, 5.0, trace_parent=text))
    assert parse_trace_parent(ids.header.decode()) == (ids.trace_id, ids.span_id, ids.is_sampled)


def test_the_same_request_has_the_same_ids_and_another_has_others() -> None:
    context = TraceContext()
    assert context.ids(make_facts(1, 5.0)) == context.ids(make_facts(1, 5.0))
    ids = {context.ids(make_facts(1, float(at))).span_id for at in range(100)}
    assert len(ids) == 100  # a client may send one request id twice


def test_a_share_of_the_requests_is_sampled() -> None:
    context = TraceContext(0.25, salt=b"known")
    num = sum(context.ids(make_facts(each, 0.0)).is_sampled for each in range(4000))
    assert 900 < num < 1100  # 1000 +- 3.6 standard deviations of 27
    with pytest.raises(ValueError, match=r"sample_frac must be from 0 to 1, got 1\.5"):
        TraceContext(1.5)
