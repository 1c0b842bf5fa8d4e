"""Folds counters, so that 32-bit floats keep the steps that rates are made of.

Does not know: where a counter comes from, or how a rate is made of two readings.
"""

import numpy as np

from ..signals import SIGNALS_BY_SCOPE, Kind, Scope
from .probe import FloatArray, Readings


class CounterFold:
    """Turns counters as their sources give them into counts since the first reading, folded.

    A source that falls was restarted: its count starts again at 0, which the reader sees as a fall.
    """

    def __init__(self) -> None:
        self._start: Readings = {}
        self._previous: Readings = {}
        self._columns = {
            scope: np.flatnonzero([signal.kind is Kind.COUNTER for signal in signals])
            for scope, signals in SIGNALS_BY_SCOPE.items()
        }
        self._fold = {
            scope: np.array([signals[i].high for i in self._columns[scope]])
            for scope, signals in SIGNALS_BY_SCOPE.items()
        }

    def __call__(self, readings: Readings) -> Readings:
        """Return readings with folded counters; the gauges are as they were."""
        folded = {}
        for scope, values in readings.items():
            folded[scope] = values.copy()
            columns = self._columns[scope]
            raw = values[:, columns]
            since_start = raw - self._start_of(scope, raw)
            with np.errstate(invalid="ignore"):  # an infinite count is none
                folded[scope][:, columns] = np.mod(since_start, self._fold[scope])
        return folded

    def _start_of(self, scope: Scope, raw: FloatArray) -> FloatArray:
        never = np.full_like(raw, np.nan)
        previous = self._previous.get(scope, never)
        start = self._start.get(scope, never)
        begins = np.isfinite(raw) & ~(raw >= previous)  # the first reading, or a fall
        self._start[scope] = np.where(begins, raw, start)
        self._previous[scope] = np.where(np.isfinite(raw), raw, previous)
        return self._start[scope]
