"""The shadow report: where two schedulers differ, why, what it would have changed, and what to do.

Does not know: how it is shown (`scripts/shadow.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ...agents.evaluation import Interval, bootstrap
from .redecisions import Redecision
from .resimulation import SimulatedRun, SimulatorError

# Fewer decisions or blocks of time than this say too little for an advice.
MIN_DECISIONS, MIN_BLOCKS = 30, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFigures:
    """What the gateway noted window by window while the policy was in shadow or served."""

    num_windows: int
    gain: Interval | None
    """Gain that the gateway estimated itself; None if it compared nothing."""
    doubts: Mapping[str, int]
    overridden_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """All figures of a report."""

    base_name: str
    other_name: str
    num_decisions: int
    agreement: Interval
    flows: Mapping[tuple[str, str], int]
    """Requests by the replica that had them and the one that the other would have chosen."""
    reasons: Mapping[str, int]
    """What speaks for the other's choice where they differ, by decisions."""
    expected_gain: Interval
    """Difference of expected met shares on the decisions themselves, from the logged views."""
    decision_p50_s: float
    decision_p99_s: float
    base_run: SimulatedRun | None
    other_run: SimulatedRun | None
    gain: Interval | None
    """Difference of met weight when the recorded run is simulated under both."""
    error: SimulatorError | None
    windows: WindowFigures | None

    @property
    def advice(self) -> str:
        """`promote` or `hold`."""
        return "promote" if not self.objections else "hold"

    @property
    def objections(self) -> list[str]:
        """What speaks against promotion."""
        found = []
        if self.num_decisions < MIN_DECISIONS:
            found.append(f"only {self.num_decisions} decisions, {MIN_DECISIONS} are needed")
        if self.gain is None:
            found.append("the run was not simulated")
        elif not self.gain.low > 0.0:
            found.append(
                f"the lower bound of the simulated gain is {self.gain.low:+.3f}, not above 0"
            )
        if self.base_run is not None and self.base_run.weight_by_block.size < MIN_BLOCKS:
            size = self.base_run.weight_by_block.size
            found.append(f"only {size} blocks of time, {MIN_BLOCKS} are needed")
        own = None if self.windows is None else self.windows.gain
        if own is not None and own.high < 0.0:
            found.append("the gateway's own estimate says that it does worse")
        return found


def make_report(
    base_name: str,
    other_name: str,
    decisions: Sequence[Redecision],
    *,
    runs: tuple[SimulatedRun, SimulatedRun, Interval] | None = None,
    error: SimulatorError | None = None,
    windows: WindowFigures | None = None,
) -> ShadowReport:
    """Sum up decisions and runs; `runs` are the base's, the other's and the gain."""
    same = np.array([each.is_same for each in decisions], np.float64)
    gains = np.array(
        [float(each.is_other_met) - float(each.is_taken_met) for each in decisions], np.float64
    )
    times_s = np.array([each.decision_s for each in decisions])
    times_s = times_s[np.isfinite(times_s)]
    nothing = np.zeros(1)
    return ShadowReport(
        base_name=base_name,
        other_name=other_name,
        num_decisions=len(decisions),
        agreement=bootstrap(same if same.size else nothing),
        flows=Counter((each.taken, each.other) for each in decisions),
        reasons=Counter(each.reason for each in decisions if not each.is_same),
        expected_gain=bootstrap(gains if gains.size else nothing),
        decision_p50_s=float(np.quantile(times_s, 0.5)) if times_s.size else float("nan"),
        decision_p99_s=float(np.quantile(times_s, 0.99)) if times_s.size else float("nan"),
        base_run=runs[0] if runs else None,
        other_run=runs[1] if runs else None,
        gain=runs[2] if runs else None,
        error=error,
        windows=windows,
    )


def read_windows(directory: Path) -> WindowFigures | None:
    """Return what a recording says of its windows; None if it has none."""
    parts = sorted((directory / "windows").glob("part-*.parquet"))
    if not parts:
        return None
    rows: list[dict[str, Any]] = [row for part in parts for row in pq.read_table(part).to_pylist()]
    compared = [row["gain"] for row in rows if row.get("gain_samples", 0) > 0]
    doubts = Counter(row["doubt"] for row in rows if row.get("doubt"))
    moved = [row.get("override_size", 0.0) > 0.0 for row in rows]
    return WindowFigures(
        num_windows=len(rows),
        gain=bootstrap(compared) if compared else None,
        doubts=dict(doubts),
        overridden_frac=float(np.mean(moved)) if moved else 0.0,
    )
