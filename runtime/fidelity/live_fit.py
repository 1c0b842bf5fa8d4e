"""Fits the simulator to a recorded live run: the times of each replica with which it is nearest.

What was measured of an idle engine is where the search begins. Under load engines disturb each
other, gateways and clients take their share, and some replicas are slower than others; all that
ends up in four times of an iteration and one factor a replica. The run is simulated with each
request at the replica that it had.

Does not know: how a run is recorded, or what is made of the times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from cmaes import CMA

from ...env.cluster import ClusterSpec
from ...env.knobs import Knobs
from ...env.kpis import tpot_s, ttft_s
from ...env.measured_latency import MeasuredLatency
from ...env.simulated_fleet import SimulatedFleet
from ...env.simulator.workload import Workload
from ...traces.schema import RequestTrace
from ...traces.store import read_store
from ...traces.transform import select
from ..recorder.recorder import TRACE_DIR, read_outcomes
from ..shadow.resimulation import workload_of

# Quantiles of TTFT and TPOT that a simulation is compared in.
_QUANTILES = np.array([0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
_POPULATION = 12
# A time may end up so many times smaller or larger than where the search began.
_RANGE = 100.0
_NUM_SHARED = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedRun:
    """A recording as far as times go; arrays [N], NaN where nothing was seen."""

    trace: RequestTrace
    replica: np.ndarray
    """Index of the replica that had each request, -1 for none."""
    ttft_s: np.ndarray
    tpot_s: np.ndarray


def read_run(directory: Path, names: Sequence[str]) -> RecordedRun:
    """Read a recording; `names` are the replicas of its cluster."""
    trace = read_store(directory / TRACE_DIR)
    outcomes: pa.Table = read_outcomes(directory).slice(0, len(trace))
    places = {name: place for place, name in enumerate(names)}
    replicas = [places.get(name, -1) for name in outcomes["replica"].to_pylist()]
    first_s = outcomes["ttft_s"].to_numpy(zero_copy_only=False).astype(np.float64)
    end_s = outcomes["end_s"].to_numpy(zero_copy_only=False).astype(np.float64)
    finished = np.array([value == "finished" for value in outcomes["ending"].to_pylist()])
    later = np.maximum(trace.output_tokens - 1, 1)
    per_token_s = np.where(finished & (trace.output_tokens > 1), (end_s - first_s) / later, np.nan)
    return RecordedRun(trace=trace, replica=np.array(replicas), ttft_s=first_s, tpot_s=per_token_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeErrors:
    """How far simulated times are from measured ones; shares of the measured."""

    ttft_median: float
    """Relative error of the median TTFT, signed."""
    ttft_p95: float
    """The same of the 95th percentile."""
    tpot_median: float
    tpot_p95: float
    request_ttft_median: float
    """Median over requests of each one's own relative error."""
    request_ttft_p95: float
    request_tpot_median: float
    request_tpot_p95: float


def parts_of(run: RecordedRun, cluster: ClusterSpec) -> list[tuple[np.ndarray, Workload]]:
    """Return what each replica served: its rows, and those as a workload."""
    parts = []
    for place, replica in enumerate(cluster.replicas):
        mine = np.flatnonzero(run.replica == place)
        alone = replace(cluster, replicas=(replica,))
        trace = select(run.trace, mine)
        parts.append((mine, workload_of(trace, alone)))
    return parts


