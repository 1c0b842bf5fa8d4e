"""Episodes of a site: a workload, the fleet that serves it, and the regime of every moment.

Does not know: schedulers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ...traces.schema import RequestTrace
from ...traces.transform import merge
from ..cluster import ClusterSpec
from ..guard import Guard
from ..simulated_fleet import SimulatedFleet
from ..simulator.faults.script import Drill, ScriptedTrouble
from ..simulator.faults.slow_spans import SlowSpan
from ..simulator.setup import FleetConfig
from ..simulator.workload import Workload, compile_workload
from .capacity import site_capacity
from .goodput import goodput
from .library import TraceLibrary
from .regime import RegimeKind, RegimeSpan, draw_schedule
from .requests import draw_requests, with_classes
from .sampling import other_traffic
from .site import Site
from .split import site_rng, site_seed
from .traffic import Shape, Traffic

STEADY_SPAN_S = 90.0
"""Span of a steady episode, unless it is given."""
CHANGING_SPAN_S = 480.0
"""Span of an episode with regimes, unless it is given: about four of them."""

# Traffic of the regimes that change it.
_REGIME_SHAPES: dict[RegimeKind, Shape] = {
    RegimeKind.BURSTS: Shape.CODE_BURSTS,
    RegimeKind.LONG_PROMPTS: Shape.LONG_PROMPTS,
}
# A change of the mix: share of urgent sessions, and their limits over the site's.
_MIX_URGENT_FRAC, _MIX_LIMIT_FACTOR = 0.85, 0.75
# A failure: share of the replicas that are lost, when after its start, and for how long, s.
_LOST_FRAC, _LOST_AFTER_S, _LOST_SPAN_S = 0.25, (0.0, 15.0), (40.0, 60.0)
# Beside it, the share of the others that are slow for a while, by how much and for how long, s.
_SLOW_FRAC, _SLOW_FACTOR, _SLOW_SPAN_S = 0.33, (1.3, 2.2), (15.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One workload of a site, with the trouble that belongs to it."""

    site: Site
    number: int
    workload: Workload
    config: FleetConfig
    """How the site's fleet behaves during it."""
    regimes: tuple[RegimeSpan, ...]
    """In order, without gaps, from 0 to its end; one steady span at a steady site."""

    @property
    def cluster(self) -> ClusterSpec:
        """The site's fleet."""
        return self.site.cluster

    @property
    def span_s(self) -> float:
        """Its length."""
        return self.regimes[-1].end_s

    def fleet(self, *, guard: Guard | None = None) -> SimulatedFleet:
        """Return a fleet of the site with this workload; call its `reset` with a seed and knobs."""
        return SimulatedFleet(self.cluster, self.workload, self.config, guard=guard)

    def regime_at(self, moments_s: np.ndarray) -> np.ndarray:
        """Return the place in `regimes` of each moment; of the last one for any after it."""
        starts_s = [regime.start_s for regime in self.regimes[1:]]
        return np.searchsorted(starts_s, moments_s, side="right")

    def goodput_by_regime(self, requests: np.ndarray) -> dict[RegimeKind, float]:
        """Return the goodput of the requests that arrived in each kind of regime."""
        places = self.regime_at(requests["arrival_s"])
        kinds = np.array([regime.kind for regime in self.regimes])[places]
        return {RegimeKind(kind): goodput(requests[kinds == kind]) for kind in dict.fromkeys(kinds)}


def site_episode(
    site: Site, number: int, traces: TraceLibrary | None, *, span_s: float | None = None
) -> Episode:
    """Return an episode of a site; the same arguments give the same episode.

    Raises:
        ValueError: the number is below 0, the span not above 0, or the site draws from a recording
            and there are no traces.
    """
    regimes = episode_regimes(site, number, span_s=span_s)
    pieces = [
        _piece(site, regime, traces, site_seed(site.split, site.number, 4, number, i))
        for i, regime in enumerate(regimes)
    ]
    trace = pieces[0] if len(pieces) == 1 else merge(pieces)
    crashes, slow_spans = _failures(site, regimes, site_rng(site.split, site.number, 5, number))
    return Episode(
        site=site,
        number=number,
        workload=compile_workload(trace, name=f"{site.name}/{number}", levels=site.levels),
        config=replace(site.config, script=crashes, slow_spans=slow_spans),
        regimes=regimes,
    )


