"""Command `trimtab evaluate`: schedulers on the same unseen workloads, one table and a report.

Does not know: how policies are tuned or trained.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..agents import evaluation as evaluations
from ..agents.bundle import load_bundle
from ..agents.evaluation import Evaluation, PolicyMaker
from ..agents.generalist import bundle_directory
from ..agents.heuristics import HEURISTICS, heuristic
from ..agents.knob_file import read_knobs
from ..agents.policy import ConstantPolicy, LearnedPolicy, constant_policy
from ..agents.run_record import RunClock
from ..agents.training_log import WandbMode
from ..env.cluster_file import load_cluster
from ..env.fault_file import bundled_fault_names, load_faults
from ..env.scenario import TROUBLED, Part, Scenario, azure_scenario, scenario_from_trace
from ..traces.errors import TraceError
from .gating import run_gate, verdict_text
from .live_evaluation import LiveTarget, run_live
from .recorded import open_trace, shortness
from .report import ReportPaths, write_report
from .run_records import gate_results, log_gate, this_command
from .table import rich_table

# Shares of the saturation rate at which the load curve is taken.
LOADS = (0.5, 0.65, 0.8, 0.95, 1.1)
TUNED_NAME = "tuned-scorer"
# Requests that a part of a trace must have for windows of it to differ.
_MIN_PART_REQUESTS = 5
# More different limits than this are not drawn one by one.
_MAX_DRAWN_LIMITS = 3


def evaluate(
    *,
    trace: Annotated[
        str | None,
        typer.Option(help="Trace store or bundled trace; by default both bundled Azure traces."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="A bundled cluster's name, or a YAML file.")
    ] = "demo-16",
    faults: Annotated[
        str,
        typer.Option(help=f"Hidden trouble: {', '.join(bundled_fault_names())}, or a YAML file."),
    ] = "troubled",
    policies: Annotated[
        str, typer.Option(help=f"all, or some of: {', '.join(HEURISTICS)}.")
    ] = "all",
    bundle: Annotated[
        Path | None, typer.Option(help="Directory of a trained policy to compare as well.")
    ] = None,
    knobs: Annotated[
        Path | None,
        typer.Option(help=f'JSON file {{"knob": value}} to compare as {TUNED_NAME}.'),
    ] = None,
    load: Annotated[float, typer.Option(help="Mean rate, as a share of saturation.")] = 0.8,
    workloads: Annotated[int, typer.Option(min=1, help="Unseen workloads.")] = 12,
    span: Annotated[float, typer.Option(help="Length of a workload, s.")] = 90.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same workloads.")] = 0,
    load_curve: Annotated[bool, typer.Option(help="Also measure goodput at other loads.")] = True,
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("runs/evaluate"),
    live: Annotated[
        str | None,
        typer.Option(help="Admin URL of a gateway: compare on its live fleet, in turns."),
    ] = None,
    live_token: Annotated[Path, typer.Option(help="File of its admin token.")] = Path(
        "runs/serve/admin-token"
    ),
    gateway: Annotated[
        str | None,
        typer.Option(help="Its data URL: send a load there; else traffic that comes is counted."),
    ] = None,
    live_model: Annotated[str, typer.Option(help="Model that the load asks for.")] = "tiny",
    live_rate: Annotated[
        float | None,
        typer.Option(help="Requests/s of the load; else --load of what the simulator expects."),
    ] = None,
    live_tokens: Annotated[
        tuple[int, int], typer.Option(help="Longest prompt and answer of the load, tokens.")
    ] = (512, 64),
    gate: Annotated[
        bool,
        typer.Option("--gate", help="Judge --bundle against its base, and write it the verdict."),
    ] = False,
    sites: Annotated[
        int, typer.Option(min=0, help="With --gate: test sites to judge on, not the scenario.")
    ] = 0,
    traces: Annotated[
        Path | None, typer.Option(help="Recorded traces that sites resample; else synthetic.")
    ] = None,
    wandb: Annotated[
        WandbMode, typer.Option(help="With --gate: Weights & Biases.")
    ] = WandbMode.OFFLINE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers instead of the table.")
    ] = False,
) -> None:
    """Compare schedulers on the same unseen workloads, or put a bundle before the gate."""
    settings = {name: value for name, value in locals().items() if name != "as_json"}
    if gate:
        clock = RunClock()
        verdict, runs = run_gate(
            bundle,
            sites=(sites, traces),
            make=lambda: make_scenario(
                trace, cluster=cluster, load_frac=load, seed=seed, span_s=span, faults=faults
            ),
            num_workloads=workloads,
        )
        log_gate(out, wandb, runs, {"bundle": str(bundle), "sites": sites, "seed": seed})
        clock.record(
            out,
            title=f"The gate over {bundle}",
            command=this_command(),
            seeds=[seed],
            settings={"sites": sites, "may_act": verdict.may_act},
            results=gate_results(verdict),
        )
        typer.echo(json.dumps(verdict.as_dict()) if as_json else verdict_text(verdict))
        raise typer.Exit(0 if verdict.may_act else 1)
    out.mkdir(parents=True, exist_ok=True)
    makers = policy_makers(policies, bundle=bundle, knobs=knobs)
    scenario = make_scenario(
        trace, cluster=cluster, load_frac=load, seed=seed, span_s=span, faults=faults
    )
    if live is not None:
        target = LiveTarget(
            admin_url=live,
            token_file=live_token,
            gateway_url=gateway,
            model=live_model,
            rate_rps=live_rate,
            max_input_tokens=live_tokens[0],
            max_output_tokens=live_tokens[1],
        )
        evaluation = run_live(scenario, makers, target, num_rounds=workloads)
    else:
        evaluation = run_with_progress(
            scenario, makers, num_workloads=workloads, loads=LOADS if load_curve else ()
        )
    paths = write_report(
        evaluation, out, ttft_slos_s=drawn_ttft_slos_s(scenario), settings=settings
    )
    if as_json:
        typer.echo(paths.json.read_text(encoding="utf-8"), nl=False)
    else:
        print_result(evaluation, paths)


def policy_makers(
    names: str = "all", *, bundle: Path | None = None, knobs: Path | None = None
) -> dict[str, PolicyMaker]:
    """Return what makes each policy: named heuristics, a tuned vector and a trained bundle.

    Raises:
        ValueError: a heuristic is unknown.
        ConfigError: the tuned vector cannot be read.
        BundleError: the bundle cannot.
    """
    wanted = HEURISTICS if names.strip() == "all" else [name.strip() for name in names.split(",")]
    makers: dict[str, PolicyMaker] = {name: _constant(name) for name in wanted if name}
    if knobs is not None:
        tuned = ConstantPolicy(name=TUNED_NAME, knobs=read_knobs(knobs))
        makers[TUNED_NAME] = lambda: tuned
    if bundle is not None:
        trained = load_bundle(bundle_directory(bundle))
        makers[LearnedPolicy(trained).name] = lambda: LearnedPolicy(trained)
    if not makers:
        msg = f"--policies '{names}' names no policy; known: all, {', '.join(HEURISTICS)}"
        raise ValueError(msg)
    return makers


def _constant(name: str) -> PolicyMaker:
    policy = constant_policy(heuristic(name))
    return lambda: policy


def make_scenario(
    trace: str | None,
    *,
    cluster: str,
    load_frac: float,
    seed: int,
    span_s: float,
    faults: str = "troubled",
) -> Scenario:
    """Return the scenario of a user's trace, or the bundled one, both with hidden trouble.

    Raises:
        TraceError: the trace is too short to be cut into training, validation and test.
        ConfigError: the cluster or the trouble cannot be read.
    """
    config = replace(TROUBLED, faults=load_faults(faults))
    if trace is None:
        scenario = azure_scenario(
            load_frac=load_frac, seed=seed, cluster_name=cluster, span_s=span_s
        )
        return scenario if scenario.config == config else replace(scenario, config=config)
    recorded = open_trace(trace)
    too_short = shortness(recorded)
    if too_short:
        msg = f"trace '{trace}' {too_short}"
        raise TraceError(msg)
    scenario = scenario_from_trace(
        recorded,
        name=Path(trace).name.removesuffix(".trace"),
        cluster=load_cluster(cluster),
        load_frac=load_frac,
        config=config,
        seed=seed,
        span_s=span_s,
    )
    for part, requests in scenario.parts.items():
        if len(requests) < _MIN_PART_REQUESTS or requests.span_s <= 0.0:
            msg = (
                f"trace '{trace}' has {len(requests)} requests in its {part} part (it is cut in "
                f"time: 50 % train, 15 % validation, 35 % test); expected at least "
                f"{_MIN_PART_REQUESTS} in each; record for longer, or over a steadier time"
            )
            raise TraceError(msg)
    return scenario


def run_with_progress(
    scenario: Scenario,
    makers: dict[str, PolicyMaker],
    *,
    num_workloads: int,
    loads: Sequence[float] = (),
) -> Evaluation:
    """Evaluate on the test part, with a progress bar on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring what the fleet can take", total=None)
        # Cached: the evaluation asks for it again.
        rate_rps = scenario.rate_rps
        progress.console.print(scale_note(scenario), highlight=False, soft_wrap=True)
        progress.update(
            task,
            description=f"{len(makers)} policies at {rate_rps:.1f} requests/s",
            total=evaluations.num_runs(len(makers), num_workloads, len(loads)),
        )
        return evaluations.evaluate(
            scenario,
            makers,
            num_workloads=num_workloads,
            part=Part.TEST,
            loads=loads,
            on_run=lambda: progress.advance(task),
        )


def scale_note(scenario: Scenario) -> str:
    """Return how the recorded traffic is brought to the rate of the workloads."""
    recorded = scenario.parts[Part.TEST]
    num_windows = scenario.rate_rps / recorded.mean_rate_rps
    return (
        f"recorded: {recorded.mean_rate_rps:.2f} requests/s over {recorded.span_s:.0f} s of test; "
        f"each workload overlays {num_windows:.1f} windows of {scenario.span_s:g} s of it to reach "
        f"{scenario.rate_rps:.1f} requests/s"
    )


def drawn_ttft_slos_s(scenario: Scenario) -> tuple[float, ...]:
    """Return the limits on TTFT in the test part, the tightest first; none if there are many."""
    requests = scenario.workload(Part.TEST, 0).requests
    limits = np.unique(requests["query"]["ttft_slo_s"])
    return tuple(map(float, limits)) if limits.size <= _MAX_DRAWN_LIMITS else ()


def print_result(evaluation: Evaluation, paths: ReportPaths) -> None:
    """Print the table and where the report is."""
    console = Console(highlight=False)
    console.print(rich_table(evaluation))
    for path in (paths.html, paths.png, paths.json):
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
