"""Evaluation: the same unseen workloads under every policy, compared in pairs.

All policies meet the same arrivals, faults and lost scrapes. Intervals are bootstrapped over
workloads, and the difference of two policies over their paired workloads.

Does not know: how results are shown (`scripts/report.py`).
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..env.guard import Guard
from ..env.knobs import KNOB_NAMES, Knobs
from ..env.kpis import Kpis, ttft_s
from ..env.scenario import Part, Scenario
from ..env.simulated_fleet import SimulatedFleet
from ..env.simulator.workload import Workload
from ..env.state.feature import FloatArray
from .policy import Policy

NUM_RESAMPLES = 10_000
QUANTILES: FloatArray = np.concatenate([np.linspace(0.0, 0.99, 100), [0.995, 0.999]])
DEFAULT_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float] | FloatArray, *, seed: int = 0) -> Interval:
    """Return the mean of values and its 95 % interval, resampling the values.

    Raises:
        ValueError: there is no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        msg = "cannot bootstrap 0 values; give at least 1"
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(array.size, size=(NUM_RESAMPLES, array.size))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """One policy on all workloads."""

    name: str
    kpis: tuple[Kpis, ...]
    """One for each workload, in order."""
    ttft_quantiles_s: FloatArray
    """TTFT of all requests that got a token, at `QUANTILES`."""

    def values(self, kpi: str) -> FloatArray:
        """Return one indicator of every workload; shape [workloads]."""
        return np.array([getattr(k, kpi) for k in self.kpis], dtype=np.float64)

    def mean(self, kpi: str) -> float:
        """Return the mean of an indicator over the workloads."""
        return float(np.nanmean(self.values(kpi)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobTrack:
    """The knobs that a policy set over one workload."""

    policy: str
    at_s: FloatArray
    values: dict[str, FloatArray]
    """By knob name, shape [windows]; the largest absolute bias as `max_replica_bias`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Results of several policies on the same workloads."""

    scenario: str
    part: Part
    load_frac: float
    rate_rps: float
    seed: int
    policies: tuple[PolicyResult, ...]
    knob_tracks: tuple[KnobTrack, ...] = ()
    goodput_by_load: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """For each policy, (load share, mean goodput share)."""
    is_live: bool = False
    """Whether a live fleet was measured, and not the simulator."""

    @property
    def num_workloads(self) -> int:
        """Workloads that each policy met."""
        return len(self.policies[0].kpis)

    def result(self, name: str) -> PolicyResult:
        """Return the results of a policy.

        Raises:
            ValueError: there is none of that name.
        """
        for policy in self.policies:
            if policy.name == name:
                return policy
        msg = f"no results of policy '{name}'; there are: {[p.name for p in self.policies]}"
        raise ValueError(msg)

    def difference(self, name: str, base: str, kpi: str = "goodput_frac") -> Interval:
        """Return the paired difference of two policies in an indicator, first minus base."""
        return bootstrap(self.result(name).values(kpi) - self.result(base).values(kpi))


def run_policy(
    scenario: Scenario,
    workload: Workload,
    policy: Policy,
    *,
    seed: int,
    window_s: float = DEFAULT_WINDOW_S,
    guard: Guard | None = None,
) -> tuple[SimulatedFleet, KnobTrack]:
    """Run one workload under a policy and return the fleet at its end and the knobs in force."""
    fleet = SimulatedFleet(scenario.cluster, workload, scenario.config, guard=guard)
    knobs = policy.begin()
    fleet.reset(seed=seed, knobs=knobs)
    moments, settings = [0.0], [knobs]
    while not policy.is_constant and fleet.now_s < workload.span_s:
        knobs = fleet.apply(policy.act(fleet.state()))
        moments.append(fleet.now_s)
        settings.append(knobs)
        fleet.advance(window_s)
    fleet.drain()
    return fleet, knob_track(policy.name, moments, settings)


def knob_track(name: str, moments: Sequence[float], settings: Sequence[Knobs]) -> KnobTrack:
    """Return the track of a policy that set these knobs at these moments."""
    columns = np.array([knobs.values for knobs in settings])
    values = {knob: columns[:, i] for i, knob in enumerate(KNOB_NAMES)}
    values["max_replica_bias"] = np.array(
        [np.abs(knobs.replica_bias).max(initial=0.0) for knobs in settings]
    )
    return KnobTrack(policy=name, at_s=np.array(moments), values=values)


PolicyMaker = Callable[[], Policy]


def evaluate(
    scenario: Scenario,
    makers: dict[str, PolicyMaker],
    *,
    num_workloads: int,
    part: Part = Part.TEST,
    loads: Sequence[float] = (),
    num_load_workloads: int = 3,
    on_run: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run every policy on the same workloads, and on some at other loads.

    `makers` gives a fresh policy for each run; `on_run` is called after each of the
    `num_runs(...)` runs.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:

        def run_all(load_frac: float | None, count: int) -> dict[str, list[_Run]]:
            workloads = [scenario.workload(part, i, load_frac=load_frac) for i in range(count)]
            futures = {
                name: [
                    pool.submit(_run, scenario, workload, make(), index, on_run)
                    for index, workload in enumerate(workloads)
                ]
                for name, make in makers.items()
            }
            return {name: [f.result() for f in row] for name, row in futures.items()}

        runs = run_all(None, num_workloads)
        by_load: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        for load_frac in loads:
            for name, row in run_all(load_frac, num_load_workloads).items():
                mean = float(np.mean([run.kpis.goodput_frac for run in row]))
                by_load[name].append((load_frac, mean))
    return Evaluation(
        scenario=scenario.name,
        part=part,
        load_frac=scenario.load_frac,
        rate_rps=scenario.rate_rps,
        seed=scenario.seed,
        policies=tuple(
            policy_result(name, [run.kpis for run in row], [run.ttft_s for run in row])
            for name, row in runs.items()
        ),
        knob_tracks=tuple(row[0].track for row in runs.values() if row[0].track.at_s.size > 1),
        goodput_by_load={name: tuple(points) for name, points in by_load.items()},
    )


def num_runs(
    num_policies: int, num_workloads: int, num_loads: int = 0, num_load_workloads: int = 3
) -> int:
    """Return how many runs an evaluation makes, for a progress bar."""
    return num_policies * (num_workloads + num_loads * num_load_workloads)


@dataclass(frozen=True, slots=True)
class _Run:
    kpis: Kpis
    ttft_s: FloatArray
    track: KnobTrack


def _run(
    scenario: Scenario,
    workload: Workload,
    policy: Policy,
    index: int,
    on_run: Callable[[], None],
) -> _Run:
    fleet, track = run_policy(scenario, workload, policy, seed=index)
    ttft = ttft_s(fleet.requests)
    run = _Run(fleet.kpis(), ttft[np.isfinite(ttft)], track)
    on_run()
    return run


def policy_result(name: str, kpis: Sequence[Kpis], ttft_s: Sequence[FloatArray]) -> PolicyResult:
    """Return the result of a policy from the indicators and known TTFTs of each workload."""
    ttft = np.concatenate(ttft_s)
    quantiles = np.quantile(ttft, QUANTILES) if ttft.size else np.full(QUANTILES.size, np.nan)
    return PolicyResult(name=name, kpis=tuple(kpis), ttft_quantiles_s=quantiles)
