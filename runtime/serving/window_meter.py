"""What a dispatcher did in a span of time, for whoever asks; each asker has a meter of its own.

Does not know: who asks.
"""

from dataclasses import dataclass

from ...env.fleet import WindowOutcome
from ..dispatcher.totals import DispatchTotals


@dataclass(frozen=True, slots=True)
class _Counts:
    at_s: float
    arrived: int
    finished: int
    shed: int
    failed: int
    weight: float
    credit: float


class WindowMeter:
    """Takes differences of a dispatcher's counters."""

    def __init__(self, totals: DispatchTotals, now_s: float) -> None:
        self._totals = totals
        self._last = self._counts(now_s)

    def take(self, now_s: float) -> WindowOutcome:
        """Return what happened since the last call, or since the meter was made."""
        last, counts = self._last, self._counts(now_s)
        self._last = counts
        return WindowOutcome(
            start_s=last.at_s,
            end_s=now_s,
            num_arrived=counts.arrived - last.arrived,
            num_finished=counts.finished - last.finished,
            num_shed=counts.shed - last.shed,
            num_failed=counts.failed - last.failed,
            arrived_weight=counts.weight - last.weight,
            credit=counts.credit - last.credit,
            energy_j=float("nan"),
        )

    def _counts(self, now_s: float) -> _Counts:
        totals = self._totals
        return _Counts(
            now_s, totals.num_arrived, totals.num_finished, totals.num_shed, totals.num_failed,
            totals.arrived_weight, totals.credit,
        )  # fmt: skip
