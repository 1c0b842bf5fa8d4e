"""Sudden changes of many signals at once: a two-sided CUSUM on each, and a watch for jumps.

Each signal learns its level, spread and autocorrelation as it goes. What is summed are residuals:
the step from the value that the last one foretells, over the spread of such steps. The reference
value is half of the residual's shift under a step of `step_sigmas`, and the threshold follows from
the number of samples between false alarms that is asked for. A residual counts only so much, so
that no single outlier is a change. In a signal that follows itself closely a step shows in one
residual alone: such a jump is a change if the median of the samples from it on lies far from the
old level too. After a change the level is learnt anew.

Does not know: what the signals are, or who is told.
Source: Page 1954, "Continuous inspection schemes"; threshold by Siegmund's approximation of the
average run length (Siegmund 1985, "Sequential analysis", with the correction 1.166).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.compiled import compiled, inlined
from ...env.state.feature import FloatArray

# Siegmund's correction of the threshold for the overshoot, in spreads.
_OVERSHOOT = 1.166
# A residual counts at most this many spreads, so that outliers do not inflate the spread.
_LEARN_CLIP = 4.0
# What a residual may add to a sum, in spreads.
_SUM_CLIP = 3.0
# A residual that is a jump, in spreads: one in 1.7 million of Gaussian ones, half a day at 10 Hz.
_JUMP = 5.0
# Correlation from which on jumps are watched for: below it sums are quick, and outliers many.
_JUMP_CORRELATION = 0.4
# Samples over which the median confirms a jump.
_NUM_FOLLOWING = 3
# Residual shift below which a slow sum would take longer than the jump itself is worth.
_LEAST_REFERENCE = 0.5
# Exponent beyond which every run is long enough.
_MOST_EXPONENT = 500.0
# Samples after a change in which the new level is learnt.
_RELEARN_SAMPLES = 20

STATE_DTYPE = np.dtype(
    [
        ("num_seen", np.int64),
        ("level", np.float64),
        ("variance", np.float64),
        ("covariance", np.float64),  # of one sample with the next
        ("last", np.float64),  # the last sample less the level
        ("up", np.float64),
        ("down", np.float64),
        ("num_up", np.int64),  # samples since the sum was last 0
        ("num_down", np.int64),
        ("total_up", np.float64),  # of those samples, less the level
        ("total_down", np.float64),
        ("num_following", np.int64),  # samples since a jump, it included; 0: none is pending
        ("following", np.float64, (_NUM_FOLLOWING,)),
        ("num_quiet", np.int64),  # samples for which no alarm is raised
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """What counts as a sudden change."""

    step_sigmas: float = 3.0
    """Step, in spreads of the signal, that is to be found quickly."""
    samples_between_false_alarms: float = 2e7
    """Of one signal, if its noise is Gaussian: 23 days at 10 Hz. What learning costs comes off."""
    warm_up_samples: int = 300
    """Samples from which a signal's level and spread are learnt first; no alarm until then."""
    memory_samples: int = 1000
    """How far back level and spread are learnt from: slower drifts than this are followed."""
    least_step: float = 0.0
    """Changes below this, in the signal's own unit, are not worth an event."""
    least_sigma: float = 1e-4
    """Spread below which a signal counts as constant, in its own unit."""

    def __post_init__(self) -> None:
        if not self.step_sigmas > 0:
            msg = f"step_sigmas must be above 0, got {self.step_sigmas}"
            raise ValueError(msg)
        if not self.samples_between_false_alarms > 1:
            value = self.samples_between_false_alarms
            msg = f"samples_between_false_alarms must be above 1, got {value}"
            raise ValueError(msg)
        if not 2 <= self.warm_up_samples <= self.memory_samples:
            msg = (
                "warm_up_samples must be at least 2 and at most memory_samples "
                f"({self.memory_samples}), got {self.warm_up_samples}"
            )
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoints:
    """Signals that have just changed.

    Shapes: all [changes].
    """

    signal: NDArray[np.int64]
    size: FloatArray
    """New level less old level."""
    sigmas: FloatArray
    """The same in spreads of the signal."""


class ChangeDetector:
    """Watches `num_signals` signals that are sampled together."""

    def __init__(self, num_signals: int, config: DetectorConfig | None = None) -> None:
        self.config = config or DetectorConfig()
        self._states = np.zeros(num_signals, STATE_DTYPE)
        # threshold by reference value, in steps of 0.01
        references = np.arange(1, 50 * self.config.step_sigmas + 2) / 100
        run_length = self.config.samples_between_false_alarms
        self._thresholds = np.array([cusum_threshold(k, run_length) for k in references])
        self._found = np.zeros((num_signals, 3))

    def update(self, values: FloatArray) -> ChangePoints:
        """Take one sample of every signal, NaN where there is none; return who has changed."""
        config = self.config
        number = _update(
            self._states,
            values,
            self._thresholds,
            config.step_sigmas,
            config.warm_up_samples,
            config.memory_samples,
            config.least_step,
            config.least_sigma,
            self._found,
        )
        found = self._found[:number]
        return ChangePoints(
            signal=found[:, 0].astype(np.int64), size=found[:, 1].copy(), sigmas=found[:, 2].copy()
        )

    @property
    def sigma(self) -> FloatArray:
        """Spread of each signal, NaN while it is being learnt first. Shape [signals]."""
        is_known = self._states["num_seen"] >= self.config.warm_up_samples
        return np.where(is_known, np.sqrt(self._states["variance"]), np.nan)

    def forget(self, signals: NDArray[np.int64]) -> None:
        """Begin anew with some signals."""
        self._states[signals] = np.zeros((), STATE_DTYPE)


