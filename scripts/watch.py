"""Command `trimtab watch`: this machine as a hub sees it, through the whole telemetry path.

A probe samples the machine, an aggregator sums up and finds sudden changes, a hub keeps the state;
all three run in this process. Engines and other machines are not watched here.

Does not know: how any of the three works.
"""

import asyncio
import platform
import time
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..env.state.cluster_state import ClusterState
from ..env.state.feature import Node
from ..env.state.registry import FEATURES_BY_NODE
from ..runtime.telemetry.aggregator import Aggregator
from ..runtime.telemetry.derivation import NODES, Derivation
from ..runtime.telemetry.features.link_features import rack_links
from ..runtime.telemetry.features.rack_constants import rack_constants
from ..runtime.telemetry.features.server_facts import ServerFacts, facts_of_driver
from ..runtime.telemetry.fleet_layout import fleet_of_racks
from ..runtime.telemetry.hub import Hub
from ..runtime.telemetry.probes.backends import BACKENDS
from ..runtime.telemetry.probes.probe import Probe
from ..runtime.telemetry.probes.runner import Place, ProbeRunner
from ..runtime.telemetry.rack_layout import RackLayout, ServerPlace
from ..runtime.telemetry.service import AggregatorService, HubService
from ..runtime.telemetry.transport import InProcessTransport

RACK = "here"
# s between two pictures of the table
_REFRESH_S = 0.5
# s until something must be known; compiling takes most of it, the first time ever
_FIRST_S = 60.0


def watch(
    *,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long to watch, once something is known.")
    ] = 5.0,
    backend: Annotated[
        Literal["auto", "nvml", "host"],
        typer.Option(help="Whom to ask: GPUs and host, or the host alone."),
    ] = "auto",
) -> None:
    """Watch this machine: what is measured, how old it is, what changed suddenly."""
    probe = BACKENDS[backend]({})
    try:
        hub = asyncio.run(_watched(probe, seconds))
    finally:
        probe.close()
    _print_summary(Console(highlight=False), hub)


async def _watched(probe: Probe, seconds: float) -> Hub:
    """Run probe, aggregator and hub for some time; return the hub."""
    name = platform.node() or "localhost"
    facts = facts_of_driver(name, probe.members.gpus)
    layout = _rack_of(facts)
    hub = Hub(fleet_of_racks([layout]))
    aggregator = Aggregator(layout, Derivation(rack_constants([facts])), epoch=1)
    transport = InProcessTransport()
    place = Place(probe=name, server=name, rack=RACK)
    services = (
        HubService(hub, transport),
        AggregatorService(aggregator, transport),
        ProbeRunner(probe, place, transport),
    )
    tasks = [asyncio.create_task(service.run()) for service in services]
    end_s, is_known = time.monotonic() + _FIRST_S, False
    with Live(console=Console(), refresh_per_second=4, transient=True) as live:
        while (now_s := time.monotonic()) < end_s:
            live.update(_table(hub.state(now_s)))
            if not is_known and np.isfinite(hub.sampled_at_s).any():
                end_s, is_known = time.monotonic() + seconds, True
            await asyncio.wait(tasks, timeout=min(_REFRESH_S, end_s - now_s))
            for task in tasks:
                if task.done():
                    task.result()  # raises what stopped it
        final = _table(hub.state(time.monotonic()))
    Console(highlight=False).print(final)
    for service in services:
        service.stop()
    await asyncio.gather(*tasks)
    await transport.close()
    return hub


def _rack_of(facts: ServerFacts) -> RackLayout:
    place = ServerPlace(
        server=facts.name,
        probe=facts.name,
        num_gpus=len(facts.gpus),
        num_links=len(rack_links((facts,))),
    )
    return RackLayout(rack=RACK, servers=(place,))


def _table(state: ClusterState) -> Table:
    """Return what is known, one row a feature and node."""
    table = Table("node", "feature", "value", "unit", "age s", box=None)
    for node in NODES:
        for row in range(len(state.values[node])):
            for i, feature in enumerate(FEATURES_BY_NODE[node]):
                if state.is_valid[node][row, i]:
                    value = f"{state.values[node][row, i]:.4g}"
                    age = f"{state.age_s[node][row]:.2f}"
                    table.add_row(f"{node} {row}", feature.name, value, feature.unit, age)
    if not table.row_count:
        table.add_row("nothing yet", "", "", "", "")
    return table


def _print_summary(console: Console, hub: Hub) -> None:
    for change in list(hub.changes)[:5]:
        console.print(f"changed: {change}", markup=False)
    unused = {str(reason): number for reason, number in hub.counts.by_reason.items() if number}
    num_features = sum(len(FEATURES_BY_NODE[node]) for node in Node)
    console.print(f"frames not used: {unused or 'none'}; features in the registry: {num_features}")
