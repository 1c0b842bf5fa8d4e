"""Slow-downs stretch iterations while they last; a crash takes batch, cache and availability."""

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig, draw_crashes, draw_slowdowns
from trimtab.env.simulator.fleet_loop import run_until
from trimtab.env.simulator.layout import (
    CRASH,
    EVENT_DTYPE,
    FAILED,
    FINISHED,
    RESTART,
    SHED,
    SLOWDOWN_DTYPE,
    SimulationArrays,
)
from trimtab.env.simulator.memory import handle
from trimtab.env.simulator.setup import FleetConfig, allocate

ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)


def make_run(cluster, workload, *, slowdowns=None, crashes=(), knobs=ROUND_ROBIN):
    """Arrays of a fleet whose faults are the given ones."""
    arrays = allocate(
        cluster, workload, FleetConfig(scrape_drop_frac=0.0), knobs=knobs, seed=0, horizon_s=1e3
    )
    table = arrays.slowdowns
    if slowdowns is not None:
        table = np.array([[*slowdowns, (np.inf, 1.0)]] * len(cluster.replicas), SLOWDOWN_DTYPE)
    return arrays._replace(slowdowns=table, events=np.array(list(crashes), dtype=EVENT_DTYPE))


def run_to(arrays: SimulationArrays, until_s: float) -> None:
    run_until(handle(arrays), until_s)


@pytest.mark.parametrize("is_single_step", [False, True])
def test_slowdown_doubles_iterations_while_it_lasts(make_cluster, make_workload, is_single_step):
    """An iteration takes the factor of its start; everything else is as without trouble."""
    cluster = make_cluster()
    arrays = make_run(
        cluster, make_workload([0.0], [300], [600]), slowdowns=[(1.0, 2.0), (2.5, 1.0)]
    )
    arrays.fleet["is_single_step"] = is_single_step
    c, clock_s = arrays.actual[0], 0.0
    clock_s += iteration_time_s(c, 300, 0, 0, 0)
    num_slow = 0
    for context in range(301, 900):
        is_slow = 1.0 <= clock_s < 2.5
        num_slow += is_slow
        clock_s += iteration_time_s(c, 0, 0, 1, context) * (2.0 if is_slow else 1.0)
    run_to(arrays, 100.0)
    assert num_slow > 50
    assert arrays.requests["finish_s"][0] == pytest.approx(clock_s, abs=1e-9)


def test_scheduler_sees_a_slowdown_in_the_iteration_ratio(make_cluster, make_workload):
    arrays = make_run(make_cluster(), make_workload([0.0], [300], [2000]), slowdowns=[(0.0, 2.0)])
    run_to(arrays, 10.0)
    assert arrays.views["iteration_log_ratio"][0] == pytest.approx(np.log(2.0), rel=1e-3)
    assert arrays.views["slow_factor"][0] > 1.5


def make_crash_run(make_cluster, make_workload, crashes):
    """Two replicas in turn; a request every 20 ms of 2000 prompt tokens, one in five long."""
    num_requests = 200
    outputs = np.where(np.arange(num_requests) % 10 < 2, 300, 3)
    groups = [i % 4 if i % 2 else i for i in range(num_requests)]
    prompts = [range(100 * g, 100 * g + 31) for g in groups]
    workload = make_workload(
        np.arange(num_requests) * 0.02, [2000] * num_requests, outputs, prompts=prompts
    )
    return make_run(make_cluster(("H100-80G",) * 2), workload, crashes=crashes)


def test_crash_retries_what_has_no_token_and_fails_the_rest(make_cluster, make_workload):
    arrays = make_crash_run(
        make_cluster, make_workload, [(1.0, CRASH, 0, 0.0), (2.5, RESTART, 0, 0.0)]
    )
    run_to(arrays, np.nextafter(1.0, 0.0))
    before = arrays.requests.copy()
    is_open = (before["replica"] == 0) & np.isnan(before["finish_s"])
    has_token = np.isfinite(before["first_token_s"])
    assert (is_open & has_token).any()
    assert (is_open & ~has_token).any()
    run_to(arrays, 1.001)
    replica, view = arrays.replicas[0], arrays.views[0]
    assert (replica["is_up"], view["is_available"]) == (0, 0)
    assert replica["num_cached_blocks"] == replica["num_waiting"] == replica["num_decoding"] == 0
    assert replica["free_pages"] == replica["total_pages"]
    assert not (arrays.holders[:, 0] & np.uint64(1)).any()
    assert view["outstanding_requests"] == view["outstanding_tokens"] == view["pending_tokens"] == 0
    run_to(arrays, 60.0)
    requests = arrays.requests
    failed = requests[is_open & has_token]
    assert (failed["status"] == FAILED).all()
    assert (failed["finish_s"] == 1.0).all()
    retried = requests[is_open & ~has_token]
    assert (retried["status"] == FINISHED).all()
    assert (retried["replica"] == 1).all()
    assert (retried["num_dispatches"] == 2).all()
    assert (retried["first_token_s"] > 1.0).all()
    others = requests[~is_open]
    assert (others["status"] == FINISHED).all()
    assert (others["num_dispatches"] == 1).all()


