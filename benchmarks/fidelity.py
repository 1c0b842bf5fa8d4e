"""How far predicted times are from measured ones.

Sections: iterations of a whole (model, parallel degree) left out of the fit, and of a GPU of which
only the datasheet is known; real vLLM runs replayed (`replays.py`); real serving points
(`serving_points.py`).

Does not know: how a calibration is fitted (`trimtab.env.fitting`) or used.

Run: `python benchmarks/fidelity.py [--json]` (under 3 minutes on
one core). The profiles are looked for in `$TRIMTAB_SHARED/profiles` and in `../shared/profiles`
beside the repository.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import replays
import serving_points
from rich.console import Console
from rich.table import Table

import trimtab
from trimtab.env.calibration import Calibration
from trimtab.env.datasheet import datasheet_calibration
from trimtab.env.fit_errors import FitErrors, predicted_parts_s, prediction_errors
from trimtab.env.fitting import START, calibrated
from trimtab.env.hardware import GPUS
from trimtab.env.model_profile import MODELS
from trimtab.env.profiles.dense_operators import dense_operator_samples
from trimtab.env.profiles.public import public_samples, public_start
from trimtab.env.profiles.samples import IterationSamples, Phase
from trimtab.scripts.calibrate import error_table

# GPUs with profiles of their own; the 40 GiB A100 shares the kernels of the other
PROFILED = ("A100-80G", "H100-80G", "H200-141G", "B200-180G", "RTXPRO6000-96G")
# largest median and p95 of the absolute relative error, by phase
TARGETS = {"prefill": (0.04, 0.12), "decode": (0.04, 0.12), "mixed": (0.05, 0.15)}
UNSEEN_MEDIAN_TARGET = 0.20
# calibrated GPUs, and the one that is predicted from its datasheet by them
UNSEEN = (
    (("A100-80G", "H100-80G"), "H200-141G"),
    (("A100-80G", "H100-80G"), "B200-180G"),
    (("H100-80G", "H200-141G"), "A100-80G"),
    (("A100-80G", "B200-180G"), "H100-80G"),
    (("A100-80G", "H100-80G", "H200-141G", "B200-180G"), "RTXPRO6000-96G"),
)


class Study:
    """Measured iterations and fits, read and made once."""

    def __init__(self, profiles: Path) -> None:
        self.profiles = profiles
        self._samples: dict[str, list[IterationSamples]] = {}
        self._fits: dict[str, Calibration] = {}

    def samples(self, gpu_name: str) -> list[IterationSamples]:
        """Measured iterations of a GPU."""
        if gpu_name not in self._samples:
            self._samples[gpu_name] = public_samples(self.profiles, gpu_name)
        return self._samples[gpu_name]

    def fit(self, gpu_name: str) -> Calibration:
        """A GPU's calibration, fitted here and now, with its error table."""
        if gpu_name not in self._fits:
            start = public_start(self.profiles, gpu_name, START)
            self._fits[gpu_name] = calibrated(self.samples(gpu_name), GPUS[gpu_name], start)
        return self._fits[gpu_name]


Section = Callable[[Study, Console], dict[str, Any]]


def left_out(study: Study, console: Console) -> dict[str, Any]:
    """Error on sets that the fit did not see, one table a GPU."""
    result: dict[str, Any] = {}
    for gpu_name in PROFILED:
        rows = [row for row in study.fit(gpu_name).errors if row.is_left_out]
        console.print(error_table(f"{gpu_name}: sets left out of the fit", rows))
        pools: dict[str, dict[str, list[float]]] = {}
        misses = []
        for row in rows:
            figures = [row.median_frac, row.p95_frac]
            if not row.tensor_parallel:
                pools.setdefault(row.model, {})[row.phase] = figures
            elif any(v > t for v, t in zip(figures, TARGETS[row.phase], strict=True)):
                name = f"{row.model} TP{row.tensor_parallel} {row.precision} {row.phase}"
                misses.append([name, *figures])
        for name, median, p95 in misses:
            console.print(
                f"  missed: {name} {100 * median:.1f} / {100 * p95:.1f} %", highlight=False
            )
        passed = {
            pool: all(
                v <= t
                for phase, figures in phases.items()
                for v, t in zip(figures, TARGETS[phase], strict=True)
            )
            for pool, phases in pools.items()
        }
        num_rows = sum(1 for row in rows if row.tensor_parallel)
        console.print(f"  {num_rows - len(misses)} of {num_rows} rows within target\n")
        result[gpu_name] = {
            "pools": pools,
            "is_within_target": passed,
            "num_rows": num_rows,
            "misses": misses,
        }
    return result


