"""Round trips to the clocks of a rack's probes: when to ask, and what the answers say.

Does not know: how offsets are estimated (`clock.py`), or how pings travel.
"""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .clock import ClockEstimator
from .frames import Ping, Pong, encode
from .reasons import Reason

PERIOD_S: Final = 1.0
"""From one ping of a probe to the next."""
FAST_PERIOD_S: Final = 0.1
"""The same for a probe whose clock is not known well yet."""
FAST_ROUNDS: Final = 8
"""Answers until it is."""
_MAX_OPEN: Final = 4
"""Pings of a probe that wait for an answer; of more, the oldest is given up."""
_MAX_GIVEN_UP: Final = 16
"""Pings of a probe that were given up and are remembered, so that their answers count as late."""
_NUM_ROUND_TRIPS: Final = 8
"""Round trips over which their least and their spread are taken."""

FloatArray = NDArray[np.float64]


class ClockRounds:
    """Asks the probes of a rack for their clocks.

    Shapes: [probes].
    """

    def __init__(self, probes: tuple[str, ...], *, seed: int = 0) -> None:
        number = len(probes)
        self._probes = probes
        self.clock = ClockEstimator(number)
        # a nonce that nobody can guess would need secrets; that a stray answer is none suffices
        self._next_nonce = seed
        self._open: list[dict[int, float]] = [{} for _ in probes]
        self._given_up: list[deque[int]] = [deque(maxlen=_MAX_GIVEN_UP) for _ in probes]
        self._num_rounds = np.zeros(number, np.int64)
        self._due_at_s = np.full(number, -np.inf)
        self._round_trips_s = np.full((number, _NUM_ROUND_TRIPS), np.nan)
        self.error_bound_s = np.full(number, np.inf)
        """Of each clock's offset, as of the latest `refresh`."""
        self._reference_s = 0.0
        self._offset_s = [np.nan] * number
        self._rate = [1.0] * number
        self._bound_s = [np.inf] * number

    def pings(self, now_s: float) -> list[tuple[str, bytes]]:
        """Return the pings that are due, each with the probe that it goes to."""
        due = np.flatnonzero(self._due_at_s <= now_s)
        if not len(due):
            return []
        is_fast = self._num_rounds[due] < FAST_ROUNDS
        # the first slow ones are spread over the period, so that they do not all come at once
        period_s = np.where(is_fast, FAST_PERIOD_S, PERIOD_S)
        is_turning = self._num_rounds[due] == FAST_ROUNDS - 1
        period_s += np.where(is_turning, due / len(self._probes) * PERIOD_S, 0.0)
        self._due_at_s[due] = now_s + period_s
        return [(self._probes[i], self._ping(i, now_s)) for i in due.tolist()]

    def take(self, probe: int, pong: Pong, received_at_s: float) -> Reason | None:
        """Learn from an answer; return what is wrong with it."""
        sent_at_s = self._open[probe].pop(pong.nonce, None)
        if sent_at_s is None:
            return Reason.LATE if pong.nonce in self._given_up[probe] else Reason.DUPLICATE
        is_consistent = self.clock.exchange(
            probe, sent_at_s, pong.received_at_s, pong.sent_at_s, received_at_s
        )
        if not is_consistent:
            self._num_rounds[probe] = 0
            return Reason.UNRELIABLE
        number = int(self._num_rounds[probe])
        self._round_trips_s[probe, number % _NUM_ROUND_TRIPS] = self.clock.round_trip_s[probe]
        self._num_rounds[probe] = number + 1
        if number == 0:
            self.refresh(received_at_s)
        return None

    def forget(self, probe: int) -> None:
        """Forget a probe's clock, as at its restart."""
        self.clock.forget(probe)
        self._given_up[probe].extend(self._open[probe])
        self._open[probe].clear()
        self._num_rounds[probe] = 0
        self._due_at_s[probe] = -np.inf
        self._round_trips_s[probe] = np.nan
        self._offset_s[probe], self._bound_s[probe] = np.nan, np.inf

    def refresh(self, now_s: float) -> None:
        """Estimate all clocks at a moment; `to_hub_s` goes by it until the next."""
        self._reference_s = now_s
        self._offset_s = self.clock.offset_s(now_s).tolist()
        self._rate = (1.0 + self.clock.drift).tolist()
        self.error_bound_s = self.clock.error_bound_s(now_s)
        self._bound_s = self.error_bound_s.tolist()

    def to_hub_s(self, probe: int, remote_s: float) -> tuple[float, float]:
        """Return a moment of a probe's clock in hub time, and the bound of its error.

        NaN and infinity as long as the probe has not answered.
        """
        now_s = self._reference_s
        ahead_s = (remote_s - now_s - self._offset_s[probe]) / self._rate[probe]
        return now_s + ahead_s, self._bound_s[probe]

    @property
    def least_round_trip_s(self) -> FloatArray:
        """Least of the latest round trips; NaN before the first."""
        least: FloatArray = np.fmin.reduce(self._round_trips_s, axis=1)
        return least

    @property
    def round_trip_spread_s(self) -> FloatArray:
        """Greatest of the latest round trips less the least; NaN before the first."""
        most: FloatArray = np.fmax.reduce(self._round_trips_s, axis=1)
        return most - self.least_round_trip_s

    def _ping(self, probe: int, now_s: float) -> bytes:
        waiting = self._open[probe]
        if len(waiting) >= _MAX_OPEN:
            oldest = next(iter(waiting))
            del waiting[oldest]
            self._given_up[probe].append(oldest)
        self._next_nonce += 1
        waiting[self._next_nonce] = now_s
        return encode(Ping(probe=self._probes[probe], nonce=self._next_nonce, sent_at_s=now_s))
