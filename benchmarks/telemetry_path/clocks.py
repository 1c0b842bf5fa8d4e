"""Three clocks to play a run by: the wall's, one of a core that is all ours, and none at all.

Does not know: what is played.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since a run began."""

    def now_s(self) -> float:
        """Return the moment."""

    def wait(self, span_s: float) -> None:
        """Let a span pass."""


class WallClock:
    """Time passes as it does: while other programs have the core, too."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        """Return the moment."""
        return time.monotonic() - self._start_s

    def wait(self, span_s: float) -> None:
        """Sleep."""
        time.sleep(span_s)


class CoreClock:
    """Time passes while this process computes or waits: as on a core that nobody else uses."""

    def __init__(self) -> None:
        self._start_s = time.process_time()
        self._waited_s = 0.0

    def now_s(self) -> float:
        """Return the moment."""
        return time.process_time() - self._start_s + self._waited_s

    def wait(self, span_s: float) -> None:
        """Go on at once, later by the span."""
        self._waited_s += span_s


class FakeClock:
    """Computing takes no time: a run is the same on every machine."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """Return the moment."""
        return self._now_s

    def wait(self, span_s: float) -> None:
        """Go on at once, later by the span."""
        self._now_s = round(self._now_s + span_s, 6)