def unseen_gpu(study: Study, console: Console) -> dict[str, Any]:
    """Error on a GPU of which only the datasheet is known."""
    table = Table(title="GPU known by its datasheet alone, median error %", title_justify="left")
    for name in ("GPU", "calibrated on", *(phase.label for phase in Phase), "all"):
        table.add_column(name)
    result: dict[str, Any] = {}
    for known, gpu_name in UNSEEN:
        gpu = GPUS[gpu_name]
        calibration = datasheet_calibration(gpu, [study.fit(name) for name in known])
        errors = [
            prediction_errors(entry, gpu, calibration, is_left_out=True)
            for entry in study.samples(gpu_name)
        ]
        medians = [_median(errors, phase) for phase in Phase] + [_median(errors, None)]
        cells = [f"{100 * value:.1f}" for value in medians]
        if max(medians[:3]) > UNSEEN_MEDIAN_TARGET:
            cells[-1] += " missed"
        table.add_row(gpu_name, ", ".join(known), *cells)
        names = [*(phase.label for phase in Phase), "all"]
        result[gpu_name] = dict(zip(names, medians, strict=True))
    console.print(table)
    return result


def _median(errors: Sequence[FitErrors], phase: Phase | None) -> float:
    """Median error of one phase, or of all."""
    chosen = [entry.errors if phase is None else entry.of(phase) for entry in errors]
    return float(np.median(np.concatenate(chosen)))


def other_measurements(study: Study, console: Console) -> dict[str, Any]:
    """Layers without attention against Vidur's operators, which no fit has seen."""
    title = "Layers without attention against Vidur's operators, error %"
    table = Table(title=title, title_justify="left")
    for name in ("GPU", "set", "median", "p95", "signed median"):
        table.add_column(name)
    result: dict[str, Any] = {}
    for gpu_name in ("A100-80G", "H100-80G"):
        for model in ("llama-3-8b", "llama-3-70b"):
            for width in (1, 2, 4, 8):
                made = dense_operator_samples(study.profiles, gpu_name, MODELS[model], width)
                if made is None:
                    continue
                parts = predicted_parts_s(made, GPUS[gpu_name], study.fit(gpu_name))
                errors = parts[:, 0] / made.times_s - 1.0
                figures = [
                    float(np.median(np.abs(errors))),
                    float(np.quantile(np.abs(errors), 0.95)),
                    float(np.median(errors)),
                ]
                table.add_row(gpu_name, made.label, *(f"{100 * v:.1f}" for v in figures))
                result[f"{gpu_name} {made.label}"] = figures
    console.print(table)
    return result


def real_runs(study: Study, console: Console) -> dict[str, Any]:
    """Three recorded vLLM runs against their replay."""
    rows = replays.replay_all(study.profiles.parent)
    console.print("Real vLLM runs, ms: measured, simulated, error", style="italic")
    console.print(replays.table(rows), soft_wrap=True, highlight=False)
    return {name: {**row, "misses": replays.misses(row)} for name, row in rows.items()}


def real_points(study: Study, console: Console) -> dict[str, Any]:
    """Real serving points against a closed loop of the same concurrency."""
    figures, text = serving_points.measure(study.profiles.parent)
    console.print("Real serving points, error of means", style="italic")
    console.print(text, soft_wrap=True, highlight=False)
    return figures


SECTIONS: dict[str, Section] = {
    "left_out": left_out,
    "unseen_gpu": unseen_gpu,
    "other_measurements": other_measurements,
    "real_runs": real_runs,
    "real_points": real_points,
}


def shared_profiles() -> Path | None:
    """The folder of public profiles, or None."""
    root = Path(trimtab.__file__).resolve().parent
    places = [Path(os.environ["TRIMTAB_SHARED"])] if "TRIMTAB_SHARED" in os.environ else []
    places.append(root.parent / "shared")
    for place in places:
        if (place / "profiles").is_dir():
            return place / "profiles"
    return None


def main() -> int:
    """Run all sections."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--profiles", type=Path, help="folder of public profiles")
    options = parser.parse_args()
    profiles = options.profiles or shared_profiles()
    if profiles is None or not profiles.is_dir():
        sys.exit("no profiles found; set TRIMTAB_SHARED or pass --profiles DIR")
    console = Console(highlight=False, width=110)
    study = Study(profiles)
    result = {name: section(study, console) for name, section in SECTIONS.items()}
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
