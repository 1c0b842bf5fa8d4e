"""Samples a probe at a steady period, sends what it read, and answers pings at once.

A sample runs in a thread; one that takes longer than the period makes the runner leave out the
next, which is counted, so samples never pile up. Sequence numbers count what was sent.

Does not know: what is read (the probes), or where frames go (`transport.py`).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from .. import subjects
from ..frames import FrameDecoder, FrameError, Hello, Ping, Pong, Sample, encode
from ..signals import Scope, signals_hash
from ..transport import Inbox, Transport
from .counters import CounterFold
from .probe import Probe, Readings, put
from .worker import Worker

_LOG = logging.getLogger(__name__)
_MAX_PINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who a probe is, and where it stands."""

    probe: str
    server: str
    rack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How often a runner acts, and by which clock."""

    period_s: float = 0.1
    """From one sample to the next."""
    hello_period_s: float = 5.0
    """From one hello to the next."""
    clock: Callable[[], float] = time.monotonic
    """The probe's clock: need not agree with any other, but must not jump."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        for name in ("period_s", "hello_period_s"):
            value = getattr(self, name)
            if not value > 0:
                msg = f"{name} must be above 0, got {value}"
                raise ValueError(msg)


def start_epoch() -> int:
    """Return the epoch of a probe that starts now: milliseconds of the wall clock."""
    return time.time_ns() // 1_000_000


class ProbeRunner:
    """Runs one probe; `run` until `stop`, within one event loop."""

    def __init__(
        self,
        probe: Probe,
        place: Place,
        transport: Transport,
        *,
        timing: Timing | None = None,
        epoch: int | None = None,
    ) -> None:
        self._probe = probe
        self._place = place
        self._transport = transport
        self._timing = timing if timing is not None else Timing()
        self._epoch = start_epoch() if epoch is None else epoch
        self._fold = CounterFold()
        self._worker: Worker[tuple[Readings, float, float]] = Worker(f"probe-{place.probe}")
        self._sampling: asyncio.Task[None] | None = None
        self._next_hello_at_s = -float("inf")
        self._last_fault = ""
        self._last_took_s = float("nan")
        self._is_stopped = False
        self.num_sent = 0
        """Samples sent."""
        self.num_skipped = 0
        """Samples left out since the one before was not done."""
        self.num_failed = 0
        """Samples that the probe could not take."""
        self.num_bad_pings = 0
        """Pings that could not be read or were another probe's."""

    async def run(self) -> None:
        """Sample until stopped; the probe and the transport stay open."""
        inbox = await self._transport.subscribe(subjects.ping(self._place.probe), _MAX_PINGS)
        answering = asyncio.create_task(self._answer_pings(inbox))
        try:
            await self._sample_steadily()
        finally:
            answering.cancel()
            if self._sampling is not None:
                self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering
            self._worker.close()

    def stop(self) -> None:
        """Make `run` return within a period."""
        self._is_stopped = True

    async def _sample_steadily(self) -> None:
        timing = self._timing
        due_at_s = timing.clock()
        while not self._is_stopped:
            await self._hello_if_due()
            self._start_sample()
            late_s = timing.clock() - due_at_s
            num_missed = int(late_s // timing.period_s) if late_s > 0 else 0
            self.num_skipped += num_missed  # the event loop itself was held up
            due_at_s += (1 + num_missed) * timing.period_s
            await timing.sleep(max(0.0, due_at_s - timing.clock()))

    async def _hello_if_due(self) -> None:
        now_s = self._timing.clock()
        if now_s < self._next_hello_at_s:
            return
        self._next_hello_at_s = now_s + self._timing.hello_period_s
        place, members = self._place, self._probe.members
        hello = Hello(
            probe=place.probe,
            server=place.server,
            rack=place.rack,
            epoch=self._epoch,
            signals_hash=signals_hash(),
            gpus=list(members.gpus),
            replicas=list(members.replicas),
        )
        await self._transport.publish(subjects.hello(place.rack), encode(hello))

    def _start_sample(self) -> None:
        if self._sampling is not None and not self._sampling.done():
            self.num_skipped += 1
            return
        self._sampling = asyncio.create_task(self._sample_and_send())

    async def _sample_and_send(self) -> None:
        try:
            readings, sampled_at_s, self._last_took_s = await self._worker.call(self._timed_sample)
        except Exception as error:
            self._count_failure(error)
            return
        self._last_fault = ""
        await self._send(readings, sampled_at_s)

    def _timed_sample(self) -> tuple[Readings, float, float]:
        """Sample; runs in the worker's thread."""
        clock = self._timing.clock
        started_at_s = clock()
        readings = self._probe.sample()
        took_s = clock() - started_at_s
        return readings, started_at_s + took_s / 2, took_s

    def _count_failure(self, error: Exception) -> None:
        self.num_failed += 1
        fault = f"{type(error).__name__}: {error}"
        if fault != self._last_fault:
            _LOG.warning("probe %r took no sample: %s", self._place.probe, fault)
        self._last_fault = fault

    async def _send(self, readings: Readings, sampled_at_s: float) -> None:
        put(readings, Scope.SERVER, "probe_sample_s", self._last_took_s)
        put(readings, Scope.SERVER, "probe_skipped_samples", self.num_skipped)
        sample = Sample(
            probe=self._place.probe,
            epoch=self._epoch,
            sequence=self.num_sent,
            sampled_at_s=sampled_at_s,
            sent_at_s=self._timing.clock(),
            blocks=as_blocks(self._fold(readings)),
        )
        self.num_sent += 1
        await self._transport.publish(subjects.sample(self._place.rack), encode(sample))

    async def _answer_pings(self, inbox: Inbox) -> None:
        decode = FrameDecoder[Ping](Ping)
        while not inbox.is_closed:
            await inbox.wait()
            received_at_s = self._timing.clock()
            for body in inbox.take():
                try:
                    ping = decode(body)
                except FrameError:
                    self.num_bad_pings += 1
                    continue
                await self._answer(ping, received_at_s)

    async def _answer(self, ping: Ping, received_at_s: float) -> None:
        if ping.probe != self._place.probe:
            self.num_bad_pings += 1
            return
        pong = Pong(
            probe=ping.probe,
            nonce=ping.nonce,
            ping_sent_at_s=ping.sent_at_s,
            received_at_s=received_at_s,
            sent_at_s=self._timing.clock(),
        )
        await self._transport.publish(subjects.pong(self._place.rack), encode(pong))


def as_blocks(readings: Readings) -> dict[str, bytes]:
    """Return readings as the blocks of a frame; a scope without rows has none."""
    with np.errstate(over="ignore"):  # too large for 32 bits: infinite, which the reader refuses
        return {
            str(scope): values.astype("<f4").tobytes()
            for scope, values in readings.items()
            if values.size
        }