def test_dead_replica_gets_nothing_until_it_is_back(make_cluster, make_workload):
    arrays = make_crash_run(
        make_cluster, make_workload, [(1.0, CRASH, 0, 0.0), (2.5, RESTART, 0, 0.0)]
    )
    busy_s = []
    for until_s in (1.0001, 2.4999):
        run_to(arrays, until_s)
        busy_s.append(arrays.replicas["busy_s"][0])
    assert busy_s[0] == busy_s[1]
    run_to(arrays, 60.0)
    arrival_s, replica = arrays.requests["arrival_s"], arrays.requests["replica"]
    is_down = (arrival_s >= 1.0) & (arrival_s < 2.5)
    assert (replica[is_down] == 1).all()
    after = np.flatnonzero(arrival_s >= 2.5)
    assert (replica[after] == 0).sum() >= after.size // 2
    # Its cache is cold: the first request of each prompt finds nothing there.
    back = after[replica[after] == 0]
    assert (arrays.requests["hit_tokens"][back[:1]] == 0).all()
    assert (arrays.requests["hit_tokens"][back] > 0).any()
    assert arrays.replicas["num_crashes"].tolist() == [1, 0]


def test_view_of_a_restarted_replica_is_that_of_a_fresh_one(make_cluster, make_workload):
    arrays = make_crash_run(
        make_cluster, make_workload, [(1.0, CRASH, 0, 0.0), (5.1, RESTART, 0, 0.0)]
    )
    fresh = arrays.views[0].copy()
    run_to(arrays, np.nextafter(1.0, 0.0))
    assert arrays.views["decode_base_s"][0] != fresh["decode_base_s"]
    run_to(arrays, 5.11)
    for name in fresh.dtype.names:
        if name not in ("scraped_at_s", "progress_at_s"):
            assert arrays.views[name][0] == fresh[name], name
    assert arrays.views["scraped_at_s"][0] == 5.1


def test_all_replicas_down_refuses_everything(make_cluster, make_workload):
    crashes = [
        (1.0, CRASH, 0, 0.0),
        (1.0, CRASH, 1, 0.0),
        (2.0, RESTART, 0, 0.0),
        (2.0, RESTART, 1, 0.0),
    ]
    arrays = make_crash_run(make_cluster, make_workload, crashes)
    run_to(arrays, 60.0)
    requests = arrays.requests
    is_down = (requests["arrival_s"] > 1.0) & (requests["arrival_s"] < 2.0)
    assert (requests["status"][is_down] == SHED).all()
    np.testing.assert_array_equal(requests["finish_s"][is_down], requests["arrival_s"][is_down])
    assert (requests["status"][requests["arrival_s"] > 2.0] == FINISHED).all()
    lost = requests[(requests["arrival_s"] < 1.0) & (requests["finish_s"] == 1.0)]
    assert set(lost["status"].tolist()) == {SHED, FAILED}


def test_energy_flows_while_idle_and_after_a_restart(make_cluster, make_workload):
    workload = make_workload([0.0], [10], [1])
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0)
    fleet.advance(1.0)
    energy_j = fleet.arrays.replicas["energy_j"][0]
    fleet.advance(10.0)
    idle_j = 10.0 * fleet.arrays.replicas["idle_w"][0]
    assert fleet.arrays.replicas["energy_j"][0] == pytest.approx(energy_j + idle_j)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"crashes_per_hour": -1.0}, "crashes_per_hour must be at least 0, got -1.0"),
        ({"replica_slowdowns_per_hour": -2}, "replica_slowdowns_per_hour must .* got -2"),
        ({"server_slowdowns_per_hour": -2}, "server_slowdowns_per_hour must .* got -2"),
        ({"slowdown_factor": (2.0, 1.0)}, r"slowdown_factor must be a range .* got \(2.0, 1.0\)"),
        ({"slowdown_span_s": (0.0, 1.0)}, r"slowdown_span_s must be a range .* got \(0.0, 1.0\)"),
        ({"restart_span_s": (-1.0, 1.0)}, r"restart_span_s must be a range .* got \(-1.0, 1.0\)"),
        ({"crashes_per_hour": float("nan")}, "crashes_per_hour must be at least 0, got nan"),
    ],
)
def test_fault_config_names_key_and_value(fields, text):
    with pytest.raises(ValueError, match=text):
        FaultConfig(**fields)


def test_drawn_crashes_alternate_and_are_in_order():
    config = FaultConfig(crashes_per_hour=60.0, restart_span_s=(30.0, 120.0))
    crashes = draw_crashes(config, 5, 3600.0, seed=1)
    assert crashes.size > 100
    assert (np.diff(crashes["at_s"]) >= 0).all()
    for replica in range(5):
        own = crashes[crashes["target"] == replica]
        np.testing.assert_array_equal(own["kind"], np.tile([CRASH, RESTART], own.size // 2))
        spans_s = own["at_s"][1::2] - own["at_s"][::2]
        assert ((spans_s >= 30.0) & (spans_s <= 120.0)).all()
    assert draw_crashes(FaultConfig(), 5, 3600.0, seed=1).size == 0


def test_drawn_slowdowns_hit_whole_servers():
    servers = np.array([0, 0, 1, 1])
    config = FaultConfig(server_slowdowns_per_hour=30.0, slowdown_factor=(1.5, 1.5))
    table = draw_slowdowns(config, servers, 3600.0, seed=1)
    np.testing.assert_array_equal(table[0], table[1])
    np.testing.assert_array_equal(table[2], table[3])
    assert not np.array_equal(table[0], table[2])
    # Factors of overlapping spans multiply; each row ends with an end, and then nothing more.
    finite = np.isfinite(table["at_s"])
    assert {1.0, 1.5, 2.25} <= set(table["factor"][finite].tolist())
    for row in table:
        moments = row["at_s"][np.isfinite(row["at_s"])]
        assert (np.diff(moments) > 0).all()
        assert row["factor"][moments.size - 1] == 1.0
    assert np.isinf(table["at_s"][:, -1]).all()
