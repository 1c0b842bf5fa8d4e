"""Command `trimtab calibrate`: fit a GPU's calibration to profiles or to a recorded live run.

Does not know: file formats of profiles (`env/profiles/`) or how a fit works (`env/fitting.py`).

Run: `trimtab calibrate --profiles DIR --gpu H100-80G --out h100.json`, or
`trimtab calibrate --run iterations.csv --gpu H100-80G --model llama-3-8b --out h100.json`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ..env.calibration import Calibration, ErrorRow, save_calibration
from ..env.fitting import START, calibrated, with_run_prior
from ..env.hardware import Precision, gpu
from ..env.model_file import load_model
from ..env.profiles.live_run import live_samples
from ..env.profiles.public import public_samples, public_start
from ..env.profiles.samples import IterationSamples
from ..traces.errors import ConfigError


def calibrate(
    *,
    gpu_name: Annotated[str, typer.Option("--gpu", help="GPU of the catalogue.")],
    out: Annotated[Path, typer.Option(help="Calibration file to write (JSON).")],
    profiles: Annotated[
        Path | None, typer.Option(help="Folder of public profiles to fit on.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Recorded live run to fit on (CSV, a line an iteration).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --run: model of the catalogue, or a YAML file.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="With --run: GPUs.")] = 1,
    precision: Annotated[Precision, typer.Option(help="With --run: format of weights.")] = (
        Precision.BF16
    ),
) -> None:
    """Fit a GPU's calibration and write it with its error table."""
    if (profiles is None) == (run is None):
        msg = "calibrate needs either --profiles DIR or --run FILE, and not both"
        raise ConfigError(msg)
    console = Console(highlight=False)
    device = gpu(gpu_name)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), console=console
    ) as progress:
        reading = progress.add_task("reading", total=None)
        samples: Sequence[IterationSamples]
        if profiles is not None:
            samples = public_samples(profiles, gpu_name, lambda: progress.advance(reading))
            start = public_start(profiles, gpu_name, START)
        else:
            assert run is not None
            if model is None:
                msg = "calibrate --run needs --model, the model that was served"
                raise ConfigError(msg)
            profile = load_model(model)
            samples = [live_samples(run, profile, tensor_parallel, precision)]
            start = with_run_prior(device, run.name)
        fitting = progress.add_task("fitting", total=None)
        calibration = calibrated(samples, device, start, lambda: progress.advance(fitting))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_calibration(calibration, out)
    print_errors(console, calibration)
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


def print_errors(console: Console, calibration: Calibration) -> None:
    """Print a calibration's error table."""
    for is_left_out in (False, True):
        rows = [row for row in calibration.errors if row.is_left_out == is_left_out]
        if rows:
            kind = "left out of the fit" if is_left_out else "in the fit"
            console.print(error_table(f"{calibration.gpu}: error of sets {kind}", rows))


def error_table(title: str, rows: Sequence[ErrorRow]) -> Table:
    """A table with one line for each set, median and p95 by phase."""
    phases = ("prefill", "decode", "mixed")
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for phase in phases:
        table.add_column(f"{phase} median / p95 %", justify="right")
    by_set: dict[str, dict[str, ErrorRow]] = {}
    for row in rows:
        label = f"{row.model} TP{row.tensor_parallel} {row.precision}"
        if not row.tensor_parallel:
            label = f"all {row.model}" if row.model != "all" else "all"
        by_set.setdefault(label, {})[row.phase] = row
    for label, cells in by_set.items():
        texts = [
            f"{100 * cells[phase].median_frac:.1f} / {100 * cells[phase].p95_frac:.1f}"
            if phase in cells
            else ""
            for phase in phases
        ]
        table.add_row(label, *texts)
    return table
