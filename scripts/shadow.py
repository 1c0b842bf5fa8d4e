"""Commands `trimtab shadow ...`: what another scheduler would have done, before it may do it.

Does not know: how decisions are made again, or runs simulated.

Run: `trimtab shadow report --fleet runs/fleet/fleet.yaml --record runs/record
--decisions runs/decisions --scheduler analytic-scorer`.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from ..agents.bundle import load_bundle
from ..agents.generalist import bundle_directory
from ..agents.heuristics import HEURISTICS, heuristic
from ..agents.policy import LearnedPolicy, Policy, constant_policy
from ..env.cluster import ClusterSpec
from ..env.simulator.setup import replica_coefficients
from ..runtime.fidelity.live_fit import fit_run, read_run
from ..runtime.launcher.live_fleet_file import LiveFleetSpec, read_live_fleet
from ..runtime.recorder.recorder import TRACE_DIR, read_outcomes
from ..runtime.shadow.access_log import read_access_log
from ..runtime.shadow.beside import decide_beside
from ..runtime.shadow.redecisions import Redecision, read_candidates, redecide
from ..runtime.shadow.report import ShadowReport, make_report, read_windows
from ..runtime.shadow.resimulation import gain_of, simulate, simulator_error, workload_of
from ..traces.errors import ConfigError
from ..traces.store import read_store
from .shadow_page import write_shadow_page
from .shadow_text import print_report

app = typer.Typer(
    help="See what another scheduler would have done, before it may do it.",
    no_args_is_help=True,
    add_completion=False,
)

Fleet = Annotated[Path, typer.Option(help="Live fleet file.")]
Scheduler = Annotated[str, typer.Option(help="Scheduler to compare with.")]
Html = Annotated[Path | None, typer.Option(help="Write the report as a page here, too.")]


def _policy(scheduler: str | None, bundle: Path | None) -> Policy:
    if (scheduler is None) == (bundle is None):
        msg = "give either --scheduler NAME or --bundle DIR, and not both"
        raise ConfigError(msg)
    if bundle is not None:
        return LearnedPolicy(load_bundle(bundle_directory(bundle)), name=bundle.name)
    assert scheduler is not None
    if scheduler not in HEURISTICS:
        msg = f"unknown scheduler '{scheduler}'; known: {', '.join(HEURISTICS)}"
        raise ConfigError(msg)
    return constant_policy(heuristic(scheduler))


def _decisions(
    directory: Path, spec: LiveFleetSpec, policy: Policy
) -> tuple[str, list[Redecision]]:
    """Return who ruled, and its decisions made again by another."""
    candidates = read_candidates(directory)
    rulers = candidates["policy_version"].to_pylist()
    base = max(set(rulers), key=rulers.count) if rulers else ""
    knobs = policy.begin()
    nominal = replica_coefficients(spec.cluster)
    return base, redecide(candidates, nominal, lambda _: knobs)


def fitted_cluster(spec: LiveFleetSpec, record: Path) -> ClusterSpec:
    """Return a fleet's cluster with its measured times fitted to a recording; else as it is."""
    times = spec.cluster.replicas[0].measured
    if any(replica.measured is None for replica in spec.cluster.replicas) or times is None:
        return spec.cluster
    run = read_run(record, [replica.name for replica in spec.cluster.replicas])
    return fit_run(run, spec.cluster, times)


@app.command()
def report(
    *,
    fleet: Fleet,
    record: Annotated[Path, typer.Option(help="Recording of the run.")],
    decisions: Annotated[Path, typer.Option(help="Decision log of the run.")],
    scheduler: Annotated[str | None, typer.Option(help="Scheduler to compare with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Policy to compare with.")] = None,
    fit: Annotated[
        bool, typer.Option(help="Fit the simulator to the recording first, if times are measured.")
    ] = True,
    served_by: Annotated[
        str | None, typer.Option(help="Scheduler that served; as logged if not given.")
    ] = None,
    html: Html = None,
) -> None:
    """Compare what served with another, from a recording and its decision log."""
    spec, other = read_live_fleet(fleet), _policy(scheduler, bundle)
    console = Console(highlight=False)
    base_name, remade = _decisions(decisions, spec, other)
    base_name = served_by or base_name
    base = _policy(base_name if base_name in HEURISTICS else "analytic-scorer", None)
    workload = workload_of(read_store(record / TRACE_DIR), spec.cluster)
    with console.status("simulating the recorded run"):
        cluster = fitted_cluster(spec, record) if fit else spec.cluster
        base_run = simulate(cluster, workload, base)
        other_run = simulate(cluster, workload, other)
    outcomes = read_outcomes(record)
    measured = outcomes["ttft_s"].to_numpy(zero_copy_only=False).astype(np.float64)
    # A recording that was cut off may have outcomes beyond its trace.
    error = simulator_error(base_run, measured[: base_run.ttft_s.size])
    made = make_report(
        base_name,
        other.name,
        remade,
        runs=(base_run, other_run, gain_of(other_run, base_run)),
        error=error,
        windows=read_windows(record),
    )
    _show(console, made, html)


@app.command()
def beside(
    *,
    fleet: Fleet,
    access_log: Annotated[Path, typer.Option(help="Access log of the router, JSON lines.")],
    scheduler: Scheduler = "analytic-scorer",
    ttft_s: Annotated[float, typer.Option(min=0.001, help="Limit on TTFT, s.")] = 2.0,
    tpot_s: Annotated[float, typer.Option(min=0.0001, help="Limit on TPOT, s.")] = 0.2,
    html: Html = None,
) -> None:
    """Compare a router that is not ours with a scheduler of ours, from its access log."""
    spec, other = read_live_fleet(fleet), _policy(scheduler, None)
    upstreams = {f"{r.host}:{r.port}": r.name for r in spec.replicas}
    log = read_access_log(access_log, upstreams)
    remade = decide_beside(log.requests, spec, other.begin(), limits=(ttft_s, tpot_s))
    console = Console(highlight=False)
    if log.left_out:
        parts = ", ".join(f"{number} x {why}" for why, number in log.left_out.items())
        console.print(f"lines left out: {parts}", markup=False)
    _show(console, make_report("the router", other.name, remade), html)


def _show(console: Console, made: ShadowReport, html: Path | None) -> None:
    print_report(console, made)
    if html is not None:
        write_shadow_page(made, html)
        console.print(f"page: {html}")