def simulated_times(
    parts: Sequence[tuple[np.ndarray, Workload]], cluster: ClusterSpec, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return TTFT and TPOT of each of `num` requests, simulated where it was served; [N] each."""
    first_s, per_token_s = np.full(num, np.nan), np.full(num, np.nan)
    for (mine, workload), replica in zip(parts, cluster.replicas, strict=True):
        if not mine.size:
            continue
        fleet = SimulatedFleet(replace(cluster, replicas=(replica,)), workload)
        fleet.reset(seed=0, knobs=Knobs())
        fleet.drain()
        first_s[mine], per_token_s[mine] = ttft_s(fleet.requests), tpot_s(fleet.requests)
    return first_s, per_token_s


def with_times(
    cluster: ClusterSpec, times: MeasuredLatency, factors: Sequence[float]
) -> ClusterSpec:
    """Return a cluster whose replicas take these times, each by its own factor."""
    return replace(
        cluster,
        replicas=tuple(
            replace(replica, measured=_scaled(times, factor))
            for replica, factor in zip(cluster.replicas, factors, strict=True)
        ),
    )


def _scaled(times: MeasuredLatency, factor: float) -> MeasuredLatency:
    return MeasuredLatency(
        step_s=factor * times.step_s,
        token_s=factor * times.token_s,
        sequence_s=factor * times.sequence_s,
        context_s=factor * times.context_s,
        attention_s=factor * times.attention_s,
    )


def _distance(simulated: np.ndarray, measured: np.ndarray) -> float:
    known = np.isfinite(simulated) & np.isfinite(measured) & (measured > 0)
    if not known.any():
        return 0.0
    ours = np.quantile(np.maximum(simulated[known], 1e-6), _QUANTILES)
    theirs = np.quantile(measured[known], _QUANTILES)
    return float(np.abs(np.log(ours / theirs)).mean())


def fit_run(
    run: RecordedRun,
    cluster: ClusterSpec,
    start: MeasuredLatency,
    *,
    num_generations: int = 60,
    seed: int = 0,
    on_generation: Callable[[], None] = lambda: None,
) -> ClusterSpec:
    """Return the cluster with the times that bring its simulation nearest to the run."""
    num, parts = len(cluster.replicas), parts_of(run, cluster)
    begin = np.log([start.step_s, start.token_s, max(start.sequence_s, 1e-6)])

    def cluster_of(point: np.ndarray) -> ClusterSpec:
        step_s, token_s, sequence_s = np.exp(begin + point[:_NUM_SHARED])
        times = MeasuredLatency(
            step_s=float(step_s), token_s=float(token_s), sequence_s=float(sequence_s)
        )
        return with_times(cluster, times, np.exp(point[_NUM_SHARED:]).tolist())

    def cost(point: np.ndarray) -> float:
        tried = cluster_of(point)
        first_s, per_token_s = simulated_times(parts, tried, len(run.trace))
        total = 0.0
        for place in range(num):
            mine = run.replica == place
            total += _distance(first_s[mine], run.ttft_s[mine])
            total += _distance(per_token_s[mine], run.tpot_s[mine])
        # Factors beyond 1 and times in common mean the same: the smaller the better.
        return total + 0.01 * float(np.abs(point[_NUM_SHARED:]).mean())

    width = float(np.log(_RANGE))
    bounds = np.tile([-width, width], (_NUM_SHARED + num, 1))
    search = CMA(
        mean=np.zeros(_NUM_SHARED + num), sigma=0.4, bounds=bounds, seed=seed,
        population_size=_POPULATION,
    )  # fmt: skip
    best = (cost(np.zeros(_NUM_SHARED + num)), np.zeros(_NUM_SHARED + num))
    for _ in range(num_generations):
        tried = [search.ask() for _ in range(_POPULATION)]
        judged = [(point, cost(point)) for point in tried]
        search.tell(judged)
        point, value = min(judged, key=lambda pair: pair[1])
        if value < best[0]:
            best = (value, point)
        on_generation()
    return cluster_of(best[1])


def time_errors(run: RecordedRun, cluster: ClusterSpec) -> TimeErrors:
    """Return how far the simulation of a cluster is from a run."""
    first_s, per_token_s = simulated_times(parts_of(run, cluster), cluster, len(run.trace))

    def errors(simulated: np.ndarray, measured: np.ndarray) -> tuple[float, float, float, float]:
        known = np.isfinite(simulated) & np.isfinite(measured) & (measured > 0)
        ours, theirs = simulated[known], measured[known]
        each = np.abs(ours - theirs) / theirs
        middle = float(np.median(ours) / np.median(theirs) - 1.0)
        high = float(np.quantile(ours, 0.95) / np.quantile(theirs, 0.95) - 1.0)
        return middle, high, float(np.median(each)), float(np.quantile(each, 0.95))

    first, per_token = errors(first_s, run.ttft_s), errors(per_token_s, run.tpot_s)
    return TimeErrors(
        ttft_median=first[0], ttft_p95=first[1], tpot_median=per_token[0],
        tpot_p95=per_token[1], request_ttft_median=first[2], request_ttft_p95=first[3],
        request_tpot_median=per_token[2], request_tpot_p95=per_token[3],
    )  # fmt: skip
