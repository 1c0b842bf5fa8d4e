"""`trimtab evaluate --live`: the same comparison on a live fleet, through its gateway's ports.

Does not know: how turns are taken (`runtime/live_fleet/live_evaluation.py`), or how results are
shown.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..agents.evaluation import DEFAULT_WINDOW_S, Evaluation, PolicyMaker
from ..env.cluster import ClusterSpec
from ..env.scenario import Part, Scenario
from ..runtime.admin.client import AdminClient, read_token
from ..runtime.live_fleet.live_evaluation import evaluate_live
from ..runtime.live_fleet.live_fleet import LiveFleet, LiveFleetConfig
from ..runtime.live_fleet.live_traffic import ComingTraffic, PlayedTraffic, Traffic
from ..runtime.load.player import LoadConfig
from ..traces.errors import ConfigError
from ..traces.transform import cut_lengths

# Knobs rule for so many windows if whoever set them is gone.
_LEASE_WINDOWS = 10.0
# Most time between two turns for what is still open, s.
_SETTLE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTarget:
    """Where a live fleet is, and what is sent to it."""

    admin_url: str
    token_file: Path
    gateway_url: str | None
    """Where a load is sent; None: no load, traffic that comes is counted."""
    model: str
    rate_rps: float | None
    """None: the load share of what the simulator says that the fleet can take."""
    max_input_tokens: int
    max_output_tokens: int


def live_scenario(scenario: Scenario, cluster: ClusterSpec, target: LiveTarget) -> Scenario:
    """Return a scenario on a live cluster, its requests no longer than the engines take."""
    parts = {
        part: cut_lengths(
            trace,
            max_input_tokens=target.max_input_tokens,
            max_output_tokens=target.max_output_tokens,
        )
        for part, trace in scenario.parts.items()
    }
    return replace(scenario, cluster=cluster, parts=parts)


def traffic_of(scenario: Scenario, target: LiveTarget) -> Traffic:
    """Return what is played; a load's clients show the key in TRIMTAB_API_KEY, if there is one.

    Raises:
        ConfigError: the gateway's address is none.
    """
    if target.gateway_url is None:
        return ComingTraffic(span_s=scenario.span_s)
    parts = urlsplit(target.gateway_url)
    if parts.scheme != "http" or not parts.hostname or parts.port is None:
        msg = f"--gateway must be http://HOST:PORT, got '{target.gateway_url}'"
        raise ConfigError(msg)
    return PlayedTraffic(
        scenario=scenario,
        rate_rps=scenario.rate_rps if target.rate_rps is None else target.rate_rps,
        load=LoadConfig(host=parts.hostname, port=parts.port, model=target.model),
        part=Part.TEST,
    )


def run_live(
    scenario: Scenario, makers: dict[str, PolicyMaker], target: LiveTarget, *, num_rounds: int
) -> Evaluation:
    """Evaluate on a live fleet, with a progress bar on stderr; then its gateway rules again.

    Raises:
        AdminError: the gateway cannot be reached, or the token not be read.
        LoadError: a load failed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    lease_s = _LEASE_WINDOWS * DEFAULT_WINDOW_S
    with (
        AdminClient(target.admin_url, read_token(target.token_file), lease_s=lease_s) as link,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(
            f"{len(makers)} policies, {scenario.span_s:g} s each", total=num_rounds * len(makers)
        )
        traffic = traffic_of(live_scenario(scenario, link.cluster(), target), target)
        settle_s = 0.0 if target.gateway_url is None else _SETTLE_S
        fleet = LiveFleet(link, LiveFleetConfig(settle_s=settle_s))
        try:
            return evaluate_live(
                fleet,
                makers,
                traffic,
                num_rounds=num_rounds,
                on_run=lambda: progress.advance(task),
            )
        finally:
            link.withdraw()
