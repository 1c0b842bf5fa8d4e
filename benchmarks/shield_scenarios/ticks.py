"""What the shield costs: a full tick over a large fleet, and mask and score of one request.

A full tick is everything at once, as no tick of a live shield is: signals judged and emergency
actions carried out, a new state looked at by all breakers, staleness, the limits of all replicas
put together and written into the rows of every group, and a policy's proposal judged and brought
within its limits. The fleet's signals move, and now and then something is the matter.

Does not know: how results are shown.
"""

import time
from dataclasses import dataclass

import numpy as np

from trimtab.agents.shield.breaker_file import default_breakers
from trimtab.agents.shield.fallback import Fallback, FallbackConfig, Proposal
from trimtab.agents.shield.places import places_of
from trimtab.agents.shield.shield import Shield, ShieldConfig
from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.dispatch import NUM_TERMS, QUERY_DTYPE, VIEW_DTYPE, choose_replica, is_shed
from trimtab.env.emergency import Emergency, EmergencyAction
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.masks import Mask
from trimtab.env.regret import NO_REGRET
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import replica_coefficients
from trimtab.env.simulator.workload import compile_workload
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE
from trimtab.traces.schema import RequestTrace

NUM_STATES = 16
STEP_S = 0.1
TROUBLE_TICKS = 100
"""Ticks after which other replicas have trouble."""


class Doer:
    """A fleet that can do everything and does nothing, so that only the shield is timed."""

    def can(self, kind: Emergency, replica: int | None) -> bool:
        """Whether it can: always."""
        return True

    def act(self, action: EmergencyAction) -> int:
        """Do nothing."""
        return 0

    def undo(self, kind: Emergency, replica: int | None = None) -> None:
        """Do nothing."""


def large_cluster(num_replicas: int) -> ClusterSpec:
    """Return copies of the demo cluster, one GPU a replica."""
    demo = load_cluster("demo-16")
    return repeated_cluster(demo, num_replicas // len(demo.replicas))


def make_states(cluster: ClusterSpec, trouble_frac: float) -> list[ClusterState]:
    """States of the fleet at rest; in every second so much is at the end of its range."""
    workload = compile_workload(
        RequestTrace.from_columns(arrival_s=[0.0], input_tokens=[1], output_tokens=[1]), name="one"
    )
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0)
    fleet.advance(1.0)
    rest, rng = fleet.state(), np.random.default_rng(0)
    states = []
    for k in range(NUM_STATES):
        values = {node: table.copy() for node, table in rest.values.items()}
        for node in (Node.GPU, Node.REPLICA, Node.SERVER):
            high = np.array([feature.scale.high for feature in FEATURES_BY_NODE[node]])
            is_high = rng.random(values[node].shape) < (trouble_frac if k % 2 else 0.0)
            values[node] = np.where(is_high, high, values[node])
        states.append((values, rest))
    return [
        ClusterState(
            now_s=0.0,
            values=values,
            is_valid=base.is_valid,
            age_s=base.age_s,
            gpu_replica=base.gpu_replica,
            gpu_server=base.gpu_server,
            edges=base.edges,
        )
        for values, base in states
    ]


@dataclass(slots=True)
class _Bench:
    """All that a tick of the benchmark touches."""

    shield: Shield
    fallback: Fallback
    states: list[ClusterState]
    bias: np.ndarray
    costs: np.ndarray
    view: np.ndarray
    rng: np.random.Generator
    is_bad: np.ndarray

    def stir(self, step: int, trouble_frac: float) -> None:
        """Let a moment pass in the signals, with trouble at so many replicas; not timed."""
        shield, num = self.shield, self.view.size
        if step % TROUBLE_TICKS == 0:
            self.is_bad = self.rng.random(num) < trouble_frac
        is_bad = self.is_bad
        now_s = STEP_S * (step + 1)
        total, own = shield.fleet_signals, shield.signals
        total["now_s"] = now_s
        total["num_arrived"] += self.rng.poisson(400.0 * (8.0 if step % 97 == 0 else 1.0))
        total["ttft_slo_s"], total["least_wait_s"] = 0.5, self.rng.uniform(0.0, 0.8)
        own["is_available"], own["outstanding_requests"] = 1, 8.0
        own["progress_at_s"] = np.where(is_bad, own["progress_at_s"], now_s)
        own["scraped_at_s"] = np.where(is_bad, own["scraped_at_s"], now_s)
        own["kv_usage_frac"] = np.where(is_bad, 0.99, self.rng.uniform(0.3, 0.9, num))
        own["allocation_failures"] += 3.0 * is_bad
        own["busy_s"] += np.where(is_bad, 0.0, STEP_S * 0.9)
        own["probed_at_s"] = now_s
        own["has_neighbour"] = 1

    def tick(self, step: int, state: ClusterState) -> None:
        """Do everything that the shield does, at once."""
        shield = self.shield
        shield.tick(Doer())
        shield.look(state)
        self.view["mask"] = shield.limits.masks
        self.view["max_outstanding"] = shield.limits.max_outstanding
        np.add(self.costs, shield.limits.penalties, out=self.bias)
        now_s = state.now_s
        values = ANALYTIC_SCORER_KNOBS.values * (1.0 + 0.1 * np.sin(step))
        bias = 0.1 * np.sin(np.arange(self.view.size) + step)
        proposal = Proposal(values=values, bias=bias, state_at_s=now_s, arrived_at_s=now_s)
        self.fallback.judge(proposal, now_s, NO_REGRET)


