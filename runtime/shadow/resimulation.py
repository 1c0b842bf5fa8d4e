"""A recorded run in the simulator, once as it was steered and once by others.

The difference of the two runs estimates what the other would have changed. How far the simulation
of what did happen is from what was measured stands beside it: no estimate is better than that.

Does not know: how a run is recorded.
"""

from dataclasses import dataclass

import numpy as np

from ...agents.evaluation import Interval, bootstrap
from ...agents.policy import Policy
from ...env.cluster import ClusterSpec
from ...env.kpis import is_met, ttft_s
from ...env.simulated_fleet import SimulatedFleet
from ...env.simulator.workload import Workload, compile_workload
from ...traces.schema import RequestTrace

# Requests that are drawn together: neighbours in time are not independent, s.
BLOCK_S = 5.0
WINDOW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """One scheduler's run of a recorded trace."""

    name: str
    goodput_frac: float
    ttft_p50_s: float
    ttft_p99_s: float
    credit_by_block: np.ndarray
    """Weight of the requests that were met, by the block of time in which they arrived."""
    weight_by_block: np.ndarray
    ttft_s: np.ndarray
    """Of each request, NaN where there was none; [N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorError:
    """How far the simulation of the recorded choices is from what was measured."""

    num_requests: int
    median_log_ratio: float
    """Median of log(simulated / measured TTFT): a bias."""
    median_abs_frac: float
    """Median of the relative error of a request's TTFT."""
    p95_abs_frac: float
    measured_p50_s: float
    measured_p99_s: float


def workload_of(trace: RequestTrace, cluster: ClusterSpec) -> Workload:
    """Return a recorded trace as a workload; what was served under one name is one model."""
    served = tuple(dict.fromkeys(replica.model for replica in cluster.replicas))
    names = trace.model_names
    mapped = {name: served[min(i, len(served) - 1)] for i, name in enumerate(names)}
    return compile_workload(trace, name="recorded", model_map=mapped)


def simulate(cluster: ClusterSpec, workload: Workload, policy: Policy) -> SimulatedRun:
    """Run a recorded workload under a policy."""
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0, knobs=policy.begin())
    span_s = float(workload.requests["arrival_s"].max()) if workload.requests.size else 0.0
    while fleet.now_s < span_s and not policy.is_constant:
        fleet.advance(WINDOW_S)
        fleet.apply(policy.act(fleet.state()))
    fleet.drain()
    requests = fleet.requests
    met = is_met(requests)
    block = (requests["arrival_s"] // BLOCK_S).astype(np.int64)
    size = int(block.max()) + 1 if block.size else 1
    weight = requests["weight"]
    first_s = ttft_s(requests)
    known = first_s[np.isfinite(first_s)]
    return SimulatedRun(
        name=policy.name,
        goodput_frac=float(weight[met].sum() / max(weight.sum(), 1e-9)),
        ttft_p50_s=float(np.quantile(known, 0.5)) if known.size else float("nan"),
        ttft_p99_s=float(np.quantile(known, 0.99)) if known.size else float("nan"),
        credit_by_block=np.bincount(block, weight * met, minlength=size),
        weight_by_block=np.bincount(block, weight, minlength=size),
        ttft_s=first_s,
    )


def gain_of(other: SimulatedRun, base: SimulatedRun) -> Interval:
    """Return how much more of the weight the other run met, with its interval over blocks."""
    has_any = base.weight_by_block > 0
    share = (other.credit_by_block - base.credit_by_block)[has_any] / (
        base.weight_by_block[has_any].mean() if has_any.any() else 1.0
    )
    return bootstrap(share if share.size else np.zeros(1))


def simulator_error(run: SimulatedRun, measured_ttft_s: np.ndarray) -> SimulatorError:
    """Compare a run of the recorded scheduler with what its clients saw; both [N]."""
    is_known = np.isfinite(run.ttft_s) & np.isfinite(measured_ttft_s) & (measured_ttft_s > 0)
    simulated, measured = run.ttft_s[is_known], measured_ttft_s[is_known]
    if not simulated.size:
        nan = float("nan")
        return SimulatorError(
            num_requests=0, median_log_ratio=nan, median_abs_frac=nan, p95_abs_frac=nan,
            measured_p50_s=nan, measured_p99_s=nan,
        )  # fmt: skip
    error = np.abs(simulated - measured) / measured
    return SimulatorError(
        num_requests=int(simulated.size),
        median_log_ratio=float(np.median(np.log(np.maximum(simulated, 1e-6) / measured))),
        median_abs_frac=float(np.median(error)),
        p95_abs_frac=float(np.quantile(error, 0.95)),
        measured_p50_s=float(np.quantile(measured, 0.5)),
        measured_p99_s=float(np.quantile(measured, 0.99)),
    )
