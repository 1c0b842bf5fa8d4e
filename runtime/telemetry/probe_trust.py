"""Which probes of a rack lie: their frames are in order, but cannot be true.

A probe is distrusted when its counters stand still (the time of a processor always counts), when
most of them fall again and again without a restart, or when its moments contradict its clock. It
is trusted again after a while without any of it.

Does not know: what is done to a probe that is distrusted (the aggregator masks its values).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from .rack_samples import Summary

STILL_TICKS: Final = 20
"""Ticks with samples in a row in which no counter moved."""
TIME_FAULTS: Final = 20
"""Samples in a row with an impossible moment."""
PROBATION_TICKS: Final = 100
"""Ticks with samples without a fault, until a probe is trusted again."""
_FALLEN_FRAC: Final = 0.5
"""Of the counters; single ones are folded or restart with their engine."""
_LEAST_COUNTERS: Final = 4
_FALLS: Final = 2.5
_FORGIVENESS: Final = 0.99
"""Falls beyond so many, each weighing so much less with every tick: three within half a minute."""

BoolArray = NDArray[np.bool_]


class ProbeTrust:
    """Watches the probes of a rack, tick by tick.

    Shapes: [probes].
    """

    def __init__(self, num_probes: int) -> None:
        self._still = np.zeros(num_probes, np.int64)
        self._falls = np.zeros(num_probes)
        self._probation = np.zeros(num_probes, np.int64)

    def update(self, summary: Summary, num_time_faults: NDArray[np.int64],
               is_clock_unreliable: BoolArray) -> BoolArray:  # fmt: skip
        """Return which probes are distrusted after one more tick."""
        has_samples = summary.num_samples > 0
        is_still = has_samples & (summary.num_counters > 0) & (summary.num_moved == 0)
        self._still[has_samples & ~is_still] = 0
        self._still += is_still
        fell = summary.num_fell > np.maximum(
            _FALLEN_FRAC * summary.num_counters, _LEAST_COUNTERS - 1
        )
        self._falls = _FORGIVENESS * self._falls + (has_samples & fell)
        is_lying = (
            (self._still >= STILL_TICKS)
            | (self._falls > _FALLS)
            | (num_time_faults >= TIME_FAULTS)
            | is_clock_unreliable
        )
        self._probation[has_samples & (self._probation > 0)] -= 1
        self._probation[is_lying] = PROBATION_TICKS
        return self._probation > 0

    def forget(self, probe: int) -> None:
        """Trust a probe that restarted as any new one; one on probation stays on it."""
        self._still[probe] = 0
        self._falls[probe] = 0.0
