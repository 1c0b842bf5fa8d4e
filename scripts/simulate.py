"""Command `trimtab simulate`: one workload under one policy, and the life of one of its requests.

Does not know: how a fleet is simulated, or how policies are compared (`evaluate.py`).
"""

import json
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..agents.heuristics import HEURISTICS, heuristic
from ..env.cluster_file import load_cluster
from ..env.fault_file import bundled_fault_names, load_faults
from ..env.knobs import Knobs
from ..env.lookahead.settings import LookaheadSettings
from ..env.request_life import RequestLife, read_life
from ..env.scenario import TROUBLED, Part, Scenario, azure_scenario, scenario_from_trace
from ..env.simulated_fleet import SimulatedFleet
from ..env.simulator.setup import FleetConfig
from ..env.simulator.workload import Workload, compile_workload
from ..traces.errors import TraceError
from .life_text import print_life
from .recorded import open_trace, shortness
from .run_table import kpi_table, replica_rows, replica_table, without_nan

# Seconds between two looks at how far a run is.
_POLL_S = 0.1


def simulate(
    *,
    trace: Annotated[
        str | None,
        typer.Option(help="Trace store or bundled trace; by default both bundled Azure traces."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="A bundled cluster's name, or a YAML file.")
    ] = "demo-16",
    policy: Annotated[
        str, typer.Option(help=f"One of: {', '.join(HEURISTICS)}.")
    ] = "analytic-scorer",
    faults: Annotated[
        str,
        typer.Option(help=f"Hidden trouble: {', '.join(bundled_fault_names())}, or a YAML file."),
    ] = "troubled",
    lookahead: Annotated[
        bool,
        typer.Option("--lookahead", help="Place by short rollouts of the scorer's cheapest."),
    ] = False,
    load: Annotated[float, typer.Option(help="Mean rate, as a share of saturation.")] = 0.8,
    span: Annotated[float, typer.Option(help="Length of the workload, s.")] = 90.0,
    workload: Annotated[
        int, typer.Option(min=0, help="Which of the unseen workloads that the seed gives.")
    ] = 0,
    as_recorded: Annotated[
        bool,
        typer.Option(
            "--as-recorded", help="Run all of --trace as it is, at its own rate; no --load, --span."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same run.")] = 0,
    explain: Annotated[
        int | None,
        typer.Option(
            metavar="REQUEST",
            help="Show the life of this request: its row in the workload, from 0.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers instead of the tables.")
    ] = False,
) -> None:
    """Run one workload under one policy and show what happened."""
    settings = {name: value for name, value in locals().items() if name != "as_json"}
    knobs = heuristic(policy).knobs
    config = replace(
        TROUBLED,
        faults=load_faults(faults),
        lookahead=LookaheadSettings() if lookahead else None,
    )
    if as_recorded:
        requests = _recorded(trace)
        fleet = SimulatedFleet(load_cluster(cluster), requests, config)
    else:
        scenario = _scenario(trace, cluster, load_frac=load, seed=seed, span_s=span)
        requests = _drawn(scenario, workload)
        fleet = SimulatedFleet(scenario.cluster, requests, config)
    if explain is not None:
        fleet = _watching(fleet, explain, config)
    run_with_progress(fleet, knobs, seed=seed)
    life = None if explain is None else read_life(fleet)
    if as_json:
        typer.echo(json.dumps(without_nan(_content(fleet, settings, life)), indent=2))
    else:
        _print(fleet, policy, life)


def _recorded(trace: str | None) -> Workload:
    if trace is None:
        msg = "--as-recorded needs a trace; name one with --trace, or leave --as-recorded out"
        raise ValueError(msg)
    recorded = open_trace(trace)
    if not len(recorded):
        msg = f"trace '{trace}' has 0 requests; expected at least 1"
        raise TraceError(msg)
    return compile_workload(recorded, name=_name(trace))


def _name(trace: str) -> str:
    return Path(trace).name.removesuffix(".trace")


def _scenario(
    trace: str | None, cluster: str, *, load_frac: float, seed: int, span_s: float
) -> Scenario:
    if trace is None:
        return azure_scenario(load_frac=load_frac, seed=seed, cluster_name=cluster, span_s=span_s)
    recorded = open_trace(trace)
    too_short = shortness(recorded)
    if too_short:
        msg = f"trace '{trace}' {too_short}, or pass --as-recorded to run it as it is"
        raise TraceError(msg)
    return scenario_from_trace(
        recorded,
        name=_name(trace),
        cluster=load_cluster(cluster),
        load_frac=load_frac,
        seed=seed,
        span_s=span_s,
    )


def _drawn(scenario: Scenario, index: int) -> Workload:
    console = Console(stderr=True)
    with console.status("measuring what the fleet can take"):
        return scenario.workload(Part.TEST, index)


def _watching(fleet: SimulatedFleet, request: int, config: FleetConfig) -> SimulatedFleet:
    num_requests = fleet.workload.requests.size
    if not 0 <= request < num_requests:
        msg = (
            f"--explain {request} is no request of this workload; expected a row from 0 to "
            f"{num_requests - 1}"
        )
        raise ValueError(msg)
    return SimulatedFleet(fleet.cluster, fleet.workload, replace(config, watched_request=request))


def run_with_progress(fleet: SimulatedFleet, knobs: Knobs, *, seed: int) -> None:
    """Run a whole workload, with a progress bar on stderr.

    The bar looks at the simulation from outside: a run in steps would round otherwise.
    """
    fleet.reset(seed=seed, knobs=knobs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        task = progress.add_task("running", total=fleet.workload.requests.size)
        future = pool.submit(fleet.drain)
        while wait([future], timeout=_POLL_S).not_done:
            progress.update(task, completed=fleet.requests.size)
        future.result()


def _content(
    fleet: SimulatedFleet, settings: dict[str, Any], life: RequestLife | None
) -> dict[str, Any]:
    """All numbers of the run as plain data."""
    workload = fleet.workload
    content: dict[str, Any] = {
        "settings": settings,
        "workload": {
            "name": workload.name,
            "num_requests": int(workload.requests.size),
            "span_s": workload.span_s,
            "mean_rate_rps": workload.mean_rate_rps,
        },
        "kpis": fleet.kpis().as_dict(),
        "replicas": [asdict(row) for row in replica_rows(fleet)],
    }
    if life is not None:
        content["life"] = asdict(life)
        for placement, data in zip(life.placements, content["life"]["placements"], strict=True):
            data["advantages"] = placement.advantages
    return content


def _print(fleet: SimulatedFleet, policy: str, life: RequestLife | None) -> None:
    console, workload = Console(highlight=False), fleet.workload
    if life is not None:
        print_life(console, life)
        return
    console.print(
        f"{workload.name}: {workload.requests.size} requests over {workload.span_s:.1f} s, "
        f"{workload.mean_rate_rps:.2f} requests/s, on cluster {fleet.cluster.name} under {policy}",
        soft_wrap=True,
        markup=False,
    )
    console.print(kpi_table(fleet.kpis()))
    console.print(replica_table(fleet))
