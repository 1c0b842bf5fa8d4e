"""Command `trimtab demo`: tune, fine-tune, and compare on unseen traffic, from one real trace.

Does not know: anything that the other commands do not; it runs their steps in a row.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..agents.bundle import Bundle, load_bundle
from ..agents.evaluation import Evaluation, PolicyMaker
from ..agents.generalist import GENERALIST, bundle_directory
from ..agents.heuristics import ANALYTIC_SCORER, MARGINAL_VALUE
from ..agents.policy import ConstantPolicy, LearnedPolicy
from ..agents.training import TrainingConfig
from ..agents.training_log import WandbMode
from ..agents.tuning import TuningConfig
from ..env.knobs import Knobs
from ..env.scenario import azure_scenario
from .evaluate import drawn_ttft_slos_s, policy_makers, print_result, run_with_progress
from .report import write_report
from .steps import (
    TRAINED_NAME,
    TUNED_NAME,
    train_with_progress,
    tune_with_progress,
    write_bundle,
    write_knobs,
)

BASE_NAME = MARGINAL_VALUE.name
"""What action 0 of the policy that ships is."""
LOADS = (0.5, 0.65, 0.95, 1.1)
SPAN_S = 60.0


def demo(
    *,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same table.")] = 0,
    generations: Annotated[int, typer.Option(min=1, help="Generations of tuning.")] = 50,
    windows: Annotated[int, typer.Option(min=1, help="Windows of training.")] = 34_560,
    envs: Annotated[int, typer.Option(min=1, help="Environments stepped together.")] = 48,
    workloads: Annotated[int, typer.Option(min=1, help="Unseen workloads to compare on.")] = 30,
    load_curve: Annotated[bool, typer.Option(help="Also measure goodput at other loads.")] = True,
    wandb: Annotated[WandbMode, typer.Option(help="Weights & Biases.")] = WandbMode.OFFLINE,
    out: Annotated[Path, typer.Option(help="Directory of all results.")] = Path("runs/demo"),
) -> None:
    """See it work: tune, fine-tune, evaluate and report on the bundled Azure trace."""
    settings = {name: str(value) for name, value in locals().items()}
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    scenario = azure_scenario(seed=seed, span_s=SPAN_S)
    console.print("1. tune the analytic scorer on the first half of the trace (CMA-ES)")
    tuning_config = TuningConfig(num_generations=generations, population=12, seed=seed)
    tuned = tune_with_progress(scenario, ANALYTIC_SCORER.knobs, tuning_config)
    write_knobs(out / "tuned.json", tuned.knobs)
    console.print(
        f"   validation goodput {100 * tuned.base_goodput:.2f} % -> "
        f"{100 * tuned.tuned_goodput:.2f} %"
    )
    console.print("2. fine-tune the policy that ships on the same half (PPO)")
    shipped = load_bundle(bundle_directory(Path(GENERALIST)))
    config = TrainingConfig(num_windows=windows, num_envs=envs, seed=seed)
    trained = train_with_progress(
        scenario, shipped.base_knobs, out / "training", config, wandb, start=shipped
    )
    write_bundle(out / "bundle", scenario, config, trained)
    for num_windows, gain in trained.validation[1:]:
        console.print(
            f"   {num_windows} windows: validation goodput {100 * gain:+.2f} points over its base"
        )
    console.print("3. compare on the last third, which nothing has seen")
    evaluation = run_with_progress(
        scenario,
        policy_makers() | _own_makers(tuned.knobs, shipped, out / "bundle"),
        num_workloads=workloads,
        loads=LOADS if load_curve else (),
    )
    write_bundle(out / "bundle", scenario, config, trained, evaluation, base_name=BASE_NAME)
    paths = write_report(
        evaluation, out, ttft_slos_s=drawn_ttft_slos_s(scenario), settings=settings
    )
    print_result(evaluation, paths)
    console.print(f"wrote {out / 'bundle'}", soft_wrap=True, markup=False)
    console.print(verdict(evaluation))


def _own_makers(tuned: Knobs, shipped: Bundle, bundle_path: Path) -> dict[str, PolicyMaker]:
    """Return the tuned scorer with and without shedding, the policy that ships, the trained one."""
    scorer = ConstantPolicy(name=TUNED_NAME, knobs=tuned)
    open_name = f"{TUNED_NAME}-no-shed"
    unshed = ConstantPolicy(name=open_name, knobs=tuned.replace({"shed_enabled": 0.0}))
    bundle = load_bundle(bundle_path)
    return {
        TUNED_NAME: lambda: scorer,
        open_name: lambda: unshed,
        GENERALIST: lambda: LearnedPolicy(shipped, name=GENERALIST),
        TRAINED_NAME: lambda: LearnedPolicy(bundle, name=TRAINED_NAME),
    }


def verdict(evaluation: Evaluation) -> str:
    """Return in a sentence what the trained policy adds to its base, whatever its sign."""
    gain = evaluation.difference(TRAINED_NAME, BASE_NAME)
    figures = (
        f"{100 * gain.mean:+.2f} points of goodput "
        f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}] over {evaluation.num_workloads} workloads"
    )
    if gain.low > 0.0:
        return f"The trained policy is better than its base, {BASE_NAME}: {figures}."
    if gain.high < 0.0:
        return f"The trained policy is WORSE than {BASE_NAME}: {figures}; do not deploy it."
    return f"The trained policy cannot be told from {BASE_NAME}: {figures}; deploy its base."
