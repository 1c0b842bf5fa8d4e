"""KV events over real sockets on loopback: from a publisher that loses, repeats and restarts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq
from kv_payloads import CLEARED, payload_of, removed
from kv_publisher import Publisher

from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.kv_events import AllCleared, BlocksRemoved, KvEvent
from trimtab.runtime.engines.kv_subscriber import (
    KvSource,
    KvSubscriber,
    kv_sources,
)
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica

FAULT = 666  # raises where events go


class Heard:
    """Notes (replica, number) of each event, None for a clear; others wait for what they expect."""

    def __init__(self) -> None:
        self.said: list[tuple[int, object]] = []
        self._changed = threading.Condition()

    def apply(self, replica: int, event: KvEvent) -> None:
        if isinstance(event, AllCleared):
            self.clear(replica)
            return
        assert isinstance(event, BlocksRemoved)
        if FAULT in event.block_hashes:
            raise KeyError(FAULT)
        for block_hash in event.block_hashes:
            self._note(replica, block_hash)

    def clear(self, replica: int) -> None:
        self._note(replica, None)

    def _note(self, replica: int, what: object) -> None:
        with self._changed:
            self.said.append((replica, what))
            self._changed.notify_all()

    def wait_for(self, *expected: object, replica: int = 0) -> None:
        def said() -> tuple[object, ...]:
            return tuple(what for number, what in self.said if number == replica)

        with self._changed:
            arrived = self._changed.wait_for(lambda: len(said()) >= len(expected), timeout=60)
            assert said() == expected, f"arrived {arrived}"


@contextmanager
def listening(
    *sources: Callable[[int], KvSource] | Publisher,
) -> Iterator[tuple[KvSubscriber, Heard]]:
    heard = Heard()
    made = [
        KvSource(replica=number, events=source.events, replay=source.replay)
        if isinstance(source, Publisher)
        else source(number)
        for number, source in enumerate(sources)
    ]
    subscriber = KvSubscriber(made, heard)
    subscriber.start()
    try:
        for number, source in enumerate(sources):
            if isinstance(source, Publisher):
                source.wait_for_subscriber()
                while not subscriber.counts[number].catch_ups:
                    time.sleep(0.001)
        yield subscriber, heard
    finally:
        subscriber.close()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


def test_events_of_two_engines_reach_the_index(publisher: Publisher) -> None:
    other = Publisher(sends_topic=False)
    try:
        with listening(publisher, other) as (subscriber, heard):
            publisher.publish(removed([1]), removed([2]))
            other.publish(removed([3]))
            publisher.publish(CLEARED)
            heard.wait_for(1, 2, None)
            heard.wait_for(3, replica=1)
            assert [c.batches for c in subscriber.counts.values()] == [2, 1]
    finally:
        other.close()


@pytest.mark.parametrize("sends_topic", [True, False], ids=["vllm", "sglang"])
def test_what_was_lost_is_replayed(sends_topic: bool) -> None:
    publisher = Publisher(sends_topic=sends_topic)
    try:
        with listening(publisher) as (subscriber, heard):
            for number in range(6):
                publisher.publish(removed([number]), is_lost=number in (2, 3))
            heard.wait_for(0, 1, 2, 3, 4, 5)
            assert publisher.num_replays == 2  # at the beginning, and then
            assert subscriber.counts[0].replayed == 2
            assert subscriber.counts[0].lost == 0
    finally:
        publisher.close()


def test_who_comes_late_hears_what_was_before(publisher: Publisher) -> None:
    for number in range(3):
        publisher.publish(removed([number]))
    with listening(publisher) as (_, heard):
        heard.wait_for(0, 1, 2)  # before anything new is said
        publisher.publish(removed([3]))
        heard.wait_for(0, 1, 2, 3)


def test_what_nobody_has_any_more_clears_the_replica_and_is_counted() -> None:
    publisher = Publisher(max_kept=1)
    try:
        with listening(publisher) as (subscriber, heard):
            publisher.publish(removed([0]))
            publisher.publish(removed([1]), is_lost=True)
            publisher.publish(removed([2]))
            heard.wait_for(0, None, 2)
            assert subscriber.counts[0].lost == 1
    finally:
        publisher.close()


def test_an_engine_that_restarts_is_cleared(publisher: Publisher) -> None:
    with listening(publisher) as (subscriber, heard):
        for number in range(3):
            publisher.publish(removed([number]))
        heard.wait_for(0, 1, 2)
        publisher.restart()
        publisher.publish(removed([70]))
        heard.wait_for(0, 1, 2, None, 70)
        assert subscriber.counts[0].restarts == 1


def test_reordered_and_repeated_batches_do_no_harm(publisher: Publisher) -> None:
    with listening(publisher) as (subscriber, heard):
        first = publisher.publish(removed([0]))
        second = publisher.publish(removed([1]), is_lost=True)
        publisher.publish(removed([2]))
        publisher.send(*second)
        publisher.send(*first)
        publisher.publish(removed([3]))
        heard.wait_for(0, 1, 2, 3)
        assert subscriber.counts[0].duplicates == 2


def test_a_connection_that_breaks_clears_and_the_next_life_is_heard_from_its_beginning() -> None:
    publisher = Publisher()
    with listening(publisher) as (subscriber, heard):
        publisher.publish(removed([0]))
        heard.wait_for(0)
        publisher.close()
        heard.wait_for(0, None)
        again = Publisher(address=publisher.events, replay=publisher.replay)
        try:
            again.wait_for_subscriber()
            again.sequence = 1  # it counts on where the other ended
            again.publish(removed([71]))
            heard.wait_for(0, None, 71)
            assert subscriber.counts[0].disconnects == 1
            assert subscriber.counts[0].restarts == 0
        finally:
            again.close()


def test_an_engine_that_connects_to_us_is_heard() -> None:
    with listening(lambda n: KvSource(replica=n, events="bind:tcp://127.0.0.1:*")) as (
        subscriber,
        heard,
    ):
        context = zmq.Context()
        sender = context.socket(zmq.XPUB)
        sender.connect(subscriber.addresses[0])
        assert sender.poll(5000)
        sender.send_multipart([b"kv", bytes(8), payload_of(removed([5]))])
        heard.wait_for(5)
        context.destroy(linger=0)


@pytest.mark.parametrize("events", ["nowhere", "bind:tcp://nobody:0", "tcp://127.0.0.1"])
def test_an_address_that_is_none_is_said(events: str) -> None:
    with pytest.raises(EngineError, match=r"of replica 4 at '.*': .*expected tcp://HOST:PORT"):
        KvSubscriber([KvSource(replica=4, events=events)], Heard())


def test_a_fault_of_ours_is_logged_and_nothing_more_is_believed(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(publisher) as (_, heard):
        publisher.publish(removed([0]), CLEARED, removed([FAULT]))
        heard.wait_for(0, None, None)
    assert "KV events are heard no more" in caplog.text


def test_strange_messages_are_counted_and_nothing_stops(publisher: Publisher) -> None:
    with listening(publisher) as (subscriber, heard):
        for frames in ([b"x"], [b"t", b"short", b""], [b"t", bytes(8), b"", b""]):
            publisher.events_socket.send_multipart(frames)
        publisher.publish(removed([0]))
        publisher.send(1, b"\xc1 junk")
        publisher.sequence = 2
        publisher.publish(removed([2]))
        heard.wait_for(0, None, 2)
        assert subscriber.num_strange == 3
        assert subscriber.counts[0].broken == 1


def test_the_sleep_gauge_clears_once_when_it_turns(publisher: Publisher) -> None:
    with listening(publisher) as (subscriber, heard):
        publisher.publish(removed([0]))
        heard.wait_for(0)
        for is_awake in (True, None, False, False, None, True, False):
            subscriber.see_awake(0, is_awake)
        subscriber.see_awake(9, False)  # a replica without events
        heard.wait_for(0, None, None)
        subscriber.see_reset(0)
        heard.wait_for(0, None, None, None)
        assert subscriber.counts[0].resets == 3


def test_sources_are_those_replicas_that_publish() -> None:
    silent, loud = (
        LiveReplica(
            name=name, engine=EngineKind.VLLM, host="h", port=1, model="m", kv_events=events,
            kv_replay="tcp://h:3",
        )
        for name, events in (("a", None), ("b", "tcp://h:2"))
    )  # fmt: skip
    (source,) = kv_sources([silent, loud])
    assert (source.replica, source.address, source.replay) == (1, "tcp://h:2", "tcp://h:3")
    assert not source.is_bound
