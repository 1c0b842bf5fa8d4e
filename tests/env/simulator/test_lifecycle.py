"""Starts, sleep, drains and slow starts: when a replica serves, and what it draws meanwhile."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.capacity import CapacityMove, MoveKind
from trimtab.env.cluster import ClusterSpec, InitialState
from trimtab.env.cluster_file import load_cluster
from trimtab.env.fleet_orders import STATE_NAMES
from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import FAILED, FINISHED, SHED
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients
from trimtab.env.simulator.start_up import StartUpConfig
from trimtab.env.topology import WeightSource

ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)
LEAST = Knobs.of(outstanding_requests_weight=1.0)
WEIGHT_BYTES = 16_060_522_496  # Llama-3-8B in BF16
DISK = 1.7e9
PCIE = 0.78 * 64e9
READY, ASLEEP, STOPPED = InitialState.READY, InitialState.ASLEEP, InitialState.STOPPED


def with_states(cluster: ClusterSpec, states: Sequence[InitialState]) -> ClusterSpec:
    pairs = zip(cluster.replicas, states, strict=True)
    return replace(cluster, replicas=tuple(replace(r, initial_state=s) for r, s in pairs))


def make_fleet(make_cluster, make_workload, states, **start_up: object) -> SimulatedFleet:
    """Replicas of H100 on one server, without slow start, and no request for a long time."""
    settings = StartUpConfig(**{"slow_start_span_s": 0.0, **start_up})
    cluster = with_states(make_cluster(["H100-80G"] * len(states)), states)
    fleet = SimulatedFleet(
        cluster, make_workload([1000.0], [1], [1]), FleetConfig(start_up=settings)
    )
    fleet.reset(seed=0, knobs=ROUND_ROBIN)
    return fleet


def state_of(fleet: SimulatedFleet, replica: int) -> str:
    return STATE_NAMES[int(fleet.arrays.replicas["state"][replica])]


def assert_ready_at(fleet: SimulatedFleet, replica: int, at_s: float, before: str) -> None:
    """Whether the replica becomes available at a moment, to the microsecond."""
    fleet.advance(at_s - 1e-6 - fleet.now_s)
    assert state_of(fleet, replica) == before
    assert fleet.arrays.views["is_available"][replica] == 0
    fleet.advance(2e-6)
    assert state_of(fleet, replica) == "ready"
    assert fleet.arrays.views["is_available"][replica] == 1


def test_a_cold_start_by_hand(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, STOPPED], node_start_s=60.0)
    fleet.advance(5.0)
    fleet.start(1)
    # Node, weights at the disk's pace, engine of an 8B with compilation.
    assert_ready_at(fleet, 1, 5.0 + 60.0 + WEIGHT_BYTES / DISK + 39.0, "starting")


@pytest.mark.parametrize(
    ("source", "bytes_per_s"),
    [(WeightSource.PAGE_CACHE, PCIE), (WeightSource.NETWORK, 0.87 * 25e9)],
)
def test_sources_of_weights(make_cluster, make_workload, source, bytes_per_s):
    fleet = make_fleet(make_cluster, make_workload, [READY, STOPPED], weight_source=source)
    fleet.start(1)
    assert_ready_at(fleet, 1, WEIGHT_BYTES / bytes_per_s + 39.0, "starting")


def test_a_wake_is_a_copy_over_pcie(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, ASLEEP])
    fleet.advance(1.0)
    fleet.wake(1)
    assert_ready_at(fleet, 1, 1.0 + WEIGHT_BYTES / PCIE + 0.5, "waking")


def test_two_starts_on_a_server_share_its_disk(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, STOPPED, STOPPED])
    fleet.start(1)
    fleet.advance(4.0)
    fleet.start(2)
    # The first has read for 4 s alone; both halves then, until it is done.
    alone_s = WEIGHT_BYTES / DISK
    first_s = 4.0 + 2.0 * (alone_s - 4.0)
    second_s = first_s + (alone_s - (alone_s - 4.0))
    assert_ready_at(fleet, 1, first_s + 39.0, "starting")
    assert_ready_at(fleet, 2, second_s + 39.0, "starting")


def test_energy_by_state(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, ASLEEP, STOPPED])
    fleet.advance(10.0)
    idle_w = 75 + 275
    np.testing.assert_allclose(fleet.arrays.replicas["energy_j"], [10 * idle_w, 10 * idle_w, 0.0])
    fleet.start(2)
    fleet.stop(0)
    fleet.advance(10.0)
    np.testing.assert_allclose(
        fleet.arrays.replicas["energy_j"], [10 * idle_w, 20 * idle_w, 10 * idle_w]
    )


@pytest.mark.parametrize(("order", "state"), [("stop", "stopped"), ("sleep", "asleep")])
def test_a_replica_drains_before_it_goes(make_cluster, make_workload, order, state):
    cluster = make_cluster(["H100-80G", "H100-80G"])
    workload = make_workload(np.arange(12) * 0.1, [200] * 12, [300] * 12,
                             prompts=[[i, 100 + i, 200 + i] for i in range(12)])  # fmt: skip
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0, knobs=ROUND_ROBIN)
    fleet.advance(0.55)
    getattr(fleet, order)(1)
    assert state_of(fleet, 1) == "draining"
    on_it = np.flatnonzero(fleet.requests["replica"] == 1)
    assert on_it.size == 3
    fleet.drain()
    assert state_of(fleet, 1) == state
    assert (fleet.requests["status"] == FINISHED).all()
    np.testing.assert_array_equal(np.flatnonzero(fleet.requests["replica"] == 1), on_it)
    replica = fleet.arrays.replicas[1]
    assert replica["free_pages"] == replica["total_pages"]
    assert replica["num_cached_blocks"] == 0
    assert replica["num_crashes"] == 0


def test_moves_of_capacity_are_orders(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, READY, STOPPED, ASLEEP])
    for kind, replica in (("stop", 0), ("sleep", 1), ("start", 2), ("wake", 3)):
        fleet.move(CapacityMove(kind=MoveKind(kind), replica=replica))
    fleet.move(CapacityMove(kind=MoveKind.POWER_CAP, replica=2, watts=400.0))
    assert np.isfinite(fleet.arrays.replicas["power_cap_w"][2])
    fleet.run_until(120.0)
    states = [STATE_NAMES[s] for s in fleet.arrays.replicas["state"]]
    assert states == ["stopped", "asleep", "ready", "ready"]
    with pytest.raises(ValueError, match="replica 0 is stopped; only one that is ready can be"):
        fleet.move(CapacityMove(kind=MoveKind.SLEEP, replica=0))


def test_it_goes_at_the_end_of_its_last_request(make_cluster, make_workload):
    fleet = SimulatedFleet(make_cluster(["H100-80G"] * 2), make_workload([0.0], [100], [200]))
    fleet.reset(seed=0, knobs=Knobs.of())
    fleet.advance(0.1)
    fleet.stop(0)
    fleet.drain()
    replica, (request,) = fleet.arrays.replicas[0], fleet.requests
    assert replica["clock_s"] == pytest.approx(fleet.now_s)
    busy_j = replica["prefill_w"] * replica["prefill_s"] * 100 / 512
    busy_j += replica["decode_w"] * (replica["busy_s"] - replica["prefill_s"] * 100 / 512)
    assert replica["busy_s"] == pytest.approx(request["finish_s"])
    assert replica["energy_j"] == pytest.approx(busy_j)


def test_slow_start_fades_in_eighths(make_cluster, make_workload):
    """Requests far apart on a replica that was started: each sees the factor of its moment."""
    cluster = with_states(make_cluster(["H100-80G"]), [STOPPED])
    start_s = WEIGHT_BYTES / DISK + 39.0
    offsets = np.array([0.5, 3.5, 10.0, 22.9, 30.0])
    config = FleetConfig(start_up=StartUpConfig(slow_start_factor=3.0, slow_start_span_s=24.0))
    fleet = SimulatedFleet(cluster, make_workload(start_s + offsets, [400] * 5, [1] * 5), config)
    fleet.reset(seed=0, knobs=Knobs.of())
    fleet.start(0)
    fleet.drain()
    ttft_s = fleet.requests["first_token_s"] - fleet.requests["arrival_s"]
    alone_s = iteration_time_s(replica_coefficients(cluster)[0], 400, 0, 0, 0)
    # 3 s a step, a quarter less each: 3, 2.75 from 3 s on, 2.25 from 9 s on, 1.25 from 21 s on.
    np.testing.assert_allclose(ttft_s / alone_s, [3.0, 2.75, 2.25, 1.25, 1.0], rtol=1e-9)


@pytest.mark.parametrize("is_cold", [False, True])
def test_a_crashed_engine_comes_back_warm_or_cold(make_cluster, make_workload, is_cold):
    faults = FaultConfig(crashes_per_hour=20.0, restart_span_s=(10.0, 10.0))
    start_up = StartUpConfig(is_restart_cold=is_cold)
    cluster = make_cluster(["H100-80G"])
    fleet = SimulatedFleet(
        cluster, make_workload([500.0], [1], [1]), FleetConfig(faults=faults, start_up=start_up)
    )
    fleet.reset(seed=2)
    crash_s, restart_s = fleet.arrays.events["at_s"][:2]
    ready_s = restart_s + (WEIGHT_BYTES / DISK + 39.0 if is_cold else 0.0)
    fleet.advance(crash_s + 1e-6)
    assert state_of(fleet, 0) == "down"
    assert_ready_at(fleet, 0, ready_s, "starting" if is_cold else "down")


def test_a_crash_does_not_wake_who_sleeps(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, ASLEEP, STOPPED])
    faults = FaultConfig(crashes_per_hour=60.0, restart_span_s=(5.0, 10.0))
    fleet = SimulatedFleet(fleet.cluster, fleet.workload, FleetConfig(faults=faults))
    fleet.reset(seed=0)
    fleet.advance(900.0)
    assert fleet.arrays.replicas["num_crashes"][0] > 3
    assert [state_of(fleet, r) for r in (1, 2)] == ["asleep", "stopped"]
    assert fleet.arrays.replicas["energy_j"][2] == 0.0


def test_orders_that_make_no_sense(make_cluster, make_workload):
    fleet = make_fleet(make_cluster, make_workload, [READY, ASLEEP, STOPPED])
    with pytest.raises(ValueError, match="replica 0 is ready; only one that is stopped can be sta"):
        fleet.start(0)
    with pytest.raises(ValueError, match="replica 2 is stopped; only one that is asleep can be wo"):
        fleet.wake(2)
    with pytest.raises(ValueError, match="replica 1 is asleep; only one that is ready can be stop"):
        fleet.stop(1)
    with pytest.raises(ValueError, match=r"replica must be in \[0, 2\], got -1"):
        fleet.sleep(-1)
    fleet.start(2)
    with pytest.raises(ValueError, match="replica 2 is starting; only one that is ready can be pu"):
        fleet.sleep(2)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"node_start_s": -1.0}, "node_start_s must be at least 0, got -1.0"),
        ({"slow_start_factor": 0.5}, "slow_start_factor must be at least 1, got 0.5"),
    ],
)
def test_faulty_settings(fields, fault):
    with pytest.raises(ValueError, match=fault):
        StartUpConfig(**fields)


def run_with_orders(fleet: SimulatedFleet, seed: int) -> SimulatedFleet:
    """Start, wake, stop and put to sleep at random, one replica always left alone."""
    fleet.reset(seed=seed, knobs=LEAST)
    rng = np.random.default_rng(seed)
    deeds = {"ready": ("stop", "sleep"), "stopped": ("start",), "asleep": ("wake",)}
    while fleet.now_s < fleet.workload.span_s:
        fleet.advance(0.431)
        replica = int(rng.integers(1, fleet.arrays.replicas.size))
        possible = deeds.get(state_of(fleet, replica))
        if possible:
            getattr(fleet, str(rng.choice(possible)))(replica)
    fleet.drain()
    return fleet


@settings(max_examples=25, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    kv_pages=st.sampled_from([150, 400, None]),
    rate_rps=st.floats(2.0, 40.0),
    is_in_trouble=st.booleans(),
)
def test_jump_equals_single_steps(
    make_cluster, make_random_workload, seed, kv_pages, rate_rps, is_in_trouble
):
    workload = make_random_workload(120, rate_rps=rate_rps, seed=seed, num_prompts=5)
    cluster = make_cluster(["H100-80G", "A100-80G", "A100-80G", "L40S-48G"], kv_pages=kv_pages)
    cluster = replace(
        with_states(cluster, [READY, READY, STOPPED, ASLEEP]),
        servers=tuple(replace(server, disk_bytes_per_s=4e10) for server in cluster.servers),
    )
    cluster = replace(
        cluster, replicas=tuple(replace(r, engine_init_s=0.7) for r in cluster.replicas)
    )
    faults = FaultConfig()
    if is_in_trouble:
        faults = FaultConfig(crashes_per_hour=200.0, restart_span_s=(0.5, 2.0),
                             replica_slowdowns_per_hour=300.0)  # fmt: skip
    start_up = StartUpConfig(slow_start_span_s=2.0, is_restart_cold=True)
    jumped, stepped = (
        run_with_orders(
            SimulatedFleet(
                cluster,
                workload,
                FleetConfig(faults=faults, start_up=start_up, is_single_step=is_single_step),
            ),
            seed,
        )
        for is_single_step in (False, True)
    )
    assert np.isin(jumped.requests["status"], [FINISHED, SHED, FAILED]).all()
    if not is_in_trouble and kv_pages is None:
        assert (jumped.requests["status"] == FINISHED).all()
    for name in ("status", "replica", "hit_tokens", "num_preemptions"):
        np.testing.assert_array_equal(jumped.requests[name], stepped.requests[name], err_msg=name)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(
            jumped.requests[name], stepped.requests[name], rtol=0, atol=1e-9, err_msg=name
        )
    one, other = jumped.arrays.replicas, stepped.arrays.replicas
    for name in ("state", "free_pages", "num_iterations", "num_cached_blocks"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_allclose(one["energy_j"], other["energy_j"], rtol=1e-9)


def test_standby_of_a_bundled_cluster(make_random_workload):
    """Prefill and decode, with a standby of each that is brought in on the way."""
    cluster = load_cluster("prefill-decode")
    workload = make_random_workload(600, rate_rps=8.0, seed=3)
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=0, knobs=ROUND_ROBIN)
    assert [state_of(fleet, r) for r in (2, 7)] == ["stopped", "asleep"]
    fleet.advance(5.0)
    fleet.start(2)
    fleet.wake(7)
    fleet.drain()
    assert (fleet.requests["status"] == FINISHED).all()
    assert (fleet.arrays.replicas["generated_tokens"][[2, 7]] > 0).all()
