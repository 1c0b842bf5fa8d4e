"""Command `trimtab train`: train a policy around a tuned scorer and save it as a bundle.

Does not know: how the policy is judged on unseen workloads (`trimtab evaluate --bundle`).
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..agents.heuristics import ANALYTIC_SCORER
from ..agents.knob_file import read_knobs
from ..agents.training import TrainingConfig
from ..agents.training_log import WandbMode
from ..env.short_term_env import EpisodeConfig
from .evaluate import make_scenario
from .steps import trace_option, train_with_progress, write_bundle

WINDOW_S = 2.0


def train(
    *,
    trace: Annotated[
        str | None, typer.Option(help="Trace store; by default the bundled Azure traces.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="A bundled cluster, or a YAML file.")] = "demo-16",
    knobs: Annotated[
        Path | None, typer.Option(help="Knob file that action 0 means, from `trimtab tune`.")
    ] = None,
    load: Annotated[float, typer.Option(help="Mean rate, as a share of saturation.")] = 0.8,
    span: Annotated[float, typer.Option(min=2, help="Length of an episode, s.")] = 60.0,
    windows: Annotated[int, typer.Option(min=1, help="Windows of 2 s to train on.")] = 40_000,
    envs: Annotated[int, typer.Option(min=1, help="Environments stepped together.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same policy.")] = 0,
    wandb: Annotated[WandbMode, typer.Option(help="Weights & Biases.")] = WandbMode.OFFLINE,
    out: Annotated[Path, typer.Option(help="Directory of log and bundle.")] = Path("runs/train"),
) -> None:
    """Train a policy that moves the tuned scorer's knobs."""
    base = ANALYTIC_SCORER.knobs if knobs is None else read_knobs(knobs)
    scenario = make_scenario(trace, cluster=cluster, load_frac=load, seed=seed, span_s=span)
    episode = EpisodeConfig(window_s=WINDOW_S, num_windows=max(1, int(span / WINDOW_S)))
    config = TrainingConfig(num_windows=windows, num_envs=envs, episode=episode, seed=seed)
    result = train_with_progress(scenario, base, out, config, wandb)
    write_bundle(out / "bundle", scenario, config, result)
    console = Console(highlight=False)
    for num_windows, gain in result.validation:
        console.print(f"validation at {num_windows} windows: {100 * gain:+.2f} points over base")
    console.print(f"wrote {out / 'bundle'}", soft_wrap=True, markup=False)
    knobs_option = "" if knobs is None else f" --knobs {knobs}"
    next_command = f"trimtab evaluate{trace_option(trace)}{knobs_option} --bundle {out / 'bundle'}"
    console.print(f"next: {next_command}", soft_wrap=True, markup=False)