def measure_ticks(
    num_gpus: int, num_tenants: int, num_ticks: int, trouble_frac: float
) -> dict[str, float]:
    """Return milliseconds of a full tick on one core: wall time, and the thread's CPU time."""
    cluster = large_cluster(num_gpus)
    rng = np.random.default_rng(1)
    config = ShieldConfig(breakers=default_breakers())
    states = make_states(cluster, trouble_frac)
    num_replicas = len(cluster.replicas)
    costs = np.where(rng.random((num_tenants, num_replicas)) < 0.3, np.inf, 0.0)
    bench = _Bench(
        shield=Shield(config, cluster, places=places_of(cluster)),
        fallback=Fallback(
            FallbackConfig(window_s=STEP_S), base=ANALYTIC_SCORER_KNOBS, num_replicas=num_replicas
        ),
        states=states,
        bias=np.zeros_like(costs),
        costs=costs,
        view=np.zeros(num_replicas, VIEW_DTYPE),
        rng=rng,
        is_bad=np.zeros(num_replicas, np.bool_),
    )
    spans_ms, cpu_ms = [], []
    for step in range(num_ticks + 20):
        bench.stir(step, trouble_frac)
        kept = states[step // TROUBLE_TICKS % NUM_STATES]
        state = ClusterState(
            **{name: getattr(kept, name) for name in ClusterState.__slots__ if name != "now_s"},
            now_s=STEP_S * (step + 1),
        )
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        bench.tick(step, state)
        cpu_ms.append(1e3 * (time.thread_time() - cpu_begin))
        spans_ms.append(1e3 * (time.perf_counter() - begin))
    spans, cpu = np.array(spans_ms[20:]), np.array(cpu_ms[20:])
    shield = bench.shield
    return {
        "tick_p50_ms": float(np.percentile(spans, 50)),
        "tick_p99_ms": float(np.percentile(spans, 99)),
        "tick_p999_ms": float(np.percentile(spans, 99.9)),
        "tick_max_ms": float(spans.max()),
        "tick_cpu_p50_ms": float(np.percentile(cpu, 50)),
        "tick_cpu_p999_ms": float(np.percentile(cpu, 99.9)),
        "tick_num_actions": float(shield.emergencies.num_begun),
        "tick_num_alarms": float(len(shield.alarms)),
        "tick_barred_frac": shield.barred_frac,
    }


def measure_requests(num_replicas: int, num_requests: int) -> dict[str, float]:
    """Return microseconds of mask, score and refusal of one request, called from Python."""
    cluster, rng = large_cluster(num_replicas), np.random.default_rng(2)
    nominal = replica_coefficients(cluster)
    view = np.zeros(num_replicas, VIEW_DTYPE)
    view["is_available"], view["slow_factor"], view["prefill_stretch"] = 1, 1.0, 1.0
    view["kv_capacity_tokens"], view["prefill_token_s"] = 1e6, 2e-5
    view["max_outstanding"] = np.where(rng.random(num_replicas) < 0.05, 2.0, np.inf)
    view["mask"] = np.where(rng.random(num_replicas) < 0.05, int(Mask.QUARANTINED), 0)
    view["pending_tokens"] = rng.uniform(0, 4000, num_replicas)
    view["outstanding_requests"] = rng.integers(0, 60, num_replicas)
    groups = np.where(rng.random((64, num_replicas)) < 0.3, np.inf, 0.0)
    knobs, hits, terms = ANALYTIC_SCORER_KNOBS.record()[0], np.zeros(num_replicas, np.int64), None
    terms = np.zeros(NUM_TERMS)
    state = np.ones(1, np.uint64)
    queries = np.zeros(num_requests, QUERY_DTYPE)
    queries["input_tokens"] = rng.integers(10, 4000, num_requests)
    queries["expected_output_tokens"] = 200.0
    queries["ttft_slo_s"], queries["tpot_slo_s"] = 0.5, 0.05
    spans_us = []
    for i in range(num_requests):
        query = queries[i]
        begin = time.perf_counter()
        bias = groups[i % 64]
        _, r = choose_replica(view, nominal, query, hits, knobs, bias, 1.0, 0, state, terms)
        is_shed(view, nominal, query, hits, knobs, 1.0, r, np.inf)
        spans_us.append(1e6 * (time.perf_counter() - begin))
    spans = np.array(spans_us[100:])
    return {
        "request_p50_us": float(np.percentile(spans, 50)),
        "request_p99_us": float(np.percentile(spans, 99)),
        "request_max_us": float(spans.max()),
    }
