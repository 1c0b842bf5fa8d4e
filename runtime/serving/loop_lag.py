"""Calls at a steady pace on an event loop, and how late they come.

Does not know: what is called.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)

LATE_S = 0.02
"""A call that comes later than this is counted: two ticks of the response controller."""


@dataclass(slots=True)
class Lag:
    """How late calls came."""

    num_calls: int = 0
    num_late: int = 0
    """Calls later than `LATE_S`."""
    longest_s: float = 0.0
    num_failures: int = 0
    """Calls that raised; the pace goes on."""
    span_s: float = 0.0
    """Time that the calls took, in sum."""


class Pacer:
    """Calls a function every period. Periods that were missed are left out."""

    def __init__(
        self, name: str, period_s: float, act: Callable[[float], object],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.name, self.lag = name, Lag()
        self._period_s, self._act, self._clock = period_s, act, clock
        self._due_at_s = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; the first call comes at once."""
        self._due_at_s = self._clock()
        self._handle = asyncio.get_running_loop().call_soon(self._call)  # type: ignore[assignment]

    def stop(self) -> None:
        """End."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _call(self) -> None:
        now_s, lag = self._clock(), self.lag
        late_s = now_s - self._due_at_s
        lag.num_calls += 1
        lag.longest_s = max(lag.longest_s, late_s)
        if late_s > LATE_S:
            lag.num_late += 1
        try:
            self._act(now_s)
        except Exception:
            # One round that fails must not end all that follow: requests go on being served.
            lag.num_failures += 1
            if lag.num_failures & (lag.num_failures - 1) == 0:
                _LOG.exception("%s failed (%d times)", self.name, lag.num_failures)
        done_s = self._clock()
        lag.span_s += done_s - now_s
        self._due_at_s = max(self._due_at_s + self._period_s, done_s)
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(max(0.0, self._due_at_s - done_s), self._call)
