"""What happened lately: rates of counters and moving averages that weigh a moment by its age.

Old increments fade by the time constant, so samples may come at any period, be lost or repeat
themselves: a page that is read once a second and sampled ten times shows one rate. A counter that
went down was reset or folded; that step is left out of increments and time alike.

Does not know: which signals are counters, or what the rates mean.
"""

import numpy as np

from ....env.state.feature import FloatArray

SPAN_S = 2.0
"""Time constant: the window of the short-term tier."""
# An increment this many time constants ago says nothing of the present.
_LEAST_WEIGHT = float(np.exp(-5.0))


class RecentCounters:
    """Increments of counters and the time that they took, fading.

    Shapes: all arrays [..., counters].
    """

    def __init__(self, shape: tuple[int, ...], span_s: float = SPAN_S) -> None:
        self._span_s = span_s
        self._increments = np.zeros(shape)
        self._times_s = np.zeros(shape)
        self._is_present = np.zeros(shape, dtype=np.bool_)

    def add(self, readings: FloatArray, before: FloatArray, passed_s: FloatArray) -> None:
        """Take the step between two readings.

        Shapes: `passed_s` [...], seconds between the two; NaN or none is no step.
        """
        steps = readings - before
        times_s = np.where(passed_s > 0, passed_s, 0.0)[..., None]
        is_step = (steps >= 0) & (times_s > 0)
        fading = np.exp(times_s / -self._span_s)
        self._increments *= fading
        self._times_s *= fading
        self._increments += np.where(is_step, steps, 0.0)
        self._times_s += np.where(is_step, times_s, 0.0)
        np.isfinite(readings, out=self._is_present)

    def rates(self) -> FloatArray:
        """Return increments a second; NaN where the counter is absent or took no step yet."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = self._increments / self._times_s
        rates[~self._is_present] = np.nan
        return rates

    def increments(self) -> FloatArray:
        """Return faded increments: of two counters of one page, their ratio is a recent one."""
        return np.where(self._is_present, self._increments, np.nan)


def recent_ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return faded increments of one counter over another's.

    NaN where the other one has not moved for five time constants.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = np.where(whole >= _LEAST_WEIGHT, part / whole, np.nan)
    return ratio


class MovingAverage:
    """Exponential moving averages that may skip values.

    Shapes: all arrays as given at construction.
    """

    def __init__(self, shape: tuple[int, ...], span_s: float = SPAN_S) -> None:
        self._span_s = span_s
        self._mean = np.full(shape, np.nan)

    def before(self) -> FloatArray:
        """Return the averages as they stand; NaN without a value yet."""
        return self._mean.copy()

    def add(self, values: FloatArray, passed_s: FloatArray) -> FloatArray:
        """Take values and return by how much the averages changed a second.

        A share that rises by 0.1 a second shows 0.1 once the average follows it. The first value
        shows 0; an absent one shows NaN and leaves its average alone.
        """
        passed = np.where(passed_s > 0, passed_s, 0.0)
        gain = -np.expm1(passed / -self._span_s)
        is_first = np.isnan(self._mean)
        step = np.where(is_first, 0.0, gain * (values - self._mean))
        self._mean = np.where(is_first, values, self._mean + np.where(np.isnan(step), 0.0, step))
        with np.errstate(divide="ignore", invalid="ignore"):
            trend: FloatArray = np.where(
                passed > 0, step / passed, np.where(is_first, step, np.nan)
            )
        trend[np.isnan(values)] = np.nan
        return trend
