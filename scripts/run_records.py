"""What commands put into the records of their runs.

Does not know: what a record is (`..agents.run_record`).
"""

import shlex
import sys
from pathlib import Path

from ..agents.gate import Verdict
from ..agents.run_record import Result
from ..agents.training import TrainingResult
from ..agents.tuning import TuningResult
from ..env.knobs import Knobs

_POINTS = 100.0


def this_command() -> str:
    """Return what was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def base_name(base: Knobs) -> str:
    """Return in words what action 0 means."""
    return "placing by worth" if base["value_weight"] > 0.0 else "a scorer"


def validation_results(result: TrainingResult) -> list[Result]:
    """Return the best check of a training, and the last."""
    best, last = max(gain for _, gain in result.validation), result.validation[-1][1]
    return [
        Result(what="policy - base on validation, best check", mean=_POINTS * best),
        Result(what="the same, last check", mean=_POINTS * last),
    ]


def tuning_results(result: TuningResult) -> list[Result]:
    """Return what a search was worth on validation workloads."""
    gain = result.tuned_goodput - result.base_goodput
    return [
        Result(what="found - start on validation", mean=_POINTS * gain),
        Result(what="goodput of the start", mean=_POINTS * result.base_goodput, unit="%"),
    ]


def gate_results(verdict: Verdict) -> list[Result]:
    """Return the gain that a gate saw, and that of each kind of regime."""
    gain = verdict.gain
    return [
        Result(
            what="policy - base, unseen workloads",
            mean=_POINTS * gain.mean,
            low=_POINTS * gain.low,
            high=_POINTS * gain.high,
            count=verdict.num_workloads,
        ),
        *(
            Result(what=f"in regime {kind}", mean=_POINTS * mean)
            for kind, mean in verdict.regime_gains.items()
        ),
    ]
