"""Slow start: a replica that comes back, or comes up, gets its load by and by.

Its caches are cold and its counts are low, so that every gateway would choose it at once.

Does not know: why a replica was away.
Source: slow start of Envoy, nginx (`slow_start`) and AWS load balancers (30 to 900 s).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.restrictions import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart:
    """How load returns.

    Raises:
        ValueError: a number is out of range.
    """

    span_s: float = 30.0
    """Time until there is no limit; 0 turns it off."""
    first_requests: float = 3.0
    """Requests at a time that it may have at first; it grows to the batch slots."""
    penalty: float = 0.5
    """Penalty at first, in units of the score; it falls to 0."""

    def __post_init__(self) -> None:
        if not (0 <= self.span_s < np.inf and 0 <= self.penalty < np.inf):
            msg = f"span_s and penalty must be at least 0, got {self.span_s} and {self.penalty}"
            raise ValueError(msg)
        if not self.first_requests >= 1:
            msg = f"first_requests must be at least 1, got {self.first_requests}"
            raise ValueError(msg)


class Ramps:
    """How far each replica is on its way back."""

    def __init__(self, config: SlowStart, batch_slots: FloatArray) -> None:
        self._config = config
        self._slots = batch_slots
        self._since_s = np.full(batch_slots.size, -np.inf)
        self._was_available = np.ones(batch_slots.size, np.bool_)
        self.is_any = False
        """A replica is on its way back."""

    def start(self, is_back: NDArray[np.bool_], clock_s: float) -> None:
        """Begin at the bottom for some replicas; [R]."""
        if self._config.span_s > 0 and is_back.any():
            self._since_s[is_back] = clock_s
            self.is_any = True

    def see_available(
        self, is_available: FloatArray, is_known: NDArray[np.bool_], clock_s: float
    ) -> None:
        """Begin at the bottom for replicas that have become available; [R].

        One that was available when first seen is in full swing.
        """
        is_up = np.where(is_known, is_available > 0.5, self._was_available)
        self.start(is_up & ~self._was_available, clock_s)
        self._was_available = is_up

    def limit(
        self, max_outstanding: FloatArray, penalties: FloatArray, clock_s: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return both, [R], with what slow start adds."""
        config = self._config
        share = (clock_s - self._since_s) / config.span_s
        is_ramping = share < 1.0
        self.is_any = bool(is_ramping.any())
        share = np.where(is_ramping, share, 1.0)
        first = np.minimum(config.first_requests, self._slots)
        most = np.where(is_ramping, first + (self._slots - first) * share, np.inf)
        return np.minimum(max_outstanding, most), penalties + config.penalty * (1.0 - share)
