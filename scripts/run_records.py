"""What commands put into the records of their runs, and into Weights & Biases.

Does not know: what a record is (`..agents.run_record`).
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..agents.gate import PairedRun, Verdict
from ..agents.run_record import Result
from ..agents.training import TrainingResult
from ..agents.training_log import WandbMode
from ..agents.tuning import TuningResult
from ..agents.wandb_results import log_differences, log_files, results_run, trace_manifest
from ..env.knobs import Knobs
from ..traces.atomic import replace_file
from ..traces.bundled import BUNDLED_FILES, bundled_path

_MANIFEST_NAME, _SETTINGS_NAME = "manifest.json", "settings.yaml"


def _points(share: float) -> float:
    """Return a share in points, without the noise of floats."""
    return round(100.0 * share, 4)


def this_command() -> str:
    """Return what was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def base_name(base: Knobs) -> str:
    """Return in words what action 0 means."""
    return "placing by worth" if base["value_weight"] > 0.0 else "a scorer"


def trace_files(trace: str | None, traces: Path | None, *, is_over_sites: bool) -> list[Path]:
    """Return the files and directories of the traces that a training reads."""
    if is_over_sites:
        return [] if traces is None else [traces]
    if trace is None:
        return [bundled_path(name) for name in BUNDLED_FILES]
    return [bundled_path(trace) if trace in BUNDLED_FILES else Path(trace)]


def validation_results(result: TrainingResult) -> list[Result]:
    """Return the best check of a training, and the last."""
    best, last = max(gain for _, gain in result.validation), result.validation[-1][1]
    return [
        Result(what="policy - base on validation, best check", mean=_points(best)),
        Result(what="the same, last check", mean=_points(last)),
    ]


def log_training(
    directory: Path, mode: WandbMode, settings: Mapping[str, Any], data: Sequence[Path]
) -> None:
    """Log a training's bundle, settings and trace manifest as artefacts of W&B.

    `data` are the files and directories of the traces that it read; none where they were made.
    """
    with results_run(directory, mode, settings, kind="artefacts") as run:
        if run is None:
            return
        manifest = [entry for path in data for entry in trace_manifest(path)]
        replace_file(directory / _MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode())
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        replace_file(directory / _SETTINGS_NAME, text.encode())
        log_files(run, "traces", "manifest", directory / _MANIFEST_NAME)
        log_files(run, "settings", "config", directory / _SETTINGS_NAME)
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
        Result(what="found - start on validation", mean=_points(gain)),
        Result(what="goodput of the start", mean=_points(result.base_goodput), unit="%"),
    ]


def gate_results(verdict: Verdict) -> list[Result]:
    """Return the gain that a gate saw, and that of each kind of regime."""
    gain = verdict.gain
    return [
        Result(
            what="policy - base, unseen workloads",
            mean=_points(gain.mean),
            low=_points(gain.low),
            high=_points(gain.high),
            count=verdict.num_workloads,
        ),
        *(
            Result(what=f"in regime {kind}", mean=_points(mean))
            for kind, mean in verdict.regime_gains.items()
        ),
    ]
