"""The clocks of many probes against ours: offset and drift, with bounds that hold.

A ping leaves at `sent`, is answered by the probe between `remote_received` and `remote_sent`, and
the answer comes at `received`. Whatever the delays on the way, however unequal, the ping did not
arrive before it was sent, nor the answer before it was: so the probe's offset (its clock less
ours) was at most `remote_received - sent` when we sent, and at least `remote_sent - received` when
we received. Through all such points of the recent past, upper and lower, passes the true offset.
Its slope, the drift, is bounded by each pair of an upper and a lower point, and the bounds of the
slope carry every point's bound to the present, where the tightest ones count. The estimate is the
middle, the error bound half the width: no average is taken that a burst of slow answers can bend.

Two promises of the hardware are all that is assumed: a largest drift, and how fast drift changes;
they are best kept by a clock that no time daemon slews (`CLOCK_MONOTONIC_RAW`), on both sides.
Exchanges that cannot all be true under them mean that the clock was stepped or that the probe
lies: what was known of it is thrown away and the contradiction counted. A step smaller than the
error bound cannot be seen, nor a steady lie (the same as an offset), nor one within a round trip.

Does not know: frames, or when to ask (the aggregator). Moments are float64 seconds; rounding of
large ones is part of the bound.
Source: Marzullo and Owicki, "Maintaining the time in a distributed system", PODC 1983 (intersected
intervals); Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989 (bounds
from round trips under drift); Zhang, Liu and Xia, "Clock synchronization algorithms for network
measurements", INFOCOM 2002 (the lines that pass between upper and lower points).
"""

import math
from collections import deque
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# 1: the frequency tolerance that the Linux kernel's clock discipline allows (MAXFREQ, 500 ppm)
MAX_DRIFT: Final = 500e-6
# 1/s: rates of PC clocks stay within about 0.1 ppm over 1,000 s in rooms with steady temperature
# (Veitch, Ridoux, Korada, "Robust synchronization of absolute and difference clocks over
# networks", IEEE/ACM ToN 17, 2009); a warming server moves faster, so that much each second
MAX_WANDER_PER_S: Final = 0.1e-6

_LARGEST_S: Final = 1e12
"""Moments beyond are no moments: float64 could not tell them a millisecond apart."""
_NUM_REMEMBERED: Final = 8
"""Exchanges of a probe that are kept to bound its drift."""
_REMEMBER_EVERY_S: Final = 4.0
"""One of them, the narrowest, for each span of this length."""
_FORGIVENESS: Final = 0.9
_UNRELIABLE_ABOVE: Final = 2.0
"""Suspicion grows by one with a contradiction and fades by `_FORGIVENESS` with every exchange:
one step of a clock is no lie, three contradictions within ten exchanges are."""


class _Points(NamedTuple):
    """What one exchange says: the offset's upper bound at one moment, lower bound at another."""

    sent_s: float
    high_s: float
    received_s: float
    low_s: float


