"""Batches that are missing, come late, come twice, or come from an engine that began anew."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_payloads import CLEARED, payload_of, removed

from trimtab.runtime.engines.kv_events import AllCleared, BlocksRemoved, KvEvent
from trimtab.runtime.engines.kv_stream import Batch, KvStream


class Heard:
    """Notes the number in each event; a clear is None."""

    def __init__(self) -> None:
        self.said: list[int | None] = []

    def apply(self, replica: int, event: KvEvent) -> None:
        assert replica == 3
        if isinstance(event, AllCleared):
            self.clear(replica)
        else:
            assert isinstance(event, BlocksRemoved)
            number = event.block_hashes[0]
            assert isinstance(number, int)
            self.said.append(number)

    def clear(self, replica: int) -> None:
        self.said.append(None)


def batch(number: int, life: int = 0) -> Batch:
    return number, payload_of(removed([number]), at_s=float(life))


def make_stream(kept: list[Batch] | None = None) -> tuple[KvStream, Heard, list[int]]:
    heard, asked = Heard(), list[int]()

    def replay(first: int) -> list[Batch]:
        asked.append(first)
        return [b for b in kept or () if b[0] >= first or first > 2**63]

    return KvStream(3, heard, replay if kept is not None else None), heard, asked


def test_batches_in_order_are_applied_in_order() -> None:
    stream, heard, asked = make_stream([])
    for number in range(5):
        stream.take(*batch(number))
    assert heard.said == [0, 1, 2, 3, 4]
    assert asked == []
    assert (stream.counts.batches, stream.counts.events, stream.counts.gaps) == (5, 5, 0)


def test_a_gap_is_filled_by_what_the_engine_still_has() -> None:
    stream, heard, asked = make_stream([batch(n) for n in range(10)])
    for number in (0, 1, 5, 6):
        stream.take(*batch(number))
    assert heard.said == [0, 1, 2, 3, 4, 5, 6]
    assert asked == [2]
    assert (stream.counts.gaps, stream.counts.replayed, stream.counts.lost) == (1, 3, 0)


def test_a_gap_that_nobody_fills_clears_the_index() -> None:
    stream, heard, _ = make_stream(None)
    stream.take(*batch(0))
    stream.take(*batch(3))
    assert heard.said == [0, None, 3]
    assert (stream.counts.gaps, stream.counts.lost) == (1, 2)


def test_what_fills_only_a_part_clears_the_index_first() -> None:
    stream, heard, _ = make_stream([batch(4), batch(5)])  # the engine forgot 1 to 3
    stream.take(*batch(0))
    stream.take(*batch(6))
    assert heard.said == [0, None, 4, 5, 6]
    assert stream.counts.lost == 3


def test_who_listens_late_asks_for_the_beginning_and_loses_nothing_if_it_is_gone() -> None:
    stream, heard, asked = make_stream([batch(n) for n in range(8, 12)])
    stream.take(*batch(12))
    assert asked == [0]
    assert heard.said == [8, 9, 10, 11, 12]
    assert (stream.counts.gaps, stream.counts.lost) == (0, 0)


def test_a_number_that_goes_back_is_another_engine() -> None:
    stream, heard, asked = make_stream([batch(n, life=1) for n in range(3)])
    for number in range(5):
        stream.take(*batch(number))
    stream.take(*batch(2, life=1))
    assert heard.said == [0, 1, 2, 3, 4, None, 0, 1, 2]
    assert asked == [0]
    assert stream.counts.restarts == 1


def test_a_batch_that_comes_twice_counts_once() -> None:
    stream, heard, _ = make_stream([])
    for number in (0, 1, 1, 0, 2):
        stream.take(*batch(number))
    assert heard.said == [0, 1, 2]
    assert (stream.counts.duplicates, stream.counts.restarts) == (2, 0)


def test_a_batch_that_was_given_up_and_comes_late_is_left_out() -> None:
    stream, heard, _ = make_stream(None)
    for number in (0, 2, 1, 3):  # 1 and 2 change places
        stream.take(*batch(number))
    assert heard.said == [0, None, 2, 3]
    assert (stream.counts.late, stream.counts.restarts, stream.counts.gaps) == (1, 0, 1)


def test_after_a_broken_connection_the_beginning_is_asked_for() -> None:
    stream, heard, asked = make_stream([batch(n, life=1) for n in range(9)])
    stream.disconnected()  # before the first event there is nothing to forget
    stream.take(*batch(0))
    stream.disconnected()
    stream.take(*batch(7, life=1))  # a number that goes on, but another engine
    assert heard.said == [0, None, *range(8)]
    assert asked == [0]
    assert (stream.counts.disconnects, stream.counts.gaps) == (2, 0)


def test_who_begins_to_listen_asks_for_what_was_and_does_not_hear_it_twice() -> None:
    stream, heard, asked = make_stream([batch(n) for n in range(4)])
    stream.catch_up()
    stream.take(*batch(3))  # it was on its way while we asked
    stream.take(*batch(4))
    stream.catch_up()  # nothing that is new
    assert heard.said == [0, 1, 2, 3, 4]
    assert asked == [0, 5]
    assert (stream.counts.catch_ups, stream.counts.duplicates, stream.counts.gaps) == (2, 1, 0)


def test_what_was_lost_without_another_batch_is_found_by_asking() -> None:
    kept = [batch(n) for n in range(3)]
    stream, heard, _ = make_stream(kept)
    stream.take(*batch(0))
    stream.catch_up()
    assert heard.said == [0, 1, 2]
    del kept[:]
    kept.append(batch(5))
    stream.catch_up()
    assert heard.said == [0, 1, 2, None, 5]
    assert stream.counts.lost == 2
    silent, heard, _ = make_stream(None)
    silent.catch_up()
    assert heard.said == []


def test_numbers_that_no_engine_would_send_cost_nothing() -> None:
    stream, heard, _ = make_stream([batch(0), batch(1), batch(2**64 - 2)])
    stream.take(*batch(1))
    stream.take(*batch(2**64 - 1))
    stream.catch_up()  # what is given again was not asked for
    assert heard.said == [0, 1, None, 2**64 - 2, 2**64 - 1]
    assert stream.counts.lost == 2**64 - 4


def test_who_was_reset_holds_nothing() -> None:
    stream, heard, _ = make_stream([])
    stream.take(*batch(0))
    stream.was_reset()
    stream.take(*batch(1))
    assert heard.said == [0, None, 1]
    assert stream.counts.resets == 1


@pytest.mark.parametrize(
    ("payload", "is_cleared"),
    [(b"junk", True), (payload_of(17), True), (payload_of(["BlockStored", 3]), False)],
)
def test_a_broken_batch_clears_the_index_if_a_removal_may_be_in_it(
    payload: bytes, is_cleared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stream, heard, _ = make_stream([])
    stream.take(*batch(0))
    for number in (1, 2):
        stream.take(number, payload)
    stream.take(*batch(3))
    assert heard.said == ([0, None, None, 3] if is_cleared else [0, 3])
    assert stream.counts.broken == 2
    assert len(caplog.messages) == 1
    assert "KV events of replica 3, batch 1:" in caplog.text


def test_an_engines_own_clear_is_taken() -> None:
    stream, heard, _ = make_stream([])
    stream.take(0, payload_of(CLEARED))
    assert heard.said == [None]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=40), st.booleans())
def test_in_whatever_order_they_come_none_is_believed_out_of_order(
    order: list[int], has_replay: bool
) -> None:
    stream, heard, _ = make_stream([batch(n) for n in range(12)] if has_replay else None)
    for number in order:
        stream.take(*batch(number))
    since_clear: list[int] = []
    for said in heard.said:
        since_clear = [] if said is None else [*since_clear, said]
        if since_clear:  # without a clear between them, batches follow each other
            first = since_clear[0]
            assert since_clear == list(range(first, first + len(since_clear)))
    if has_replay:
        assert sorted(n for n in heard.said if n is not None) == list(range(max(order) + 1))
