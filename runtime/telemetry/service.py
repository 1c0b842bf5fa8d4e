"""Aggregators and hub at work: frames from a transport in, ticks at a steady period, frames out.

Does not know: what happens to a frame (`aggregator.py`, `hub.py`), or what carries it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from . import subjects
from .aggregator import Aggregator
from .frames import FrameError, encode
from .hub import Hub
from .rack_frames import KeyRequest, decode_key_request
from .reasons import Reason
from .transport import Inbox, Transport

PERIOD_S: Final = 0.1
_MAX_FRAMES_A_PROBE: Final = 32
_MAX_FRAMES_A_RACK: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a service acts, and by which clock."""

    period_s: float = PERIOD_S
    clock: Callable[[], float] = time.monotonic
    """Hub time: aggregators and hub must share it."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        if not self.period_s > 0:
            msg = f"period_s must be above 0, got {self.period_s}"
            raise ValueError(msg)


class AggregatorService:
    """Runs the aggregator of one rack over a transport, within one event loop."""

    def __init__(
        self, aggregator: Aggregator, transport: Transport, *, pace: Pace | None = None
    ) -> None:
        self._aggregator = aggregator
        self._transport = transport
        self._pace = pace if pace is not None else Pace()
        self._is_stopped = False

    def stop(self) -> None:
        """Make `run` return within a period."""
        self._is_stopped = True

    async def run(self) -> None:
        """Take frames as they come and tick until stopped; the transport stays open."""
        rack, room = self._aggregator.layout.rack, len(self._aggregator.layout.servers)
        subscribe = self._transport.subscribe
        inboxes = [
            await subscribe(subject, _MAX_FRAMES_A_PROBE * room)
            for subject in (subjects.hello(rack), subjects.pong(rack), subjects.sample(rack))
        ]
        requests = await subscribe(subjects.key_request(rack), _MAX_FRAMES_A_RACK)
        taking = [asyncio.create_task(self._take(inbox)) for inbox in inboxes]
        try:
            await every_period(self._pace, lambda: self._is_stopped, lambda: self._tick(requests))
        finally:
            await _cancel(taking)
            for inbox in inboxes:
                self._aggregator.counts.add(Reason.DROPPED, number=inbox.num_dropped)

    async def _take(self, inbox: Inbox) -> None:
        while not inbox.is_closed:
            await inbox.wait()
            received_at_s = self._pace.clock()  # answers of clocks must not wait for the tick
            for body in inbox.take():
                self._aggregator.ingest(body, received_at_s)

    async def _tick(self, requests: Inbox) -> None:
        for body in requests.take():
            try:
                request = decode_key_request(body)
            except FrameError as error:
                self._aggregator.counts.add(error.reason)
            else:
                if request.rack == self._aggregator.layout.rack:
                    self._aggregator.request_key()
        for body in self._aggregator.tick(self._pace.clock()):
            await self._transport.publish(subjects.rack(self._aggregator.layout.rack), body)
        for probe, body in self._aggregator.pings(self._pace.clock()):
            await self._transport.publish(subjects.ping(probe), body)


class HubService:
    """Runs the hub over a transport, within one event loop."""

    def __init__(self, hub: Hub, transport: Transport, *, pace: Pace | None = None) -> None:
        self._hub = hub
        self._transport = transport
        self._pace = pace if pace is not None else Pace()
        self._is_stopped = False

    def stop(self) -> None:
        """Make `run` return within a period."""
        self._is_stopped = True

    async def run(self) -> None:
        """Take frames as they come and ask for keys that are missing, until stopped."""
        room = _MAX_FRAMES_A_RACK * len(self._hub.layout.racks)
        inbox = await self._transport.subscribe(subjects.rack(subjects.ANY), room)
        taking = [asyncio.create_task(self._take(inbox))]
        try:
            await every_period(self._pace, lambda: self._is_stopped, self._ask_for_keys)
        finally:
            await _cancel(taking)
            self._hub.counts.add(Reason.DROPPED, number=inbox.num_dropped)

    async def _take(self, inbox: Inbox) -> None:
        while not inbox.is_closed:
            await inbox.wait()
            received_at_s = self._pace.clock()
            for body in inbox.take():
                self._hub.ingest(body, received_at_s)

    async def _ask_for_keys(self) -> None:
        for rack in self._hub.wanted_keys(self._pace.clock()):
            body = encode(KeyRequest(rack=rack))
            await self._transport.publish(subjects.key_request(rack), body)


async def every_period(
    pace: Pace, is_stopped: Callable[[], bool], act: Callable[[], Awaitable[None]]
) -> None:
    """Act once a period until stopped; periods that were missed are left out."""
    due_at_s = pace.clock()
    while not is_stopped():
        await act()
        due_at_s += pace.period_s
        due_at_s = max(due_at_s, pace.clock())
        await pace.sleep(max(0.0, due_at_s - pace.clock()))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