class ClockEstimator:
    """Offsets and drifts of `num_probes` clocks.

    Shapes: every array is [P], P probes. A probe without exchanges has a NaN offset and an
    infinite bound.
    """

    def __init__(
        self,
        num_probes: int,
        *,
        max_drift: float = MAX_DRIFT,
        max_wander_per_s: float = MAX_WANDER_PER_S,
    ) -> None:
        if not 0 <= max_drift < 0.1:
            msg = f"max_drift must be in [0, 0.1), got {max_drift}"
            raise ValueError(msg)
        self._max_drift = max_drift
        self._max_wander_per_s = max_wander_per_s
        self._at_s = np.full(num_probes, -np.inf)  # the moment that the bounds below are of
        # offsets are kept relative to each probe's first one, so that what a short span adds to a
        # clock that counts from boot is not rounded away
        self._base_s = np.full(num_probes, np.nan)
        self._low_s = np.full(num_probes, np.nan)
        self._high_s = np.full(num_probes, np.nan)
        self._drift_low = np.full(num_probes, -max_drift)
        self._drift_high = np.full(num_probes, max_drift)
        self._suspicion = np.zeros(num_probes)
        self.round_trip_s = np.full(num_probes, np.nan)
        """On the network, by the latest exchange; the probe's own time is taken off."""
        self.num_contradictions = np.zeros(num_probes, np.int64)
        """Exchanges that contradict themselves or those before."""
        self._history: list[deque[_Points]] = [
            deque(maxlen=_NUM_REMEMBERED) for _ in range(num_probes)
        ]

    def exchange(
        self,
        probe: int,
        sent_s: float,
        remote_received_s: float,
        remote_sent_s: float,
        received_s: float,
    ) -> bool:
        """Learn from one round trip; return False if it is a contradiction, which is counted.

        One that contradicts itself (it ends before it begins, or the probe took longer to answer
        than we waited) is ignored. One that contradicts those before replaces all of them.
        """
        largest = max(abs(sent_s), abs(received_s), abs(remote_received_s), abs(remote_sent_s))
        rounding_s = 8 * math.ulp(largest)
        points = _Points(
            sent_s,
            remote_received_s - sent_s + rounding_s,
            received_s,
            remote_sent_s - received_s - rounding_s,
        )
        waited_s = received_s - sent_s
        self._suspicion[probe] *= _FORGIVENESS
        # written so that NaN fails
        if not (
            largest <= _LARGEST_S
            and waited_s >= 0
            and remote_sent_s >= remote_received_s
            and points.low_s - points.high_s <= self._max_drift * waited_s
        ):
            self._distrust(probe)
            return False
        self.round_trip_s[probe] = waited_s - (remote_sent_s - remote_received_s)
        if self._narrow(probe, points):
            return True
        self._distrust(probe)
        self.forget(probe)
        self._narrow(probe, points)
        return False

    def forget(self, probe: int) -> None:
        """Forget a probe's clock, as at a restart; what was counted stays."""
        self._at_s[probe] = -np.inf
        self._base_s[probe] = self._low_s[probe] = self._high_s[probe] = np.nan
        self._drift_low[probe], self._drift_high[probe] = -self._max_drift, self._max_drift
        self._history[probe].clear()

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Whether the probe has answered since it was last forgotten."""
        return np.asarray(np.isfinite(self._at_s))

    @property
    def is_unreliable(self) -> NDArray[np.bool_]:
        """Whether the probe contradicts itself again and again: its moments mean nothing."""
        return np.asarray(self._suspicion > _UNRELIABLE_ABOVE)

    @property
    def drift(self) -> FloatArray:
        """Seconds that each clock gains on ours in a second."""
        return np.asarray(0.5 * (self._drift_low + self._drift_high))

    @property
    def drift_bound(self) -> FloatArray:
        """Largest error of `drift` at the latest exchange."""
        return np.asarray(0.5 * (self._drift_high - self._drift_low))

    def offset_s(self, at_s: ArrayLike) -> FloatArray:
        """Return each probe's clock less ours at a moment of ours, or one for each probe."""
        middle_s = 0.5 * (self._low_s + self._high_s)
        with np.errstate(invalid="ignore"):  # unknown ones: NaN
            return np.asarray(self._base_s + (middle_s + self.drift * (at_s - self._at_s)))

    def error_bound_s(self, at_s: ArrayLike) -> FloatArray:
        """Return the largest error of `offset_s`, before and after the latest exchange alike."""
        age_s = np.abs(at_s - self._at_s)
        with np.errstate(invalid="ignore"):  # unknown ones: NaN
            growth_s = np.minimum(
                self.drift_bound * age_s + 0.5 * self._max_wander_per_s * age_s**2,
                (self._max_drift + np.abs(self.drift)) * age_s,
            )
            bound_s = 0.5 * (self._high_s - self._low_s) + growth_s
        return np.where(self.is_known, bound_s, np.inf)

    def to_hub_time(self, probes: ArrayLike, remote_s: ArrayLike) -> FloatArray:
        """Return moments of the probes' clocks in ours; NaN for probes that are not known.

        Shapes: `probes` int [E], `remote_s` [E] -> [E].
        """
        i = np.asarray(probes)
        at_s, middle_s = self._at_s[i], 0.5 * (self._low_s[i] + self._high_s[i])
        drift = 0.5 * (self._drift_low[i] + self._drift_high[i])
        with np.errstate(invalid="ignore"):
            ahead_s = (np.asarray(remote_s) - self._base_s[i]) - at_s
            return np.asarray(at_s + (ahead_s - middle_s) / (1 + drift))

    def _narrow(self, probe: int, new: _Points) -> bool:
        """Narrow a probe's bounds by an exchange; leave them and return False if none are left."""
        known_at_s = float(self._at_s[probe])
        is_known = known_at_s > -math.inf
        base_s = float(self._base_s[probe]) if is_known else new.high_s
        new = new._replace(high_s=new.high_s - base_s, low_s=new.low_s - base_s)
        at_s = max(new.received_s, known_at_s)
        drift_low, drift_high = self._narrowed_drift(probe, new, at_s)
        high_s = new.high_s + self._rise_s(drift_high, at_s - new.sent_s)
        low_s = new.low_s - self._rise_s(-drift_low, at_s - new.received_s)
        if is_known:
            age_s = at_s - known_at_s
            high_s = min(high_s, float(self._high_s[probe]) + self._rise_s(drift_high, age_s))
            low_s = max(low_s, float(self._low_s[probe]) - self._rise_s(-drift_low, age_s))
        if low_s > high_s or drift_low > drift_high:
            return False
        self._base_s[probe], self._at_s[probe] = base_s, at_s
        self._low_s[probe], self._high_s[probe] = low_s, high_s
        self._drift_low[probe], self._drift_high[probe] = drift_low, drift_high
        self._remember(probe, new)
        return True

    def _narrowed_drift(self, probe: int, new: _Points, at_s: float) -> tuple[float, float]:
        """Bound the drift at a moment by what was known, and by the new points with the old.

        The mean drift between two points is met at some moment between them, and may have
        wandered since the earlier one.
        """
        wander_per_s = self._max_wander_per_s
        lowest, highest = -self._max_drift, self._max_drift
        if self._history[probe]:
            wander = wander_per_s * (at_s - float(self._at_s[probe]))
            lowest = max(lowest, float(self._drift_low[probe]) - wander)
            highest = min(highest, float(self._drift_high[probe]) + wander)
        for sent_s, high_s, received_s, low_s in self._history[probe]:
            if (span_s := new.sent_s - received_s) > 0:
                steepest = (new.high_s - low_s) / span_s + wander_per_s * (at_s - received_s)
                highest = min(highest, steepest)
            if (span_s := new.received_s - sent_s) > 0:
                flattest = (new.low_s - high_s) / span_s - wander_per_s * (at_s - sent_s)
                lowest = max(lowest, flattest)
        return lowest, highest

    def _rise_s(self, drift_high: float, span_s: float) -> float:
        """Bound from above what an offset gained in a span at whose end the drift is known."""
        gained_s = drift_high * span_s + 0.5 * self._max_wander_per_s * span_s * span_s
        return min(gained_s, self._max_drift * span_s)

    def _remember(self, probe: int, new: _Points) -> None:
        """Keep an exchange: beside the others when one is due, else if it beats the latest."""
        history = self._history[probe]
        if history and new.received_s - history[-1].received_s < _REMEMBER_EVERY_S:
            latest = history[-1]
            if new.high_s - new.low_s < latest.high_s - latest.low_s:
                history[-1] = new
        else:
            history.append(new)

    def _distrust(self, probe: int) -> None:
        self._suspicion[probe] += 1
        self.num_contradictions[probe] += 1
