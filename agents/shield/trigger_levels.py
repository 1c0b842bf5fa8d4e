"""From which level on each trigger of the response controller fires, and on which it still holds.

Does not know: how the signals are weighed (`detector.py`), or what a trigger begins
(`emergency_rules.py`).
"""

from dataclasses import astuple, dataclass, fields

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerLevels:
    """Levels of all triggers. One that fires holds down to a lower level, so it does not flicker.

    Raises:
        ValueError: a level is out of its range, or a trigger would cease before it fires.
    """

    surge_fires_ratio: float = 2.0
    """Arrivals over their slow average that are a surge, if chance alone would not bring them."""
    surge_holds_ratio: float = 1.5
    """The same, for one that has begun."""
    surge_sigmas: float = 6.0
    """How many standard deviations of Poisson arrivals are still chance."""
    average_s: float = 30.0
    """Time constant of the slow average, s."""
    warm_up_s: float = 2.0
    """Time from the first tick in which there is no average to compare with, s."""
    growth_s_per_s: float = 0.5
    """Seconds of wait that a second adds while queues grow."""
    num_failures: float = 3.0
    """KV allocations that fail within 500 ms; one suffices to hold."""
    memory_fires_frac: float = 0.97
    """KV usage that is nearly full."""
    memory_holds_frac: float = 0.9
    """The same, for one that has begun."""
    idle_busy_frac: float = 0.02
    """Share of time in iterations below which a replica is idle."""
    silence_s: float = 1.0
    """Time without a sign of life, beyond twice the predicted wait, that is silence."""
    stuck_s: float = 1.0
    """Time without a first token, beyond twice the predicted wait, after which a queue stands
    still, s."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            high = 1.0 if field.name.endswith("_frac") else 3600.0
            if not 0.0 < value <= high:
                msg = f"{field.name} must be above 0 and at most {high:g}, got {value:g}"
                raise ValueError(msg)
        for trigger in ("surge_{}_ratio", "memory_{}_frac"):
            fires, holds = trigger.format("fires"), trigger.format("holds")
            if getattr(self, holds) > getattr(self, fires):
                msg = (
                    f"{holds} must be at most {fires} ({getattr(self, fires):g}), "
                    f"got {getattr(self, holds):g}"
                )
                raise ValueError(msg)
        if self.surge_holds_ratio < 1.0:
            msg = f"surge_holds_ratio must be at least 1, got {self.surge_holds_ratio:g}"
            raise ValueError(msg)

    def record(self) -> np.ndarray:
        """Return the levels for the compiled detector, LEVELS_DTYPE [1]."""
        return np.array([astuple(self)], LEVELS_DTYPE)


# The same for the compiled detector.
LEVELS_DTYPE = np.dtype([(field.name, np.float64) for field in fields(TriggerLevels)])
