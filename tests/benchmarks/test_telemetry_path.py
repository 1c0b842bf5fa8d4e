"""The telemetry benchmark in small and in fake time: what it claims must hold at any size."""

import pytest
from loading import load

from trimtab.runtime.telemetry.reasons import Reason
from trimtab.runtime.telemetry.simulated.faults import NO_FAULTS, FaultRates
from trimtab.runtime.telemetry.simulated.layout import SimulatedLayout
from trimtab.runtime.telemetry.simulated_probes import FleetShape

# Many more faults than in a real fleet, so that a short run has some of each.
FAULTS = FaultRates(
    lost_frac=0.01,
    duplicated_frac=0.01,
    delayed_frac=0.01,
    torn_frac=0.01,
    other_schema_frac=0.01,
    infinite_frac=0.01,
    impossible_frac=0.01,
    restarted_frac=0.002,
)
SECONDS = 6.0


schedules, runs, observers = (
    load("telemetry_path.schedule"),
    load("telemetry_path.in_process"),
    load("telemetry_path.observer"),
)
clocks, paths = load("telemetry_path.clocks"), load("telemetry_path.path")


@pytest.fixture(scope="module")
def observer():
    layout = SimulatedLayout(num_servers=8, servers_per_rack=4)
    schedule = schedules.Schedule(layout, SECONDS, shape=FleetShape(faults=FAULTS), seed=3)
    return runs.run_in_process(schedule, clocks.FakeClock, tick_s=0.1)


@pytest.fixture(scope="module")
def figures(observer):
    return observer.figures()


@pytest.mark.parametrize("reason", observers.INJECTED)
def test_every_injected_fault_is_counted_once(figures, reason: Reason) -> None:
    assert figures[f"injected_{reason}"] > 0
    assert figures[f"counted_{reason}"] == figures[f"injected_{reason}"]


def test_nothing_of_an_honest_probe_is_refused_beside_the_faults(figures) -> None:
    others = {
        name: number
        for name, number in figures.items()
        if name.startswith("counted_") and name.removeprefix("counted_") not in observers.INJECTED
    }
    assert others == {}


def test_liars_are_found_and_nobody_else(figures) -> None:
    assert figures["num_liars"] == 2
    assert figures["num_liars_found"] == 2
    assert figures["num_honest_distrusted"] == 0


def test_a_state_is_published_after_every_rack(figures) -> None:
    """Two racks, each ten times a second."""
    assert figures["states_per_s"] == pytest.approx(20.0, rel=0.01)


def test_racks_take_turns_and_none_is_left_out_when_late() -> None:
    turns = paths.Turns(["a", "b"], 0.1)
    assert [turns.due(at_s) for at_s in (0.01, 0.05, 0.06, 0.10, 0.15)] == [
        None, "b", None, "a", "b",
    ]  # fmt: skip
    late = [turns.due(1.0) for _ in range(3)]
    assert sorted(filter(None, late)) == ["a", "b"]
    assert late[-1] is None


def test_ages_are_true_within_the_clocks_bound(figures) -> None:
    assert 0 < figures["age_p50_ms"] < figures["age_p99_ms"] <= figures["age_max_ms"]
    # A tick, and what a frame travels; a lost frame's successor is no older when it comes.
    assert figures["age_p99_ms"] < 100 + 10
    assert figures["age_error_max_ms"] <= figures["age_error_bound_ms"] + 1e-3


def test_clocks_are_known_within_their_own_bounds(figures) -> None:
    assert figures["clock_known_frac"] == 1.0
    assert figures["clock_offset_max_s"] > 0.2
    assert figures["clock_bound_broken"] == 0
    assert figures["clock_error_max_s"] < 0.002


def test_the_state_is_true_within_what_the_aggregators_promise() -> None:
    layout = SimulatedLayout(num_servers=4, num_gpus=4, servers_per_rack=4)
    schedule = schedules.Schedule(layout, 4.0, shape=FleetShape(faults=NO_FAULTS), seed=1)
    figures = runs.run_in_process(schedule, clocks.FakeClock, tick_s=0.1).figures()
    assert 0 < figures["error_rms"] < figures["error_max"] <= figures["error_promised"]
    assert figures["absent_mismatch_frac"] == 0


def test_faults_cost_little_of_the_truth(figures) -> None:
    assert figures["error_rms"] < figures["error_promised"]
    assert figures["absent_mismatch_frac"] < 0.01


def test_aggregation_saves_bytes(figures) -> None:
    assert figures["bytes_ratio"] > 5


def test_a_run_within_its_warm_up_is_refused() -> None:
    schedule = schedules.Schedule(SimulatedLayout(num_servers=2), 1.0)
    run = runs.run_in_process(schedule, clocks.FakeClock, tick_s=0.1)
    with pytest.raises(ValueError, match=r"must last longer than its warm-up of 1.5 s"):
        run.figures()
