"""Quantiles of what a histogram of a metrics page gained in the last seconds.

Does not know: pages, engines or signals.
Source of the interpolation: histogram_quantile of Prometheus.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class HistogramWindow:
    """Cumulative counts of a histogram over the last `span_s` seconds."""

    def __init__(self, span_s: float = 5.0) -> None:
        self._span_s = span_s
        self._pages: deque[tuple[float, FloatArray, FloatArray]] = deque()

    def add(self, at_s: float, upper_bounds: FloatArray, counts: FloatArray) -> None:
        """Take the histogram of one page: counts at or below each bound, the last one infinite."""
        if self._pages:
            _, last_bounds, last_counts = self._pages[-1]
            is_same = np.array_equal(last_bounds, upper_bounds)
            if not is_same or (counts < last_counts).any():  # another engine, or a restart
                self._pages.clear()
        self._pages.append((at_s, upper_bounds, counts))
        # The last page before the span stays: what was gained is counted from it.
        while len(self._pages) > 2 and self._pages[1][0] <= at_s - self._span_s:
            self._pages.popleft()

    def quantile(self, share: float) -> float:
        """Return a quantile of what was gained, interpolated in its bucket; NaN if nothing was."""
        if len(self._pages) < 2:
            return np.nan
        _, bounds, last = self._pages[-1]
        gained = last - self._pages[0][2]
        total = gained[-1]
        if total <= 0:
            return np.nan
        bucket = int(np.searchsorted(gained, share * total))
        if not np.isfinite(bounds[bucket]):
            return float(bounds[-2]) if len(bounds) > 1 else np.nan
        below = gained[bucket - 1] if bucket else 0.0
        low = bounds[bucket - 1] if bucket else 0.0
        inside = (share * total - below) / (gained[bucket] - below)
        return float(low + (bounds[bucket] - low) * inside)