def episode_regimes(
    site: Site, number: int, *, span_s: float | None = None
) -> tuple[RegimeSpan, ...]:
    """Return the regimes of an episode; one steady span at a steady site.

    Raises:
        ValueError: the number is below 0, or the span not above 0.
    """
    span_s = _span_s(site, span_s)
    rng = site_rng(site.split, site.number, 3, number)
    if site.is_changing:
        return draw_schedule(site.regimes, site.load_frac, span_s, rng)
    kind = RegimeKind.STEADY
    return (RegimeSpan(kind=kind, start_s=0.0, end_s=span_s, load_frac=site.load_frac),)


def site_workload(
    site: Site, number: int, traces: TraceLibrary | None, *, span_s: float | None = None
) -> Workload:
    """Return the workload of an episode of a site."""
    return site_episode(site, number, traces, span_s=span_s).workload


def site_fleet(
    site: Site, number: int, traces: TraceLibrary | None, *, span_s: float | None = None
) -> SimulatedFleet:
    """Return a fleet of a site with the workload and the trouble of an episode."""
    return site_episode(site, number, traces, span_s=span_s).fleet()


def site_rate_rps(site: Site, traces: TraceLibrary | None) -> float:
    """Return the mean rate of a site's own traffic, outside of regimes that say otherwise."""
    return site.load_frac * site_capacity(site, site.traffic, traces).rate_rps


def _span_s(site: Site, span_s: float | None) -> float:
    if span_s is None:
        return CHANGING_SPAN_S if site.is_changing else STEADY_SPAN_S
    if not 0.0 < span_s < np.inf:
        msg = f"span_s must be above 0 and finite, got {span_s}"
        raise ValueError(msg)
    return span_s


def _traffic_of(site: Site, kind: RegimeKind, traces: TraceLibrary | None) -> Traffic:
    return other_traffic(site, _REGIME_SHAPES.get(kind, site.traffic.shape), traces)


def _piece(site: Site, regime: RegimeSpan, traces: TraceLibrary | None, seed: int) -> RequestTrace:
    """Requests of one regime, at their moments in the episode."""
    traffic = _traffic_of(site, regime.kind, traces)
    rate_rps = regime.load_frac * site_capacity(site, traffic, traces).rate_rps
    drawn = draw_requests(site, traffic, traces, rate_rps=rate_rps, span_s=regime.span_s, seed=seed)
    urgent_frac, ttft_slo_s, tpot_slo_s = site.urgent_frac, site.ttft_slo_s, site.tpot_slo_s
    if regime.kind is RegimeKind.SLO_MIX:
        urgent_frac = max(urgent_frac, _MIX_URGENT_FRAC)
        ttft_slo_s = (_MIX_LIMIT_FACTOR * ttft_slo_s[0], ttft_slo_s[1])
        tpot_slo_s = (_MIX_LIMIT_FACTOR * tpot_slo_s[0], tpot_slo_s[1])
    classed = with_classes(
        drawn, urgent_frac=urgent_frac, limits=(ttft_slo_s, tpot_slo_s), seed=seed
    )
    return classed.with_columns(arrival_s=pa.array(classed.arrival_s + regime.start_s))


def _failures(
    site: Site, regimes: tuple[RegimeSpan, ...], rng: np.random.Generator
) -> tuple[tuple[ScriptedTrouble, ...], tuple[SlowSpan, ...]]:
    """What the regimes of failure do to the replicas."""
    crashes: list[ScriptedTrouble] = []
    slow_spans: list[SlowSpan] = []
    for regime in regimes:
        if regime.kind is not RegimeKind.FAILURE:
            continue
        order = rng.permutation(site.num_replicas)
        num_lost = max(1, round(_LOST_FRAC * site.num_replicas))
        crash_s = regime.start_s + float(rng.uniform(*_LOST_AFTER_S))
        restart_s = crash_s + float(rng.uniform(*_LOST_SPAN_S))
        for replica in order[:num_lost].tolist():
            crashes.append(ScriptedTrouble(at_s=crash_s, drill=Drill.CRASH, replica=replica))
            crashes.append(ScriptedTrouble(at_s=restart_s, drill=Drill.RESTART, replica=replica))
        slow_spans += _slow_ones(regime, order[num_lost:].tolist(), rng)
    return tuple(crashes), tuple(slow_spans)


def _slow_ones(
    regime: RegimeSpan, replicas: list[int], rng: np.random.Generator
) -> Iterator[SlowSpan]:
    for replica in replicas:
        if rng.random() < _SLOW_FRAC:
            start_s = float(rng.uniform(regime.start_s, regime.end_s))
            yield SlowSpan(
                start_s=start_s,
                end_s=start_s + float(rng.uniform(*_SLOW_SPAN_S)),
                replica=replica,
                factor=float(rng.uniform(*_SLOW_FACTOR)),
            )
