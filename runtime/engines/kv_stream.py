"""Keeps one engine's KV events in order: gaps, restarts, and batches that come twice.

Batches are numbered from 0 since the engine's start. What is missing is asked for, and so is at the
beginning what was said before; if it does not
come, the engine's index is cleared, as blocks may have left unseen. A number that goes back means
that the engine was restarted, unless the same batch came before or is a late one.

Does not know: sockets (`kv_subscriber.py`), or what the events do (`block_index.py`).
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from .kv_events import KvEvent, decode_batch
from .kv_runs import joined

_LOG = logging.getLogger(__name__)

Batch = tuple[int, bytes]
"""Sequence number and payload."""
Replay = Callable[[int], Iterable[Batch]]
"""Returns the batches that an engine still has, from a number on."""

# So many batches are recognised when they come again.
_MAX_RECENT: Final = 1024
# So many ranges of batches are remembered as lost.
_MAX_LOST: Final = 64


class EventSink(Protocol):
    """Where events go."""

    def apply(self, replica: int, event: KvEvent) -> None:
        """Take one event."""
        ...

    def clear(self, replica: int) -> None:
        """Believe nothing of what came so far."""
        ...


@dataclass(slots=True)
class StreamCounts:
    """What came from one engine, and what went wrong."""

    batches: int = 0
    events: int = 0
    gaps: int = 0
    replayed: int = 0
    """Batches that filled gaps."""
    lost: int = 0
    """Batches that nobody could give again."""
    restarts: int = 0
    duplicates: int = 0
    late: int = 0
    """Batches that came after they were given up."""
    broken: int = 0
    """Payloads and events that are not what they should be."""
    unknown: int = 0
    """Events of a type that this code does not know."""
    disconnects: int = 0
    catch_ups: int = 0
    """Times that the engine was asked for all that we had not heard."""
    resets: int = 0
    """Times that somebody else said that the engine's KV is gone."""


class KvStream:
    """The events of one engine, from wherever they were first heard."""

    def __init__(self, replica: int, sink: EventSink, replay: Replay | None = None) -> None:
        self._replica = replica
        self._sink = sink
        self._replay = replay
        self._expected: int | None = None
        self._recent: OrderedDict[int, int] = OrderedDict()
        self._lost: list[tuple[int, int]] = []
        self.counts = StreamCounts()

    def take(self, sequence: int, payload: bytes) -> None:
        """Take one batch as it came; never raises for what is in it."""
        if self._expected is not None and sequence < self._expected:
            if self._came_before(sequence, payload):
                return
            self.counts.restarts += 1
            self._begin_anew()
        expected = 0 if self._expected is None else self._expected
        if sequence > expected:
            again = {} if self._replay is None else dict(self._replay(expected))
            self._fill(expected, sequence, again)
        self._apply(sequence, payload)

    def catch_up(self) -> None:
        """Ask for what was said before we listened, or in the moment between."""
        if self._replay is None:
            return
        first = 0 if self._expected is None else self._expected
        found = {number: payload for number, payload in self._replay(first) if number >= first}
        self.counts.catch_ups += 1
        if found:
            last = max(found)
            self._fill(first, last, found)
            self._apply(last, found[last])

    def disconnected(self) -> None:
        """The connection broke: the engine may have been restarted, or gone on without us."""
        self.counts.disconnects += 1
        if self._expected is not None:
            self._begin_anew()

    def was_reset(self) -> None:
        """The engine sleeps, or was told to forget: its KV is gone, before it says so if ever."""
        self.counts.resets += 1
        self._sink.clear(self._replica)

    def _begin_anew(self) -> None:
        self._expected = None
        self._recent.clear()
        self._lost.clear()
        self._sink.clear(self._replica)

    def _came_before(self, sequence: int, payload: bytes) -> bool:
        if sequence in self._recent:
            is_same = self._recent[sequence] == hash(payload)
            self.counts.duplicates += is_same
            return is_same
        is_late = any(first <= sequence < end for first, end in self._lost)
        self.counts.late += is_late
        return is_late

    def _fill(self, first: int, end: int, again: Mapping[int, bytes]) -> None:
        """Apply the batches from `first` to before `end`; if some are missing, clear the index."""
        is_start = self._expected is None  # nothing was believed yet, so nothing is lost
        self.counts.gaps += end > first and not is_start
        found = {number: again[number] for number in sorted(again) if first <= number < end}
        missing = end - first - len(found)
        if missing and not is_start:
            self.counts.lost += missing
            self._lost = [*self._lost, (first, end)][-_MAX_LOST:]
            self._sink.clear(self._replica)
        for number, payload in found.items():
            self.counts.replayed += 1
            self._apply(number, payload)

    def _apply(self, sequence: int, payload: bytes) -> None:
        self._expected = sequence + 1
        self._recent[sequence] = hash(payload)
        while len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        self.counts.batches += 1
        try:
            batch = decode_batch(payload)
        except ValueError as error:
            self._log_broken(sequence, str(error))
            self._sink.clear(self._replica)
            return
        for event in joined(batch.events):
            self._sink.apply(self._replica, event)
        self.counts.events += len(batch.events)
        self.counts.unknown += batch.num_unknown
        if batch.num_broken_stores or batch.num_broken:
            num_broken = batch.num_broken_stores + batch.num_broken
            self._log_broken(sequence, f"{num_broken} broken events", num_broken)
        if batch.num_broken:  # a removal may be among them
            self._sink.clear(self._replica)

    def _log_broken(self, sequence: int, what: str, num_broken: int = 1) -> None:
        if not self.counts.broken:
            _LOG.warning("KV events of replica %d, batch %d: %s", self._replica, sequence, what)
        self.counts.broken += num_broken
