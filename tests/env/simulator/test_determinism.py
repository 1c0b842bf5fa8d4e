"""The same seed gives the same bits; a branch of a fleet is a fleet of its own."""

import numpy as np
import pytest

from trimtab.env.knobs import KNOB_SPECS, Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import SimulationArrays
from trimtab.env.simulator.setup import FleetConfig

TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=200.0, crashes_per_hour=60.0, restart_span_s=(1.0, 4.0)
)


def make_knobs(rng: np.random.Generator) -> Knobs:
    """Random knobs: scorer or a random choice of two, with all else anywhere near its default."""
    values = {
        spec.name: float(np.clip(spec.default * rng.uniform(0.5, 1.5), spec.low, spec.high))
        for spec in KNOB_SPECS
        if spec.is_tunable
    }
    values |= {"scorer_weight": 1.0, "shed_enabled": float(rng.integers(2))}
    values |= {"num_choices": 2.0 * rng.integers(2), "random_weight": 0.1 * rng.integers(2)}
    values |= {"max_num_seqs_frac": rng.uniform(0.1, 1.0)}
    return Knobs.of(**values).with_bias(rng.normal(0.0, 0.2, 4))


@pytest.fixture
def fleet(make_cluster, make_random_workload) -> SimulatedFleet:
    workload = make_random_workload(600, rate_rps=40.0, seed=2, mean_output_tokens=150.0)
    cluster = make_cluster(("H100-80G", "A100-80G", "L40S-48G", "H100-80G"), kv_pages=400)
    fleet = SimulatedFleet(cluster, workload, FleetConfig(faults=TROUBLE))
    fleet.reset(seed=0)
    return fleet


def run_windows(fleet: SimulatedFleet, num_windows: int, knob_seed: int) -> None:
    rng = np.random.default_rng(knob_seed)
    for _ in range(num_windows):
        fleet.apply(make_knobs(rng))
        fleet.advance(0.4)


def contents(arrays: SimulationArrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays._asdict().items()}


def test_same_seed_gives_the_same_bits(fleet):
    runs = []
    for _ in range(2):
        state = fleet.reset(seed=7)
        assert state.now_s == 0.0
        run_windows(fleet, 50, knob_seed=1)
        runs.append((contents(fleet.arrays), fleet.state()))
    assert len(fleet.requests) == 600
    assert runs[0][0] == runs[1][0]
    for node, values in runs[0][1].values.items():
        np.testing.assert_array_equal(values, runs[1][1].values[node])


def test_another_seed_gives_another_run(fleet):
    runs = []
    for seed in (7, 8):
        fleet.reset(seed=seed)
        run_windows(fleet, 50, knob_seed=1)
        runs.append(fleet.requests.copy())
    assert not np.array_equal(runs[0]["finish_s"], runs[1]["finish_s"])


def test_faults_and_lost_scrapes_are_all_that_a_seed_changes(make_cluster, make_random_workload):
    workload = make_random_workload(200, rate_rps=30.0, seed=2)
    config = FleetConfig(scrape_drop_frac=0.0)
    fleet = SimulatedFleet(make_cluster(("H100-80G",) * 2), workload, config)
    finishes = []
    for seed in (1, 2):
        fleet.reset(seed=seed, knobs=Knobs.of(scorer_weight=1.0))
        fleet.drain()
        finishes.append(fleet.requests["finish_s"].copy())
    np.testing.assert_array_equal(*finishes)


def test_branch_continues_as_the_original(fleet):
    run_windows(fleet, 15, knob_seed=1)
    branch = fleet.branch()
    assert contents(branch.arrays) == contents(fleet.arrays)
    outcomes = []
    for one in (fleet, branch):
        run_windows(one, 20, knob_seed=2)
        outcomes.append(one.advance(1.0))
    assert contents(branch.arrays) == contents(fleet.arrays)
    assert outcomes[0] == outcomes[1]
    for node, values in fleet.state().values.items():
        np.testing.assert_array_equal(values, branch.state().values[node])


def test_branch_leaves_the_original_alone(fleet):
    run_windows(fleet, 15, knob_seed=1)
    before, state = contents(fleet.arrays), fleet.state()
    branch = fleet.branch()
    run_windows(branch, 20, knob_seed=3)
    branch.drain()
    assert contents(fleet.arrays) == before
    for node, values in state.values.items():
        np.testing.assert_array_equal(values, fleet.state().values[node])
    assert branch.now_s > fleet.now_s


def test_errors_name_what_to_do(make_cluster, make_random_workload):
    fleet = SimulatedFleet(make_cluster(), make_random_workload(5, rate_rps=1.0, seed=0))
    with pytest.raises(RuntimeError, match=r"call reset\(seed=\.\.\.\) first"):
        fleet.state()
    fleet.reset(seed=0)
    for span_s in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"span_s must be above 0, got {span_s}"):
            fleet.advance(span_s)
    with pytest.raises(ValueError, match="scrape_interval_s must be above 0, got 0"):
        FleetConfig(scrape_interval_s=0)
    with pytest.raises(ValueError, match=r"scrape_drop_frac must be in \[0, 1\), got 1"):
        FleetConfig(scrape_drop_frac=1)
