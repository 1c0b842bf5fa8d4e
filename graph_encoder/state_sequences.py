"""States of simulated fleets under load that comes and goes: what the encoder is trained on.

Fleets are drawn at random: servers of mixed GPUs, one model each fleet, replicas over one or more
GPUs. Requests are those of a trace, at a rate that swings and bursts between a light load and well
past saturation; replicas slow down and crash. Each state comes with what was to be foretold: the
shares of the next window's requests that broke their limits (`violations.py`).

Does not know: the encoder, or how states become tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from ..env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from ..env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from ..env.scenario import TROUBLED, Part, azure_scenario, saturation_rps
from ..env.simulated_fleet import SimulatedFleet
from ..env.simulator.workload import Workload, compile_workload
from ..env.state.cluster_state import ClusterState
from ..env.state.feature import FloatArray
from ..traces.schema import RequestTrace
from ..traces.superposition import superpose
from .violations import Violations, violations_within

WINDOW_S = 2.0
"""Time between two states: the window of the short-term tier."""
GPU_KINDS = ("A100-80G", "H100-80G", "H200-141G", "L40S-48G")
MODELS = ("llama-3-8b", "qwen3-8b", "gpt-oss-20b", "qwen3-14b", "qwen3-30b-a3b")
# Models whose weights in 16 bits need more than one GPU of 48 GB.
_LARGE_MODELS = ("gpt-oss-20b", "qwen3-14b", "qwen3-30b-a3b")
# Windows at the start, in which the fleet fills up, that are left out.
_WARM_UP_WINDOWS = 3
# Load over saturation that a run may reach at most, bursts included.
_PEAK_LOAD_FRAC = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig:
    """How much is recorded of a fleet."""

    num_windows: int = 40
    """States of a sequence."""
    part: Part = Part.TRAIN
    """Part of the bundled trace that requests are drawn from."""

    def __post_init__(self) -> None:
        if self.num_windows < 2:
            msg = f"num_windows must be at least 2, got {self.num_windows}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateSequence:
    """States of one fleet, one window apart.

    Shapes (W windows, T tenants, R replicas): `states` W long; shares of the requests of the window
    after each state that broke a limit or were refused: `violation_frac` [W],
    `tenant_violation_frac` [W, T], `replica_violation_frac` [W, R], NaN where there were none.
    """

    cluster: ClusterSpec
    states: tuple[ClusterState, ...]
    violation_frac: FloatArray
    tenant_violation_frac: FloatArray
    replica_violation_frac: FloatArray


@lru_cache(maxsize=64)
def draw_cluster(seed: int, num_servers: int) -> ClusterSpec:
    """Return a random fleet of so many servers; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    model = str(rng.choice(MODELS))
    servers: list[ServerSpec] = []
    replicas: list[ReplicaSpec] = []
    for i in range(num_servers):
        gpu = str(rng.choice(GPU_KINDS))
        num_gpus = int(rng.choice([4, 8]))
        server = ServerSpec(name=f"server-{i}", zone=f"zone-{i % 2}", gpu=gpu, num_gpus=num_gpus)
        servers.append(server)
        least = 2 if model in _LARGE_MODELS else 1
        degree = int(rng.choice([d for d in (1, 2, 4) if d >= least]))
        for k in range(0, num_gpus, degree):
            replicas.append(
                ReplicaSpec(
                    name=f"{server.name}-{k}",
                    server=server.name,
                    model=model,
                    gpu_indices=tuple(range(k, k + degree)),
                )
            )
    return ClusterSpec(name=f"random-{seed}", servers=tuple(servers), replicas=tuple(replicas))


@lru_cache(maxsize=64)
def fleet_saturation_rps(cluster: ClusterSpec) -> float:
    """Return the rate of the bundled trace's requests at which a fleet still meets most limits."""
    scenario = azure_scenario()
    return saturation_rps(cluster, scenario.parts[Part.TRAIN], scenario.levels)


def swinging_workload(
    part: Part, rate_rps: float, num_windows: int, rng: np.random.Generator
) -> Workload:
    """Return requests whose rate swings and bursts around a level of its own.

    Args:
        part: of the bundled trace.
        rate_rps: of a fleet that is just saturated.
        num_windows: windows for which requests arrive.
        rng: draws the level, the swing and the bursts.
    """
    scenario = azure_scenario()
    span_s = num_windows * WINDOW_S
    peak_rps = _PEAK_LOAD_FRAC * rate_rps
    seed = int(rng.integers(2**31))
    trace = superpose(scenario.parts[part], rate_rps=peak_rps, span_s=span_s, seed=seed)
    arrival_s = trace.table.column("arrival_s").to_numpy()
    moments_s = np.arange(0.0, span_s + 1.0)
    wave = np.sin(2 * np.pi * (moments_s / rng.uniform(20, 90) + rng.random()))
    bursts = rng.random(moments_s.size) < 0.05
    load_frac = rng.uniform(0.5, 1.1) + 0.25 * wave + 0.3 * bursts
    kept_frac = np.clip(load_frac, 0.1, _PEAK_LOAD_FRAC) / _PEAK_LOAD_FRAC
    is_kept = rng.random(arrival_s.size) < np.interp(arrival_s, moments_s, kept_frac)
    table = trace.table.filter(pa.array(is_kept))
    thinned = RequestTrace(table, trace.block_tokens, trace.source)
    return compile_workload(thinned, name=f"swinging-{seed}", levels=scenario.levels)


def record_sequence(
    cluster: ClusterSpec, rate_rps: float, *, config: SequenceConfig, seed: int
) -> StateSequence:
    """Run a fleet and return its states; the same seed gives the same, bit for bit."""
    rng = np.random.default_rng(seed)
    num_windows = _WARM_UP_WINDOWS + config.num_windows + 1
    workload = swinging_workload(config.part, rate_rps, num_windows, rng)
    fleet = SimulatedFleet(cluster, workload, TROUBLED)
    is_plain = rng.random() < 1 / 3
    knobs = Knobs.of(scorer_weight=1.0) if is_plain else ANALYTIC_SCORER_KNOBS
    fleet.reset(seed=seed, knobs=knobs)
    windows = list(_windows(fleet, num_windows))[_WARM_UP_WINDOWS:]
    following = [violations for _, violations in windows[1:]]
    return StateSequence(
        cluster=cluster,
        states=tuple(state for state, _ in windows[:-1]),
        violation_frac=np.nan_to_num([one.fleet_frac for one in following]),
        tenant_violation_frac=np.array([one.tenant_frac for one in following]),
        replica_violation_frac=np.array([one.replica_frac for one in following]),
    )


def _windows(fleet: SimulatedFleet, num_windows: int) -> Iterator[tuple[ClusterState, Violations]]:
    """Yield the state after each window, and the violations in it."""
    num_replicas = len(fleet.cluster.replicas)
    for _ in range(num_windows):
        start_s = fleet.now_s
        fleet.advance(WINDOW_S)
        violations = violations_within(
            fleet.requests, start_s, fleet.now_s, num_replicas=num_replicas
        )
        yield fleet.state(), violations
