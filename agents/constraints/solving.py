"""CP-SAT as this package uses it: the optional extra, its settings, and what an answer is.

Does not know: any model that is solved.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ...traces.errors import MissingExtraError


class SolveStatus(StrEnum):
    """What is known of an answer."""

    OPTIMAL = "optimal"  # no better one exists
    FEASIBLE = "feasible"  # it keeps every rule; a better one may exist
    INFEASIBLE = "infeasible"  # no answer keeps every rule
    UNKNOWN = "unknown"  # none was found in time, and none was shown not to exist


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on this process's clock."""

    at_s: float

    def left_s(self) -> float:
        """Return the time until then, s, at least 0."""
        return max(0.0, self.at_s - time.perf_counter())


def deadline_in(span_s: float) -> Deadline:
    """Return the moment that is so many seconds away."""
    return Deadline(time.perf_counter() + span_s)


def cp_sat() -> Any:
    """Return OR-tools' module `cp_model`.

    Raises:
        MissingExtraError: OR-tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        msg = (
            "solving maps and placements needs OR-tools, which is not installed; "
            "run: pip install 'trimtab[solver]'"
        )
        raise MissingExtraError(msg) from None
    return cp_model


def quiet_solver(limit_s: float, *, num_workers: int = 1, seed: int = 1) -> Any:
    """Return a CP-SAT solver that prints nothing and stops after a time, s.

    Raises:
        MissingExtraError: OR-tools is not installed.
    """
    solver = cp_sat().CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = num_workers
    solver.parameters.random_seed = seed
    solver.parameters.log_search_progress = False
    return solver


def status_of(code: Any) -> SolveStatus:
    """Return CP-SAT's verdict.

    Raises:
        ValueError: CP-SAT refused the model, which is a fault of this package.
    """
    cp_model = cp_sat()
    if code == cp_model.MODEL_INVALID:
        msg = "CP-SAT found the model invalid; expected one whose numbers fit 64-bit integers"
        raise ValueError(msg)
    known = {
        cp_model.OPTIMAL: SolveStatus.OPTIMAL,
        cp_model.FEASIBLE: SolveStatus.FEASIBLE,
        cp_model.INFEASIBLE: SolveStatus.INFEASIBLE,
    }
    return known.get(code, SolveStatus.UNKNOWN)


def gap_frac(objective: float, bound: float) -> float:
    """Return how far a cost is above the least that is still possible, as a share of the cost."""
    if objective <= bound:
        return 0.0
    return (objective - bound) / abs(objective) if objective else 1.0
