"""Command `trimtab policy`: rules explained, and tried on a recorded trace.

Does not know: how rules are compiled or obeyed.
"""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..agents.constraints.compilation import compile_policy
from ..agents.constraints.policy_file import Policy, read_policy
from ..agents.constraints.reach import PolicyReach, policy_reach
from ..agents.constraints.replay import PolicyReplay, replay_policy
from ..env.cluster import ClusterSpec
from ..env.cluster_file import load_cluster
from ..env.fault_file import bundled_fault_names, load_faults
from ..env.kpis import Kpis
from ..env.scenario import Part, azure_trace, scenario_from_trace
from ..env.simulator.setup import FleetConfig
from ..env.simulator.workload import Workload, compile_workload
from ..traces.errors import ConfigError
from ..traces.schema import RequestTrace
from ..traces.transform import slice_time
from .policy_table import reach_table
from .recorded import open_trace
from .run_table import without_nan

# Events that a terminal shows; all are in the output of --json.
_NUM_EVENTS = 20

app = typer.Typer(
    help="Explain rules of operators and owners, and try them on a trace.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Keep `check` a command of its own."""


@app.command()
def check(
    *,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Policy files, or 'default'.")
    ],
    cluster: Annotated[
        str | None, typer.Option(help="A bundled cluster's name, or a YAML file.")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            help="What to try the rules on: a trace store, a bundled trace, or 'azure': both "
            "bundled Azure traces, as tenants azure-conv and azure-code."
        ),
    ] = None,
    span: Annotated[float, typer.Option(min=1.0, help="First part of the trace to try, s.")] = 300,
    load: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=10,
            help="Superpose parts of the trace to this share of the fleet's saturation "
            "(default: its own rate).",
        ),
    ] = None,
    faults: Annotated[
        str,
        typer.Option(help=f"Hidden trouble: {', '.join(bundled_fault_names())}, or a YAML file."),
    ] = "troubled",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same trouble.")] = 0,
    count_only: Annotated[
        bool,
        typer.Option(
            "--count-only", help="Count what each rule touches in all of the trace; run nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
    ] = False,
) -> None:
    """Check rules, explain each in a sentence, and say what it would have done on a trace."""
    # A trace without a cluster is tried on the one of the demo.
    name = cluster if cluster is not None or trace is None else "demo-16"
    spec = load_cluster(name) if name is not None else None
    try:
        policy = read_policy(*files)
        compiled = compile_policy(policy, spec) if spec is not None else None
    except ConfigError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"faults": _faults_in(error)}, indent=2))
        raise typer.Exit(2) from error
    warnings = compiled.warnings if compiled is not None else ()
    reach = replay = None
    if trace is not None and spec is not None and compiled is not None:
        recorded = azure_trace(seed) if trace == "azure" else open_trace(trace)
        part = recorded if count_only else slice_time(recorded, 0.0, span)
        reach = policy_reach(policy, compiled, spec, part)
        if not count_only:
            config = FleetConfig(faults=load_faults(faults))
            workload = _workload(spec, (trace, recorded), (span, seed), load)
            replay = _replay(policy, spec, workload, config, seed)
    if as_json:
        content = _content(policy, warnings, reach, replay)
        typer.echo(json.dumps(without_nan(content), indent=2))
    else:
        _print(policy, warnings, reach, replay)


def _faults_in(error: ConfigError) -> list[str]:
    """The faults of a message that lists several, or the message."""
    text, *faults = str(error).split("\n  - ")
    return faults or [text]


def _workload(
    cluster: ClusterSpec,
    source: tuple[str, RequestTrace],
    run: tuple[float, int],
    load: float | None,
) -> Workload:
    """Return the first part of a trace, or its unseen part at a share of saturation."""
    (name, trace), (span_s, seed) = source, run
    if load is None:
        return compile_workload(slice_time(trace, 0.0, span_s), name=name)
    scenario = scenario_from_trace(
        trace, name=name, cluster=cluster, load_frac=load, span_s=span_s, seed=seed
    )
    return scenario.workload(Part.TEST, 0)


def _replay(
    policy: Policy, cluster: ClusterSpec, workload: Workload, config: FleetConfig, seed: int
) -> PolicyReplay:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replay without and with the rules", total=2)
        return replay_policy(
            policy, cluster, workload, config=config, seed=seed,
            on_run=lambda: progress.advance(task),
        )  # fmt: skip


def _content(
    policy: Policy,
    warnings: tuple[str, ...],
    reach: PolicyReach | None,
    replay: PolicyReplay | None,
) -> dict[str, Any]:
    rules = [
        {"section": section, "name": name, "sentence": text}
        for section, name, text in policy.sentences()
    ]
    content: dict[str, Any] = {"policy": policy.name, "rules": rules, "warnings": list(warnings)}
    found = {"reach": reach, "replay": replay}
    return content | {key: asdict(one) for key, one in found.items() if one is not None}


def _print(
    policy: Policy,
    warnings: tuple[str, ...],
    reach: PolicyReach | None,
    replay: PolicyReplay | None,
) -> None:
    console = Console(highlight=False)
    table = Table(title=f"policy '{policy.name}'", show_lines=True)
    for title in ("section", "rule", "in words"):
        table.add_column(title, overflow="fold")
    for section, name, text in policy.sentences():
        table.add_row(section, name, text)
    console.print(table)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if reach is not None:
        console.print(reach_table(reach))
    if replay is not None:
        _print_replay(console, replay)


def _print_replay(console: Console, replay: PolicyReplay) -> None:
    table = Table(title=f"replayed, {replay.after.num_requests:,} requests")
    for title in ("section", "rule", "requests", "changed", "what it would have done"):
        table.add_column(title, justify="right" if title in ("requests", "changed") else "left")
    for impact in replay.impacts:
        concerns = impact.section in ("pools", "tiers", "tenants", "adapters")
        counts = (str(impact.num_requests), str(impact.num_changed)) if concerns else ("", "")
        table.add_row(impact.section, impact.name, *counts, impact.text)
    console.print(table)
    table = Table(title="outcome")
    table.add_column("", no_wrap=True)
    for title in ("goodput %", "refused %", "failed %", "TTFT P99 s", "TPOT P99 ms"):
        table.add_column(title, justify="right")
    table.add_row("without the rules", *_cells(replay.before))
    table.add_row("with the rules", *_cells(replay.after))
    console.print(table)
    for event in replay.events[:_NUM_EVENTS]:
        console.print(event, markup=False)
    if len(replay.events) > _NUM_EVENTS:
        more = len(replay.events) - _NUM_EVENTS
        console.print(f"... and {more} events more; --json prints all")


def _cells(kpis: Kpis) -> tuple[str, ...]:
    return (
        f"{100 * kpis.goodput_frac:.2f}",
        f"{100 * kpis.shed_frac:.2f}",
        f"{100 * kpis.failed_frac:.2f}",
        f"{kpis.ttft_p99_s:.3f}",
        f"{1e3 * kpis.tpot_p99_s:.1f}",
    )
