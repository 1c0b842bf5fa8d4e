"""Alarms by webhook: POST of JSON to an address, without ever holding up who raises them.

    {"alarms": [{"name": ..., "severity": ..., "place": ..., "sentence": ..., "at_s": ...,
                 "is_resolved": ..., "value": ..., "threshold": ...}]}

Alarms wait in a bounded queue; when it is full the oldest are dropped. A delivery that fails is
tried again after a wait that doubles; one that is refused for what it is (a 4xx but 408 and 429) is
not. What is dropped is counted by reason and logged.

Does not know: what raises an alarm, or who listens at the address.
"""

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

import aiohttp

from ...agents.shield.alarm import Alarm

# Client errors that say "later" and not "never" (RFC 9110, 15.5.9; RFC 6585, 4).
_TRY_LATER = (408, 429)

_log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


class Drop(StrEnum):
    """Why an alarm was not delivered."""

    QUEUE_FULL = "queue_full"
    REFUSED = "refused"  # the address answered that it will never take it
    FAILED = "failed"  # every attempt failed
    CLOSED = "closed"  # still waiting when the webhook was closed


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """Where alarms go, and how hard to try.

    Raises:
        ValueError: the address is not one of the web, or a number is out of range.
    """

    url: str
    """Address that takes the POST."""
    max_waiting: int = 1000
    """Alarms that may wait; of more, the oldest are dropped."""
    max_batch: int = 100
    """Most alarms of one POST."""
    num_attempts: int = 5
    """Times that a POST is tried."""
    first_wait_s: float = 0.5
    """Wait after the first failure; it doubles."""
    max_wait_s: float = 30.0
    """Longest wait between attempts."""
    timeout_s: float = 5.0
    """For an attempt, answer included."""
    drain_s: float = 2.0
    """How long closing waits for what is still to be delivered."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            msg = f"url must begin with http:// or https://, got {self.url!r}"
            raise ValueError(msg)
        if min(self.max_waiting, self.max_batch, self.num_attempts) < 1:
            numbers = (self.max_waiting, self.max_batch, self.num_attempts)
            msg = f"max_waiting, max_batch and num_attempts must be at least 1, got {numbers}"
            raise ValueError(msg)
        if not (self.first_wait_s >= 0 and self.max_wait_s >= 0 and self.drain_s >= 0):
            msg = f"waits must be at least 0 s, got {self}"
            raise ValueError(msg)
        if not self.timeout_s > 0:
            msg = f"timeout_s must be above 0, got {self.timeout_s}"
            raise ValueError(msg)


class WebhookSink:
    """Delivers alarms in the background of an event loop; used from that loop's thread.

    `async with WebhookSink(config) as sink:` starts and ends it.
    """

    def __init__(self, config: WebhookConfig, sleep: Sleep = asyncio.sleep) -> None:
        self.config = config
        self.dropped: Counter[Drop] = Counter()
        """Alarms that were not delivered, by reason."""
        self.num_delivered = 0
        """Alarms that the address has taken."""
        self._sleep = sleep
        self._waiting: deque[Alarm] = deque()
        self._batch: list[Alarm] = []
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "WebhookSink":
        """Start to deliver."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait a little for what is still to be delivered, then stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), self.config.drain_s)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop(Drop.CLOSED, len(self._batch) + len(self._waiting))
        self._batch.clear()
        self._waiting.clear()

    def send(self, alarms: Sequence[Alarm]) -> None:
        """Take alarms for delivery; never waits."""
        if not alarms:
            return
        self._waiting.extend(alarms)
        excess = len(self._waiting) - self.config.max_waiting
        for _ in range(excess):
            self._waiting.popleft()
        self._drop(Drop.QUEUE_FULL, max(excess, 0))
        self._is_idle.clear()
        self._has_work.set()

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.config.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await self._has_work.wait()
                while self._waiting:
                    size = min(self.config.max_batch, len(self._waiting))
                    self._batch = [self._waiting.popleft() for _ in range(size)]
                    await self._deliver(session)
                    self._batch = []
                self._has_work.clear()
                self._is_idle.set()

    async def _deliver(self, session: aiohttp.ClientSession) -> None:
        """Try to deliver the batch, or drop it."""
        body = {"alarms": [alarm.as_dict() for alarm in self._batch]}
        wait_s, fault = self.config.first_wait_s, ""
        for attempt in range(self.config.num_attempts):
            if attempt:
                await self._sleep(wait_s)
                wait_s = min(2 * wait_s, self.config.max_wait_s)
            try:
                async with session.post(self.config.url, json=body) as answer:
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            if status < 300:
                self.num_delivered += len(self._batch)
                return
            fault = f"answer {status}"
            if 300 <= status < 500 and status not in _TRY_LATER:
                self._drop(Drop.REFUSED, len(self._batch), fault)
                return
        self._drop(Drop.FAILED, len(self._batch), fault)

    def _drop(self, reason: Drop, number: int, fault: str = "") -> None:
        if number:
            self.dropped[reason] += number
            detail = f" ({fault})" if fault else ""
            _log.warning(
                "%d alarms not delivered to %s: %s%s", number, self.config.url, reason, detail
            )
