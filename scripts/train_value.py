"""Command `trimtab train-value`: fit the value network to rollouts at training sites.

Does not know: whether the network places better; it says how well it fits, and how to find out.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..agents.run_record import Result, RunClock
from ..agents.site_tuning import training_episodes
from ..agents.universal import universal_worth
from ..agents.value_file import value_bytes
from ..agents.value_training import ValueTrainingConfig, ValueTrainingResult, train_value
from ..env.sites import Split, TraceLibrary
from ..traces.atomic import write_directory
from .run_records import this_command
from .steps import progress_bar

WEIGHTS_NAME, REPORT_NAME = "value.safetensors", "value.json"


def train_value_network(
    *,
    sites: Annotated[int, typer.Option(min=1, help="Training sites; a third of them change.")] = 60,
    traces: Annotated[
        Path | None, typer.Option(help="Recorded traces that sites resample; else synthetic.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of collecting and training.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the labels in a round.")] = 20,
    own_only: Annotated[
        bool, typer.Option("--own-only", help="Correct the own chance, not what others lose.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory to write.")] = Path("runs/value"),
) -> None:
    """Fit the value network to rollouts."""
    clock = RunClock()
    library = None if traces is None else TraceLibrary(traces)
    config = ValueTrainingConfig(
        num_rounds=rounds, num_epochs=epochs, learns_others=not own_only, seed=seed
    )
    with progress_bar() as progress:
        task = progress.add_task("drawing sites", total=2 * rounds)
        episodes = training_episodes(Split.TRAIN, sites, library)
        validation = training_episodes(Split.VALIDATION, max(3, sites // 3), library)
        result = train_value(
            episodes,
            validation,
            universal_worth(),
            config,
            on_step=lambda text: progress.update(task, advance=1, description=text),
        )
    write_directory(out, {WEIGHTS_NAME: value_bytes(result.network), REPORT_NAME: _report(result)})
    clock.record(
        out,
        title="A network fitted to what rollouts say a placement is worth",
        command=this_command(),
        seeds=[seed],
        settings={"sites": sites, "rounds": rounds, "epochs": epochs, "own_only": own_only},
        results=_results(result),
    )
    console = Console(highlight=False)
    console.print(
        f"{result.num_labels} labels; of the variance of worth at unseen sites the closed form "
        f"explains {100 * result.closed_form_r2:.1f} %, the network {100 * result.trained_r2:.1f} %"
    )
    for foretold, found, count in result.calibration:
        console.print(f"  chance foretold {foretold:.3f}, found {found:.3f} ({count} labels)")
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


def _results(result: ValueTrainingResult) -> list[Result]:
    return [
        Result(what=what, mean=round(100 * share, 2), unit="%", count=result.num_labels)
        for what, share in (
            ("variance of the rollouts explained by the network", result.trained_r2),
            ("by the closed form", result.closed_form_r2),
        )
    ]


def _report(result: ValueTrainingResult) -> bytes:
    content = {
        "num_labels": result.num_labels,
        "closed_form_r2": result.closed_form_r2,
        "trained_r2": result.trained_r2,
        "calibration": result.calibration,
    }
    return (json.dumps(content, indent=2) + "\n").encode()
