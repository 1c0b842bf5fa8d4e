"""A snapshot is a fleet's state, bit for bit, whatever happens before and after it.

`branch` copies every array whole; it is what cheap copies are held against.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.fleet import WindowOutcome
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, Workers, advance_all, drain_all
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import SimulationArrays
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.snapshot import COPY_RULES, Copy, Snapshot, rule_of
from trimtab.env.state.feature import Node

GPU_NAMES = ("H100-80G", "A100-80G", "L40S-48G")
TROUBLE = FleetConfig(
    faults=FaultConfig(
        replica_slowdowns_per_hour=400.0, crashes_per_hour=240.0, restart_span_s=(0.5, 3.0)
    )
)
POLICIES = {
    "scorer": Knobs.of(scorer_weight=1.0, shed_enabled=1.0),
    "round_robin": Knobs.of(round_robin_weight=1.0),
    "random_of_two": Knobs.of(random_weight=0.1, num_choices=2.0, outstanding_requests_weight=1.0),
    "prefix": Knobs.of(prefix_miss_weight=1.0, outstanding_requests_weight=0.1),
}
MOMENTS = st.floats(0.001, 2.0)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 1), MOMENTS),
        st.tuples(st.just("steer"), st.integers(0, 1), st.sampled_from(sorted(POLICIES))),
        st.tuples(st.just("snapshot"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("restore"), st.integers(0, 1), st.integers(0, 1)),
    ),
    min_size=4,
    max_size=24,
)


def contents(fleet: SimulatedFleet) -> dict[str, bytes]:
    """Every byte that has a meaning: all but what is left in heaps beyond their ends."""
    arrays = fleet.arrays
    sizes = arrays.replicas["num_decoding"]
    heaps = [heap[:size] for heap, size in zip(arrays.sequences, sizes, strict=True)]
    shown = arrays._asdict() | {"sequences": np.concatenate(heaps)}
    return {name: array.tobytes() for name, array in shown.items()}


def assert_same(one: SimulatedFleet, other: SimulatedFleet) -> None:
    mine, theirs = contents(one), contents(other)
    assert [name for name in mine if mine[name] != theirs[name]] == []
    states = one.state(), other.state()
    for node in Node:
        np.testing.assert_array_equal(states[0].values[node], states[1].values[node])


def assert_runs_on_as(one: SimulatedFleet, other: SimulatedFleet, span_s: float) -> None:
    """Run copies of both, so that neither is disturbed."""
    one, other = one.branch(), other.branch()
    assert one.advance(span_s) == other.advance(span_s)
    assert_same(one, other)


@pytest.fixture
def make_fleet(make_cluster, make_random_workload):
    def make(seed: int = 0, *, kv_pages: int | None = 300, config=TROUBLE, **workload):
        arguments = {"rate_rps": 30.0, "seed": seed, "mean_output_tokens": 200.0} | workload
        fleet = SimulatedFleet(
            make_cluster(GPU_NAMES, kv_pages=kv_pages, max_num_seqs=32),
            make_random_workload(300, **arguments),
            config,
        )
        fleet.reset(seed=seed, knobs=POLICIES["scorer"])
        return fleet

    return make


@pytest.fixture(scope="module")
def parts(make_cluster, make_random_workload):
    """Clusters and workloads that hypothesis draws from, made once."""
    clusters = [
        make_cluster(GPU_NAMES[:num], kv_pages=pages, max_num_seqs=seqs)
        for num, pages, seqs in ((1, 130, 64), (3, 200, 16), (3, None, 64))
    ]
    workloads = [
        make_random_workload(
            200, rate_rps=30.0, seed=num, mean_output_tokens=200.0, num_prompts=num
        )
        for num in (0, 5, 40)
    ]
    return clusters, workloads


@settings(max_examples=60, derandomize=True, database=None)
@given(
    cluster=st.integers(0, 2),
    workload=st.integers(0, 2),
    seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    policy=st.sampled_from(sorted(POLICIES)),
    start_s=st.floats(0.0, 5.0),
    actions=ACTIONS,
)
def test_restored_state_is_the_snapshot(parts, cluster, workload, seeds, policy, start_s, actions):
    """Two fleets and two snapshots in any order of runs, snapshots and restores.

    Beside each snapshot stands a full copy of the fleet that it was taken of.
    """
    clusters, workloads = parts
    fleets = [SimulatedFleet(clusters[cluster], workloads[workload], TROUBLE) for _ in seeds]
    for fleet, seed in zip(fleets, seeds, strict=True):
        fleet.reset(seed=seed, knobs=POLICIES[policy])
        fleet.run_until(start_s)
    snapshots: list[Snapshot | None] = [None, None]
    copies: list[SimulatedFleet | None] = [None, None]
    for act, which, value in actions:
        fleet = fleets[which]
        if act == "run":
            fleet.advance(value)
        elif act == "steer":
            fleet.apply(POLICIES[value])
        elif act == "snapshot":
            snapshots[value] = fleet.snapshot(snapshots[value])
            copies[value] = fleet.branch()
        elif copies[value] is not None:
            fleet.restore(snapshots[value])
            assert fleet.now_s == copies[value].now_s == snapshots[value].now_s
            assert_same(fleet, copies[value])
            assert_runs_on_as(fleet, copies[value], 0.7)


def test_property_is_about_busy_fleets(parts):
    """Runs of the kind above have preemptions, hits, crashes and refusals while they branch."""
    clusters, workloads = parts
    fleet = SimulatedFleet(clusters[1], workloads[1], TROUBLE)
    fleet.reset(seed=1, knobs=POLICIES["scorer"])
    fleet.advance(5.0)
    replicas = fleet.arrays.replicas
    assert replicas["num_preemptions"].sum() > 0
    assert replicas["hit_tokens"].sum() > 0
    assert replicas["num_crashes"].sum() > 0
    assert replicas["num_decoding"].sum() > 5
    assert fleet.snapshot().now_s == 5.0


def test_lookahead_over_a_whole_run(make_fleet):
    """At every window, branches under other knobs; the run is the one without them."""
    fleet, alone, scratch = make_fleet(), make_fleet(), None
    snapshot = None
    while fleet.now_s < fleet.workload.span_s:
        snapshot = fleet.snapshot(snapshot)
        if scratch is None:
            scratch = SimulatedFleet(fleet.cluster, fleet.workload, TROUBLE)
        for name in ("round_robin", "prefix"):
            scratch.restore(snapshot)
            scratch.apply(POLICIES[name])
            scratch.run_until(fleet.now_s + 2.0)
        scratch.restore(snapshot)
        scratch.advance(0.5)
        assert fleet.advance(0.5) == alone.advance(0.5)
        assert_same(scratch, fleet)
    for one in (fleet, alone):
        one.drain()
    assert_same(fleet, alone)
    assert fleet.kpis() == alone.kpis()


def test_snapshot_outlives_its_fleet(make_fleet):
    fleet = make_fleet()
    fleet.advance(3.0)
    snapshot, copy = fleet.snapshot(), fleet.branch()
    fleet.advance(3.0)
    fleet.reset(seed=5)
    fleet.advance(4.0)
    fleet.restore(snapshot)
    assert_same(fleet, copy)
    assert_runs_on_as(fleet, copy, 5.0)


def test_indicators_come_back_after_the_end(make_fleet):
    """What was made up to the last arrival is part of the state."""
    fleet = make_fleet()
    fleet.advance(2.0)
    early = fleet.snapshot()
    fleet.drain()
    late, kpis = fleet.snapshot(), fleet.kpis()
    fleet.restore(early)
    fleet.drain()
    assert fleet.kpis() == kpis
    fleet.restore(early)
    fleet.restore(late)
    assert fleet.kpis() == kpis


def test_every_array_has_a_rule():
    """A new array needs one; without, it is copied whole, which is right but may be slow."""
    assert set(COPY_RULES) == set(SimulationArrays._fields)
    assert rule_of("an array of tomorrow") is Copy.WHOLE


def test_shared_arrays_are_never_written(make_fleet):
    fleet = make_fleet()
    before = contents(fleet)
    fleet.drain()
    after = contents(fleet)
    shared = [name for name, rule in COPY_RULES.items() if rule is Copy.SHARED]
    assert [name for name in shared if before[name] != after[name]] == []
    assert before["replicas"] != after["replicas"]


@pytest.mark.parametrize("num_workers", [None, 2])
def test_fleets_in_one_call_are_those_of_one_after_the_other(make_fleet, num_workers):
    workers = Workers(num_workers) if num_workers else None
    together, alone = ([make_fleet(seed) for seed in range(5)] for _ in range(2))
    outcomes: list[list[WindowOutcome]] = []
    for _ in range(4):
        outcomes.append(advance_all(together, 1.5, workers))
        assert outcomes[-1] == [fleet.advance(1.5) for fleet in alone]
    drain_all(together, workers)
    for one, other in zip(together, alone, strict=True):
        other.drain()
        assert one.num_open == 0
        assert_same(one, other)
        assert one.kpis() == other.kpis()
    if workers:
        workers.close()


def test_run_until_is_a_run_without_a_window(make_fleet):
    one, other = make_fleet(), make_fleet()
    one.run_until(3.25)
    other.advance(3.25)
    np.testing.assert_array_equal(one.arrays.replicas, other.arrays.replicas)
    with pytest.raises(ValueError, match=r"must not be before now \(3.25\), got 1.0"):
        one.run_until(1.0)


def test_errors(make_fleet):
    fleet = make_fleet()
    snapshot = fleet.snapshot()
    with pytest.raises(ValueError, match="snapshot is of another workload: 'made'"):
        make_fleet().restore(snapshot)
    other = SimulatedFleet(fleet.cluster, fleet.workload, FleetConfig())
    with pytest.raises(ValueError, match=r"another config: 'FleetConfig\(scrape_interval_s=0.05"):
        other.restore(snapshot)
    with pytest.raises(RuntimeError, match="call reset"):
        SimulatedFleet(fleet.cluster, fleet.workload, TROUBLE).snapshot()
