"""Steps that several commands share: tuning and training, each with a progress bar.

Does not know: options of the command line.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..agents.bundle import Bundle, save_bundle
from ..agents.evaluation import Evaluation
from ..agents.halving import ROUNDS
from ..agents.training import TrainingConfig, TrainingResult, train
from ..agents.training_log import WandbMode
from ..agents.tuning import TuningConfig, TuningResult, tune
from ..env.knobs import ANALYTIC_SCORER_KNOBS, TUNABLE_KNOBS, Knobs
from ..env.scenario import Scenario

TUNED_NAME = "tuned-scorer"
TRAINED_NAME = "trained-ppo"


def progress_bar() -> Progress:
    """Return a bar on stderr that vanishes when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def tune_with_progress(
    scenario: Scenario, base: Knobs, config: TuningConfig, library: Sequence[Knobs] = ()
) -> TuningResult:
    """Tune, showing rounds of the library, generations, and the goodput of the best candidate."""
    num_rounds = len(ROUNDS) if library else 0
    with progress_bar() as progress:
        task = progress.add_task("tuning the scorer", total=num_rounds + config.num_generations)

        def show(text: str, goodput: float) -> None:
            text = f"{text}, goodput {100 * goodput:.2f} %"
            progress.update(task, advance=1, description=text)

        return tune(
            scenario,
            base,
            config,
            library=library,
            on_round=partial(show, f"trying {len(library)} stored vectors"),
            on_generation=partial(show, "tuning the scorer"),
        )


def train_with_progress(
    scenario: Scenario,
    base: Knobs,
    directory: Path,
    config: TrainingConfig,
    wandb_mode: WandbMode,
    *,
    start: Bundle | None = None,
) -> TrainingResult:
    """Train, showing the windows played."""
    with progress_bar() as progress:
        task = progress.add_task("training the policy, windows", total=config.num_windows)
        return train(
            scenario,
            base,
            directory,
            config,
            start=start,
            wandb_mode=wandb_mode,
            on_windows=lambda count: progress.advance(task, count),
        )


def trace_option(trace: str | None) -> str:
    """Return the option that names a trace again in a next command."""
    return "" if trace is None else f" --trace {trace}"


def write_knobs(path: Path, knobs: Knobs) -> None:
    """Write the knobs of a vector that count as JSON, in place of an older file at once.

    Those are the tunable ones, and whatever else differs from the analytic scorer's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = ANALYTIC_SCORER_KNOBS.as_dict()
    counting = {
        name: value
        for name, value in knobs.as_dict().items()
        if name in TUNABLE_KNOBS or value != plain[name]
    }
    content = json.dumps(counting, indent=2)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content + "\n", encoding="utf-8")
    temporary.replace(path)


def describe_training(scenario: Scenario, config: TrainingConfig, result: TrainingResult) -> str:
    """Return what a policy was trained on, in a sentence."""
    return (
        f"Training part of '{scenario.name}' on cluster '{scenario.cluster.name}', "
        f"{scenario.rate_rps:.0f} requests/s ({100 * scenario.load_frac:.0f} % of saturation), "
        f"{result.num_windows} windows of {config.episode.window_s:g} s, seed {config.seed}; "
        f"best checkpoint at {result.best_windows} windows."
    )


def training_results(result: TrainingResult) -> dict[str, Any]:
    """Return the validation checks of a training, for its bundle."""
    return {
        "validation_goodput_gain": {
            f"after {windows} windows": gain for windows, gain in result.validation
        }
    }


def bundle_results(
    result: TrainingResult, evaluation: Evaluation | None, base_name: str = TUNED_NAME
) -> dict[str, Any]:
    """Return the results that go into a bundle: validation checks, and test if evaluated."""
    results = training_results(result)
    if evaluation is not None:
        gain = evaluation.difference(TRAINED_NAME, base_name)
        results["test"] = {
            "num_workloads": evaluation.num_workloads,
            "goodput_frac": {p.name: p.mean("goodput_frac") for p in evaluation.policies},
            "goodput_gain_over_base": asdict(gain),
        }
    return results


def write_bundle(
    path: Path,
    scenario: Scenario,
    config: TrainingConfig,
    result: TrainingResult,
    evaluation: Evaluation | None = None,
    *,
    base_name: str = TUNED_NAME,
) -> None:
    """Save the trained policy with its results, in place of an older bundle."""
    save_bundle(
        path,
        policy=result.policy,
        base_knobs=result.base,
        layout=result.layout,
        evaluation=bundle_results(result, evaluation, base_name),
        description=describe_training(scenario, config, result),
        overwrite=True,
    )
