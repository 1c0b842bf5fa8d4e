"""Five kinds of trouble on the demo cluster, each at a known moment, with and without the shield.

Every run of a kind meets the same arrivals. Two schedulers: the analytic scorer, which refuses what
would be late, and llm-d's weights, which refuse nothing and live on metrics pages.

Does not know: how results are shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trimtab.agents.heuristics import heuristic
from trimtab.agents.shield.breaker_file import default_breakers
from trimtab.agents.shield.emergency_rules import DEFAULT_RULES
from trimtab.agents.shield.shield import ShieldConfig
from trimtab.agents.shield.simulated_shield import SimulatedShield
from trimtab.env.cluster import ClusterSpec
from trimtab.env.kpis import is_met, ttft_s
from trimtab.env.masks import Mask
from trimtab.env.scenario import Part, Scenario, azure_scenario
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults.script import Drill, ScriptedTrouble
from trimtab.env.simulator.layout import FAILED
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload, compile_workload
from trimtab.traces.superposition import superpose
from trimtab.traces.transform import merge

Script = tuple[ScriptedTrouble, ...]

BEGIN_S = 20.0
"""Moment of the trouble, from the start of a run."""
SPAN_S = 60.0
TROUBLE_S = 15.0
SCHEDULERS = ("analytic-scorer", "llm-d-weighted")
SURGE_FACTOR = 10.0
SURGE_S = 2.0
LOAD_FRAC = 0.7
LOST_KV_FRAC = 0.985


def _on(replicas: Sequence[int], drill: Drill, value: float, ends_with: float | None) -> Script:
    begin = [ScriptedTrouble(at_s=BEGIN_S, drill=drill, replica=r, value=value) for r in replicas]
    if ends_with is None:
        return tuple(begin)
    end = [
        ScriptedTrouble(at_s=BEGIN_S + TROUBLE_S, drill=drill, replica=r, value=ends_with)
        for r in replicas
    ]
    return (*begin, *end)


def _memory_spike(cluster: ClusterSpec) -> Script:
    """Half of the replicas lose nearly all of their KV pages to something else."""
    return _on(range(0, len(cluster.replicas), 2), Drill.KV_LOSS, LOST_KV_FRAC, 0.0)


def _gpu_loss(cluster: ClusterSpec) -> Script:
    """The GPUs of four replicas are gone; the gateway sees it only when connections time out."""
    gone = range(4)
    late = [ScriptedTrouble(at_s=BEGIN_S + 10.0, drill=Drill.CRASH, replica=r) for r in gone]
    return (*_on(gone, Drill.DIE, 0.0, None), *late)


def _engine_stall(cluster: ClusterSpec) -> Script:
    """Four engines stand still for ten seconds; their pages look healthy."""
    return _on(range(4), Drill.STALL, 10.0, None)


def _metrics_outage(cluster: ClusterSpec) -> Script:
    """The metrics pages of four engines cannot be read; the engines are fine."""
    return _on(range(4), Drill.PAGE_LOST, 1.0, 0.0)


SCRIPTS: dict[str, Callable[[ClusterSpec], Script]] = {
    "memory spike": _memory_spike,
    "arrival surge": lambda cluster: (),
    "GPU loss": _gpu_loss,
    "engine stall": _engine_stall,
    "metrics outage": _metrics_outage,
}


def _workload(scenario: Scenario, seed: int, *, has_surge: bool) -> Workload:
    """Steady traffic, and in a surge ten times as much from one moment on."""
    base = scenario.workload(Part.TEST, seed)
    if not has_surge:
        return base
    part = scenario.parts[Part.TEST]
    steady = superpose(part, rate_rps=scenario.rate_rps, span_s=SPAN_S, seed=seed)
    more = superpose(
        part, rate_rps=(SURGE_FACTOR - 1.0) * scenario.rate_rps, span_s=SURGE_S, seed=seed + 1000
    )
    later = more.with_columns(arrival_s=pa.array(more.arrival_s + BEGIN_S))
    both = merge([steady, later])
    return compile_workload(both, name=f"surge/{seed}", levels=scenario.levels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run. Shares are of the requests that arrive from the trouble to 10 s after its end."""

    goodput_frac: float
    violation_frac: float
    failed_frac: float
    ttft_p99_s: float
    from_event_s: float | None
    """From the trouble to the first deed of the shield."""
    deeds: tuple[str, ...]


def _judge(fleet: SimulatedFleet) -> tuple[float, float, float, float]:
    requests = fleet.requests
    arrival_s = requests["arrival_s"]
    rows = requests[(arrival_s >= BEGIN_S - 1.0) & (arrival_s < BEGIN_S + TROUBLE_S + 10.0)]
    met, weight = is_met(rows), rows["weight"]
    worth = weight * rows["worth_frac"]
    ttft = ttft_s(rows)
    has_token = np.isfinite(ttft)
    failed = float((rows["status"] == FAILED).mean())
    return (
        float(worth[met].sum() / weight.sum()),
        float(1.0 - met.mean()),
        failed,
        float(np.percentile(ttft[has_token], 99)),
    )


class _Watch(SimulatedShield):
    """A shield that notes when masks change."""

    def __init__(self, config: ShieldConfig) -> None:
        super().__init__(config)
        self.changes: list[tuple[float, str]] = []
        self.before = np.uint16(0)

    def set_limits(self, fleet: SimulatedFleet) -> None:
        """Note what is masked from this moment on that was not before."""
        super().set_limits(fleet)
        masks = self.shield.limits.masks
        for reason in Mask:
            num = int(((masks & ~self.before) & np.uint16(reason) != 0).sum())
            if num:
                self.changes.append((fleet.now_s, f"masks {num} as {reason.name}"))
        self.before = masks


def run(
    scenario: Scenario, trouble: str, scheduler: str, seed: int, *, has_shield: bool
) -> Outcome:
    """Run one workload through one kind of trouble."""
    config = FleetConfig(script=SCRIPTS[trouble](scenario.cluster))
    guard = None
    if has_shield:
        rules = ShieldConfig(emergencies=DEFAULT_RULES, breakers=default_breakers())
        guard = _Watch(rules)
    workload = _workload(scenario, seed, has_surge=trouble == "arrival surge")
    fleet = SimulatedFleet(scenario.cluster, workload, config, guard=guard)
    fleet.reset(seed=seed, knobs=heuristic(scheduler).knobs)
    fleet.drain()
    goodput, violations, failed, ttft_p99_s = _judge(fleet)
    deeds = _deeds(guard) if guard is not None else []
    in_time = [at_s for at_s, _ in deeds if at_s >= BEGIN_S]
    return Outcome(
        goodput_frac=goodput,
        violation_frac=violations,
        failed_frac=failed,
        ttft_p99_s=ttft_p99_s,
        from_event_s=in_time[0] - BEGIN_S if in_time else None,
        deeds=tuple(text for at_s, text in deeds if at_s >= BEGIN_S)[:8],
    )


def _deeds(guard: _Watch) -> list[tuple[float, str]]:
    records = guard.shield.emergencies.records
    deeds = [(one.at_s, f"{one.deed} {one.kind}") for one in records]
    deeds += guard.changes
    deeds += [(alarm.at_s, f"alarm {alarm.name}") for alarm in guard.shield.alarms]
    return sorted(deeds)


def make_scenario() -> Scenario:
    """Return Azure traffic at 70 % of saturation on 16 mixed GPUs, without drawn trouble."""
    return azure_scenario(load_frac=LOAD_FRAC, span_s=SPAN_S)