def cusum_threshold(reference: float, samples_between_false_alarms: float) -> float:
    """Return the threshold of a two-sided CUSUM of unit-variance residuals; `reference` above 0.

    Two sides alarm twice as often as one, so each is given twice the run length.
    """
    length = 2.0 * samples_between_false_alarms
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        exponent = min(2 * reference * (middle + _OVERSHOOT), _MOST_EXPONENT)
        run = (np.exp(exponent) - 1 - exponent) / (2 * reference**2)
        low, high = (middle, high) if run < length else (low, middle)
    return high


@inlined
def _shrunk_correlation(state, spread):
    """Correlation of one sample with the next, as far as it is known."""
    known = state.covariance / (spread * spread) * (1 - 2.0 / (state.num_seen + 2))
    return min(max(known, 0.0), 0.98)


@inlined
def _learn(state, value, gain, spread):
    """Let a sample move level, spread and correlation, an outlier by no more than a large step."""
    step, last = value - state.level, state.last
    if spread > 0:
        most = _LEARN_CLIP * spread
        step, last = min(max(step, -most), most), min(max(last, -most), most)
    state.level += gain * step
    kept = (1 - gain) * step
    state.variance += gain * (step * kept - state.variance)
    state.covariance += gain * (kept * last - state.covariance)
    state.last = value - state.level


@inlined
def _settle(state, value, size):
    """Go over to a new level, which the next samples will make precise."""
    state.level += size
    state.last = value - state.level
    state.up, state.num_up, state.total_up = 0.0, 0, 0.0
    state.down, state.num_down, state.total_down = 0.0, 0, 0.0
    state.num_following = 0
    state.num_quiet = _RELEARN_SAMPLES


@inlined
def _sum_up(state, value, residual, reference, threshold):
    """Add a residual to both sums; return the mean step since one began that is above, else 0."""
    clipped = min(max(residual, -_SUM_CLIP), _SUM_CLIP)
    state.up = max(0.0, state.up + clipped - reference)
    state.down = max(0.0, state.down - clipped - reference)
    state.num_up = state.num_up + 1 if state.up > 0 else 0
    state.num_down = state.num_down + 1 if state.down > 0 else 0
    state.total_up = state.total_up + value - state.level if state.up > 0 else 0.0
    state.total_down = state.total_down + value - state.level if state.down > 0 else 0.0
    if state.up > threshold:
        return state.total_up / state.num_up
    if state.down > threshold:
        return state.total_down / state.num_down
    return 0.0


@compiled
def _size_of_change(state, value, thresholds, step_sigmas, spread, memory):
    """Take a sample of a signal that is known; return by how much its level has changed, or 0."""
    if state.num_quiet > 0:
        state.num_quiet -= 1
        state.level += (value - state.level) / (_RELEARN_SAMPLES - state.num_quiet + 4)
        state.last = value - state.level
        return 0.0
    correlation = _shrunk_correlation(state, spread)
    scale = spread * np.sqrt(1 - correlation * correlation)
    residual = (value - state.level - correlation * state.last) / scale
    shift = step_sigmas * np.sqrt((1 - correlation) / (1 + correlation))
    reference = max(0.5 * shift, _LEAST_REFERENCE)
    threshold = thresholds[min(int(100 * reference), thresholds.size) - 1]
    size = _sum_up(state, value, residual, reference, threshold)
    if size != 0.0:
        return size
    is_jump = abs(residual) > _JUMP and correlation > _JUMP_CORRELATION
    if state.num_following > 0 or is_jump:
        state.following[state.num_following] = value
        state.num_following += 1
        state.last = value - state.level
        if state.num_following == _NUM_FOLLOWING:
            state.num_following = 0
            size = np.median(state.following) - state.level
            return size if abs(size) >= 0.5 * step_sigmas * spread else 0.0
        return 0.0
    _learn(state, value, max(1.0 / state.num_seen, 1.0 / memory), spread)
    return 0.0


@compiled
def _update(
    states, values, thresholds, step_sigmas, warm_up, memory, least_step, least_sigma, found
):
    """Take a sample of all signals; fill (signal, size, sigmas) of changes, return how many."""
    number = 0
    for i in range(states.size):
        state, value = states[i], values[i]
        if not np.isfinite(value):
            continue
        state.num_seen += 1
        seen = state.num_seen
        if seen == 1:
            state.level = value
            continue
        spread = max(np.sqrt(state.variance), least_sigma)
        if seen <= warm_up:
            # outliers are let in while there are too few samples to tell them
            _learn(state, value, 1.0 / seen, spread if seen > warm_up // 2 else 0.0)
            continue
        size = _size_of_change(state, value, thresholds, step_sigmas, spread, memory)
        if size != 0.0:
            _settle(state, value, size)
            if abs(size) >= least_step:
                found[number, 0] = i
                found[number, 1] = size
                found[number, 2] = size / spread
                number += 1
    return number
