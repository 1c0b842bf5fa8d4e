"""Command `trimtab train`: train a policy around a tuned scheduler and save it as a bundle.

Does not know: how the policy is judged on unseen workloads (`trimtab evaluate --bundle`).
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..agents.bundle import load_bundle
from ..agents.generalist import bundle_directory
from ..agents.heuristics import ANALYTIC_SCORER
from ..agents.knob_file import read_knobs
from ..agents.run_record import RunClock
from ..agents.site_training import SiteTrainingConfig
from ..agents.training import TrainingConfig
from ..agents.training_log import WandbMode
from ..env.short_term_env import EpisodeConfig
from ..traces.errors import ConfigError
from .evaluate import make_scenario
from .run_records import (
    base_name,
    log_training,
    this_command,
    trace_files,
    validation_results,
)
from .site_steps import (
    PlaceBy,
    train_on_sites_with_progress,
    universal_base,
    write_site_bundle,
)
from .steps import trace_option, train_with_progress, write_bundle

WINDOW_S, SPAN_S, SITE_SPAN_S = 2.0, 60.0, 240.0


def train(
    *,
    trace: Annotated[
        str | None, typer.Option(help="Trace store; by default the bundled Azure traces.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="A bundled cluster, or a YAML file.")] = "demo-16",
    knobs: Annotated[
        Path | None, typer.Option(help="Knob file that action 0 means, from `trimtab tune`.")
    ] = None,
    sites: Annotated[
        int, typer.Option(min=0, help="Train over so many training sites, and not one cluster.")
    ] = 0,
    traces: Annotated[
        Path | None, typer.Option(help="Recorded traces that sites resample; else synthetic.")
    ] = None,
    place_by: Annotated[
        PlaceBy,
        typer.Option(help="With --sites and no --knobs: the universal vector that action 0 means."),
    ] = PlaceBy.COST,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Bundle to learn on from, with its base; generalist: the one that ships."
        ),
    ] = None,
    load: Annotated[float, typer.Option(help="Mean rate, as a share of saturation.")] = 0.8,
    span: Annotated[
        float | None,
        typer.Option(min=2, help="Length of an episode, s; 60, or 240 over sites."),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help="Windows to train on: 40000 of 2 s, or 150000 of 5 s over sites."),
    ] = None,
    envs: Annotated[
        int | None, typer.Option(min=1, help="Environments stepped together; 48, or 64 over sites.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Step size of Adam.")] = 5e-4,
    discount: Annotated[
        float | None, typer.Option(help="Of the next window's reward; 0.8, or 0.7 over sites.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over a rollout in an update.")] = 4,
    hidden_size: Annotated[int, typer.Option(min=1, help="Width of the graph encoder.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same policy.")] = 0,
    wandb: Annotated[WandbMode, typer.Option(help="Weights & Biases.")] = WandbMode.OFFLINE,
    out: Annotated[Path, typer.Option(help="Directory of log and bundle.")] = Path("runs/train"),
) -> None:
    """Train a policy that moves a tuned scheduler's knobs: of one cluster, or of any site."""
    clock = RunClock()
    given: dict[str, Any] = {
        "num_windows": windows,
        "num_envs": envs,
        "learning_rate": learning_rate,
        "discount": discount,
        "num_epochs": epochs,
        "hidden_size": hidden_size,
        "seed": seed,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    begun = None if start is None else load_bundle(bundle_directory(start))
    if begun is not None and knobs is not None:
        msg = "--start and --knobs exclude each other: a bundle has a base of its own"
        raise ConfigError(msg)
    if sites > 0:
        base = universal_base(place_by) if knobs is None else read_knobs(knobs)
        base = base if begun is None else begun.base_knobs
        window_s = SiteTrainingConfig().episode.window_s
        num_windows = max(1, int((span or SITE_SPAN_S) / window_s))
        episode = EpisodeConfig(window_s=window_s, num_windows=num_windows)
        plan = SiteTrainingConfig(**settings, episode=episode)
        result = train_on_sites_with_progress(
            base, out, plan, (sites, traces), wandb_mode=wandb, start=begun
        )
        write_site_bundle(out / "bundle", plan, result, sites)
        next_command = f"trimtab evaluate --gate --bundle {out / 'bundle'} --sites 30"
        next_command += "" if traces is None else f" --traces {traces}"
    else:
        base = ANALYTIC_SCORER.knobs if knobs is None else read_knobs(knobs)
        base = base if begun is None else begun.base_knobs
        span_s = span or SPAN_S
        scenario = make_scenario(trace, cluster=cluster, load_frac=load, seed=seed, span_s=span_s)
        episode = EpisodeConfig(window_s=WINDOW_S, num_windows=max(1, int(span_s / WINDOW_S)))
        config = TrainingConfig(**settings, episode=episode)
        result = train_with_progress(scenario, base, out, config, wandb, start=begun)
        write_bundle(out / "bundle", scenario, config, result)
        knobs_option = "" if knobs is None else f" --knobs {knobs}"
        next_command = f"trimtab evaluate{trace_option(trace)}{knobs_option}"
        next_command += f" --bundle {out / 'bundle'}"
    log_training(out, wandb, settings, trace_files(trace, traces, is_over_sites=sites > 0))
    clock.record(
        out,
        title=f"PPO around {base_name(base)}",
        command=this_command(),
        seeds=[seed],
        settings={**settings, "sites": sites, "best_windows": result.best_windows},
        results=validation_results(result),
    )
    console = Console(highlight=False)
    for trained, gain in result.validation:
        console.print(f"validation at {trained} windows: {100 * gain:+.2f} points over base")
    console.print(f"wrote {out / 'bundle'}", soft_wrap=True, markup=False)
    console.print(f"next: {next_command}", soft_wrap=True, markup=False)
