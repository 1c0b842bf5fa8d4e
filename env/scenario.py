"""A scenario: a cluster, its hidden trouble, and an endless supply of workloads from one trace.

The trace is cut in time into a training, a validation and a test part. A workload is drawn from
one part by superposing randomly placed windows of it up to the wanted rate, so workloads of
different parts share no request, and the same index always gives the same workload.

Does not know: policies.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache

import numpy as np

from ..traces.bundled import load_bundled
from ..traces.conversations import assign_sessions
from ..traces.schema import RequestTrace
from ..traces.superposition import superpose
from ..traces.transform import merge, slice_time, split, with_service
from .cluster import ClusterSpec
from .cluster_file import load_cluster
from .knobs import Knobs
from .kpis import is_met
from .simulated_fleet import SimulatedFleet
from .simulator.faults import FaultConfig
from .simulator.setup import FleetConfig
from .simulator.workload import ServiceLevels, Workload, compile_workload


class Part(StrEnum):
    """Parts of a trace, in order of time."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


# A fleet keeps up if this weighted share of what arrives meets its limits.
_KEEPS_UP_FRAC = 0.9
# Span of a saturation run, and the part at its start that is not counted, s.
_SATURATION_SPAN_S = 240.0
_WARM_UP_S = 60.0
_BISECTIONS = 7


def _keeps_up(
    cluster: ClusterSpec, trace: RequestTrace, levels: ServiceLevels, rate_rps: float
) -> bool:
    offered = superpose(trace, rate_rps=rate_rps, span_s=_SATURATION_SPAN_S, seed=0)
    fleet = SimulatedFleet(cluster, compile_workload(offered, name="saturation", levels=levels))
    fleet.reset(seed=0, knobs=Knobs.of(predicted_ttft_weight=1.0, elapsed=1.0))
    fleet.drain()
    counted = fleet.requests[fleet.requests["arrival_s"] >= _WARM_UP_S]
    met_weight = counted["weight"][is_met(counted)].sum()
    return bool(met_weight >= _KEEPS_UP_FRAC * counted["weight"].sum())


def saturation_rps(cluster: ClusterSpec, trace: RequestTrace, levels: ServiceLevels) -> float:
    """Return the highest rate of a trace's requests at which a fleet still meets most limits.

    Requests go to the lowest predicted TTFT, without shedding or hidden trouble. The search lies
    between a twentieth of the rate that prefill alone would allow and that rate.
    """
    idle = SimulatedFleet(cluster, compile_workload(trace, name="lengths", levels=levels))
    idle.reset(seed=0)
    token_s = idle.arrays.views["prefill_token_s"]
    high_rps = float((1.0 / token_s).sum() / trace.input_tokens.mean())
    low_rps = high_rps / 20.0
    for _ in range(_BISECTIONS):
        middle_rps = 0.5 * (low_rps + high_rps)
        if _keeps_up(cluster, trace, levels, middle_rps):
            low_rps = middle_rps
        else:
            high_rps = middle_rps
    return low_rps


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Where a policy is trained and judged."""

    name: str
    cluster: ClusterSpec
    parts: dict[Part, RequestTrace]
    """The trace, cut in time."""
    load_frac: float = 0.8
    """Mean rate over the fleet's saturation rate."""
    span_s: float = 90.0
    """Length of a workload."""
    config: FleetConfig = field(default_factory=FleetConfig)
    levels: ServiceLevels = field(default_factory=ServiceLevels)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.load_frac <= 10.0:
            msg = f"load_frac must be in (0, 10], got {self.load_frac}"
            raise ValueError(msg)
        if self.span_s <= 0:
            msg = f"span_s must be above 0, got {self.span_s}"
            raise ValueError(msg)

    @cached_property
    def saturation_rps(self) -> float:
        """Highest rate at which the fleet, without trouble, still meets most limits."""
        return saturation_rps(self.cluster, self.parts[Part.TRAIN], self.levels)

    @property
    def rate_rps(self) -> float:
        """Mean rate of the workloads."""
        return self.load_frac * self.saturation_rps

    def workload(self, part: Part, index: int, *, load_frac: float | None = None) -> Workload:
        """Return workload number `index` of a part; the same arguments give the same workload."""
        rate_rps = self.rate_rps if load_frac is None else load_frac * self.saturation_rps
        trace = self.requests(part, index, rate_rps=rate_rps)
        return compile_workload(trace, name=f"{self.name}/{part}/{index}", levels=self.levels)

    def requests(self, part: Part, index: int, *, rate_rps: float) -> RequestTrace:
        """Return the requests of workload number `index` of a part at a rate, as a trace."""
        order = list(Part).index(part)
        seed = int(np.random.SeedSequence([self.seed, order, index]).generate_state(1)[0])
        return superpose(self.parts[part], rate_rps=rate_rps, span_s=self.span_s, seed=seed)


def scenario_from_trace(
    trace: RequestTrace,
    *,
    name: str,
    cluster: ClusterSpec,
    load_frac: float = 0.8,
    config: FleetConfig | None = None,
    seed: int = 0,
    span_s: float = 90.0,
) -> Scenario:
    """Cut a trace into 50 % training, 15 % validation and 35 % test, in order of time."""
    parts = dict(zip(Part, split(trace, (0.5, 0.15, 0.35)), strict=True))
    return Scenario(
        name=name,
        cluster=cluster,
        parts=parts,
        load_frac=load_frac,
        config=config or FleetConfig(),
        seed=seed,
        span_s=span_s,
    )


# Hidden trouble of the bundled scenario: a replica is slow about a third of the time.
TROUBLED = FleetConfig(
    faults=FaultConfig(
        replica_slowdowns_per_hour=30.0, server_slowdowns_per_hour=10.0, crashes_per_hour=0.3
    )
)


# Tokens of a prompt block in the overlaid conversations: eight KV pages.
AZURE_BLOCK_TOKENS = 128


def azure_trace(seed: int) -> RequestTrace:
    """Return the bundled Azure traces as one: conversation interactive, code as second class.

    The recordings carry no session or prefix identity; conversations are overlaid on the real
    arrivals and lengths (`traces.conversations`).
    """
    tenants = []
    for priority, bundled in enumerate(("azure-conv", "azure-code")):
        recorded = load_bundled(bundled)
        coarse = RequestTrace(recorded.table, AZURE_BLOCK_TOKENS, recorded.source)
        linked = assign_sessions(coarse, seed=seed + priority, max_gap_s=60.0)
        tenants.append(with_service(linked, priority=priority, tenant=bundled))
    span_s = min(trace.span_s for trace in tenants)
    return merge([slice_time(trace, 0.0, span_s) for trace in tenants])


@lru_cache(maxsize=4)
def azure_scenario(
    *, load_frac: float = 0.8, seed: int = 0, cluster_name: str = "demo-16", span_s: float = 90.0
) -> Scenario:
    """Return the bundled scenario: Azure traffic on 16 mixed GPUs with hidden trouble."""
    return scenario_from_trace(
        azure_trace(seed),
        name="azure",
        cluster=load_cluster(cluster_name),
        load_frac=load_frac,
        config=TROUBLED,
        seed=seed,
        span_s=span_s,
    )


SCENARIOS: dict[str, Callable[..., Scenario]] = {"azure": azure_scenario}
