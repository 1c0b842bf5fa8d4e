"""What commands put into the records of their runs, and into Weights & Biases.

Does not know: what a record is (`..agents.run_record`).
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..agents.gate import PairedRun, Verdict
from ..agents.run_record import Result
from ..agents.training import TrainingResult
from ..agents.training_log import WandbMode
from ..agents.tuning import TuningResult
from ..agents.wandb_results import log_differences, log_files, results_run, trace_manifest
from ..env.knobs import Knobs
from ..traces.atomic import replace_file

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


def log_training(
    directory: Path, mode: WandbMode, settings: Mapping[str, Any], traces: Path | None
) -> None:
    """Log a training's bundle, settings and trace manifest as artefacts of W&B."""
    with results_run(directory, mode, settings, kind="artefacts") as run:
        if run is None:
            return
        manifest = {"settings": dict(settings), "traces": trace_manifest(traces)}
        path = directory / "manifest.json"
        replace_file(path, (json.dumps(manifest, indent=2) + "\n").encode())
        log_files(run, "manifest", "config", path)
        log_files(run, "bundle", "bundle", directory / "bundle")


def log_gate(
    directory: Path, mode: WandbMode, runs: Sequence[PairedRun], settings: Mapping[str, Any]
) -> None:
    """Log what a gate saw as a table of W&B."""
    with results_run(directory, mode, settings, kind="gate") as run:
        log_differences(run, "gate/differences", runs)


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
