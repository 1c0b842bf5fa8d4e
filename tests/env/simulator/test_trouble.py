"""What a user would notice of each kind of trouble: stalls, lost pages, lying and late metrics."""

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.faults.config import Drift, KvFailures, Metrics, Outages, Spot, Stalls
from trimtab.env.simulator.fleet_loop import run_until
from trimtab.env.simulator.layout import (
    CRASH,
    DIE,
    EVENT_DTYPE,
    FAILED,
    FINISHED,
    KV_LOSS,
    NOTICE,
    PAGE_FROZEN,
    PAGE_LOST,
    QUEUE_LIE,
    RESTART,
    SHED,
    STALL,
    SimulationArrays,
)
from trimtab.env.simulator.memory import handle
from trimtab.env.simulator.setup import FleetConfig, allocate

ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)
LEAST_WAITING = Knobs.of(waiting_weight=1.0)


def make_run(cluster, workload, events=(), *, knobs=ROUND_ROBIN, **config) -> SimulationArrays:
    """Arrays of a fleet on which the given events happen."""
    config = FleetConfig(**{"scrape_drop_frac": 0.0} | config)
    arrays = allocate(cluster, workload, config, knobs=knobs, seed=0, horizon_s=1e3)
    return arrays._replace(events=np.array(list(events), dtype=EVENT_DTYPE))


def run_to(arrays: SimulationArrays, until_s: float) -> SimulationArrays:
    run_until(handle(arrays), until_s)
    return arrays


def make_steady(make_workload, *, rate_rps=20.0, span_s=20.0, inputs=600, outputs=60):
    count = int(rate_rps * span_s)
    return make_workload(np.arange(count) / rate_rps, [inputs] * count, [outputs] * count)


def test_stall_puts_off_the_work_by_its_length_and_loses_nothing(make_cluster, make_workload):
    workload = make_workload([0.0, 0.1], [300, 300], [400, 400])
    calm = run_to(make_run(make_cluster(), workload), 60.0)
    stalled = run_to(make_run(make_cluster(), workload, [(1.0, STALL, 0, 3.0)]), 60.0)
    assert (calm.requests["first_token_s"] < 1.0).all()
    np.testing.assert_allclose(
        stalled.requests["finish_s"], calm.requests["finish_s"] + 3.0, atol=1e-9
    )
    assert (stalled.requests["status"] == FINISHED).all()


def test_stall_shows_in_ttft_and_progress_but_on_no_metrics_page(make_cluster, make_workload):
    workload = make_workload([0.0, 1.5, 2.0], [300] * 3, [4000, 5, 5])
    arrays = run_to(make_run(make_cluster(), workload, [(1.0, STALL, 0, 3.0)]), 3.9)
    view = arrays.views[0]
    assert view["scraped_at_s"] == pytest.approx(3.9, abs=0.06)
    assert (view["running_requests"], view["waiting_requests"]) == (1, 2)
    assert view["iteration_log_ratio"] == pytest.approx(0.0, abs=1e-9)
    run_to(arrays, 10.0)
    ttft_s = arrays.requests["first_token_s"] - arrays.requests["arrival_s"]
    assert ttft_s[1:] == pytest.approx([2.55, 2.05], abs=0.1)
    assert arrays.views[0]["iteration_log_ratio"] == pytest.approx(0.0, abs=1e-9)


def test_crash_ends_a_stall_and_its_energy(make_cluster, make_workload):
    events = [(1.0, STALL, 0, 50.0), (3.0, CRASH, 0, 0.0), (5.0, RESTART, 0, 0.0)]
    arrays = run_to(make_run(make_cluster(), make_workload([20.0], [10], [1]), events), 10.0)
    replica = arrays.replicas[0]
    assert replica["energy_j"] == pytest.approx(10.0 * replica["idle_w"])


def test_switched_off_replica_draws_nothing(make_cluster, make_workload):
    events = [(2.0, CRASH, 0, 1.0), (6.0, RESTART, 0, 0.0)]
    arrays = make_run(make_cluster(), make_workload([20.0], [10], [1]), events)
    idle_w = arrays.replicas["idle_w"][0]
    for until_s, on_s in ((4.0, 2.0), (6.0, 2.0), (10.0, 6.0)):
        run_to(arrays, until_s)
        assert arrays.replicas["energy_j"][0] == pytest.approx(on_s * idle_w)


def test_kv_failures_preempt_while_they_last_and_the_page_does_not_say_so(
    make_cluster, make_workload
):
    workload = make_workload([0.0] * 8, [300] * 8, [700] * 8)
    cluster = make_cluster(kv_pages=600)
    calm = run_to(make_run(cluster, workload), 100.0)
    assert calm.replicas["num_preemptions"][0] == 0
    events = [(2.0, KV_LOSS, 0, 0.7), (6.0, KV_LOSS, 0, 0.0)]
    arrays = run_to(make_run(cluster, workload, events), 3.0)
    held = arrays.replicas["total_pages"][0] - arrays.replicas["free_pages"][0]
    assert held <= 0.3 * 600 + 1
    assert arrays.replicas["num_preemptions"][0] > 0
    assert arrays.views["kv_usage_frac"][0] < 0.31
    run_to(arrays, 100.0)
    assert (arrays.requests["status"] == FINISHED).all()
    assert arrays.requests["finish_s"].max() > calm.requests["finish_s"].max()
    assert arrays.replicas["free_pages"][0] == 600


def test_lost_pages_age_the_state_of_one_replica_only(make_cluster, make_workload):
    events = [(2.0, PAGE_LOST, 0, 1.0), (7.0, PAGE_LOST, 0, 0.0)]
    arrays = make_run(make_cluster(("H100-80G",) * 2), make_steady(make_workload), events)
    run_to(arrays, 6.9)
    assert 6.9 - arrays.views["scraped_at_s"] == pytest.approx([4.9, 0.0], abs=0.06)
    run_to(arrays, 7.2)
    assert 7.2 - arrays.views["scraped_at_s"] == pytest.approx([0.0, 0.0], abs=0.06)


def test_frozen_page_looks_fresh_and_stands_still(make_cluster, make_workload):
    events = [(2.0, PAGE_FROZEN, 0, 1.0), (7.0, PAGE_FROZEN, 0, 0.0)]
    workload = make_workload([0.5, 3.0, 3.1], [300] * 3, [4000] * 3)
    arrays = run_to(make_run(make_cluster(), workload, events), 6.9)
    assert 6.9 - arrays.views["scraped_at_s"][0] < 0.06
    assert arrays.views["running_requests"][0] == 1
    assert arrays.replicas["num_decoding"][0] == 3
    run_to(arrays, 7.2)
    assert arrays.views["running_requests"][0] == 3


def test_least_waiting_overloads_a_replica_that_lies_about_its_queue(make_cluster, make_workload):
    cluster = make_cluster(("H100-80G",) * 4, max_num_seqs=8)
    workload = make_steady(make_workload, rate_rps=60.0, span_s=30.0)
    shares = []
    for events in ([], [(0.0, QUEUE_LIE, 0, 0.0)]):
        arrays = run_to(make_run(cluster, workload, events, knobs=LEAST_WAITING), 30.0)
        shares.append((arrays.requests["replica"] == 0).mean())
    assert shares[0] == pytest.approx(0.25, abs=0.1)
    assert shares[1] > 0.6


@pytest.mark.parametrize("delay_s", [0.05, 0.5, 2.0])
def test_late_page_is_the_page_of_a_fleet_without_delay_at_that_time(
    make_cluster, make_workload, delay_s
):
    """With a policy that reads no page, both fleets do the same."""
    cluster, workload = make_cluster(max_num_seqs=16), make_steady(make_workload)
    prompt = make_run(cluster, workload)
    late = make_run(cluster, workload, faults=FaultConfig(metrics=Metrics(delay_s=delay_s)))
    run_to(prompt, 8.01)
    run_to(late, 8.01 + delay_s)
    names = ("scraped_at_s", "running_requests", "waiting_requests", "kv_usage_frac",
             "cached_frac", "iteration_log_ratio", "prefill_frac", "decode_base_s")  # fmt: skip
    for name in names:
        assert late.views[name][0] == pytest.approx(prompt.views[name][0], rel=1e-9), name
    assert prompt.views["running_requests"][0] > 0


def test_late_pages_of_a_restarted_replica_are_not_those_before_its_crash(
    make_cluster, make_workload
):
    events = [(2.0, CRASH, 0, 0.0), (3.0, RESTART, 0, 0.0)]
    faults = FaultConfig(metrics=Metrics(delay_s=2.0))
    workload = make_workload([0.0], [300], [4000])
    arrays = run_to(make_run(make_cluster(), workload, events, faults=faults), 3.5)
    assert arrays.views["running_requests"][0] == 0
    assert arrays.views["scraped_at_s"][0] == 3.0


def test_undetected_death_keeps_getting_requests_until_it_is_noticed(make_cluster, make_workload):
    cluster, workload = make_cluster(("H100-80G",) * 2), make_steady(make_workload)
    events = [(5.0, DIE, 0, 0.0), (8.0, CRASH, 0, 0.0), (12.0, RESTART, 0, 0.0)]
    arrays = run_to(make_run(cluster, workload, events), 7.99)
    view = arrays.views[0]
    assert view["is_available"] == 1
    assert 7.99 - view["scraped_at_s"] < 0.06
    sent = arrays.requests["arrival_s"] > 5.0
    assert (arrays.requests["replica"][sent & (arrays.requests["arrival_s"] < 7.99)] == 0).any()
    run_to(arrays, 60.0)
    requests = arrays.requests
    lost = (requests["num_dispatches"] == 2) | (requests["status"] == FAILED)
    # One in two of 60 requests in 3 s, and those that were open at the death.
    assert 30 <= lost.sum() < 60
    waited_s = requests["first_token_s"] - requests["arrival_s"]
    assert waited_s[requests["num_dispatches"] == 2].max() > 2.9
    assert arrays.replicas["num_crashes"][0] == 1
    open_count = arrays.views["outstanding_requests"].sum()
    assert open_count == 0


def test_notice_stops_new_requests_and_lets_the_short_ones_finish(make_cluster, make_workload):
    cluster = make_cluster(("H100-80G",) * 2)
    workload = make_workload(
        np.arange(200) * 0.05, [300] * 200, np.where(np.arange(200) % 20 == 0, 3000, 20)
    )
    events = [(4.0, NOTICE, 0, 0.0), (8.0, CRASH, 0, 1.0), (9.0, RESTART, 0, 0.0)]
    arrays = run_to(make_run(cluster, workload, events), 120.0)
    requests = arrays.requests
    warned = (requests["arrival_s"] > 4.0) & (requests["arrival_s"] < 9.0)
    assert (requests["replica"][warned] == 1).all()
    before = (requests["arrival_s"] < 4.0) & (requests["replica"] == 0)
    is_long = requests["output_tokens"] == 3000
    assert (requests["status"][before & ~is_long] == FINISHED).all()
    assert (requests["status"][before & is_long] == FAILED).all()
    assert (requests["finish_s"][before & is_long] == 8.0).all()
    assert (requests["replica"][requests["arrival_s"] > 9.0] == 0).any()


EVERYTHING = FaultConfig(
    replica_slowdowns_per_hour=100.0,
    slowdown_span_s=(0.5, 5.0),
    crashes_per_hour=40.0,
    restart_span_s=(1.0, 5.0),
    drift=Drift(sigma_log=0.2, server_sigma_log=0.1, relax_s=5.0, step_s=0.5),
    gpu_loss=Outages(per_hour=20.0, down_quantiles_s=(1.0, 5.0)),
    server_loss=Outages(per_hour=20.0, burst_frac=0.5, burst_gap_s=1.0, down_quantiles_s=(1.0, 4)),
    zone_loss=Outages(per_hour=5.0, down_quantiles_s=(0.5, 1.0)),
    spot=Spot(server_frac=0.5, up_quantiles_s=(5.0, 30.0), down_quantiles_s=(1.0, 5), notice_s=2.0),
    stalls=Stalls(per_hour=300.0, span_s=(0.1, 1.0)),
    kv_failures=KvFailures(per_hour=300.0, span_s=(0.5, 3.0)),
    metrics=Metrics(
        delay_s=0.1,
        outages_per_hour=200.0,
        outage_span_s=(0.5, 2.0),
        freezes_per_hour=200.0,
        freeze_span_s=(0.5, 2.0),
        queue_lies_per_hour=200.0,
        queue_lie_span_s=(0.5, 2.0),
        detection_delay_s=0.7,
    ),
)
GPUS = ("H100-80G", "A100-80G", "L40S-48G")


def run_everything(cluster: ClusterSpec, workload, seed: int, **config) -> SimulatedFleet:
    config = FleetConfig(faults=EVERYTHING, **config)
    return run_workload(cluster, workload, ROUND_ROBIN, config=config, seed=seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kv_pages", [200, None])
def test_jump_is_exact_under_all_trouble_at_once(
    make_cluster, make_random_workload, seed, kv_pages
):
    workload = make_random_workload(300, rate_rps=15.0, seed=seed, mean_output_tokens=200.0)
    cluster = make_cluster(GPUS, kv_pages=kv_pages)
    jumped = run_everything(cluster, workload, seed)
    stepped = run_everything(cluster, workload, seed, is_single_step=True)
    for name in ("status", "replica", "num_preemptions", "num_dispatches"):
        np.testing.assert_array_equal(jumped.requests[name], stepped.requests[name], err_msg=name)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(
            jumped.requests[name], stepped.requests[name], rtol=0, atol=1e-9, err_msg=name
        )
    for name in ("energy_j", "idle_j", "prefill_j"):
        np.testing.assert_allclose(
            jumped.arrays.replicas[name], stepped.arrays.replicas[name], rtol=1e-9
        )
    assert jumped.arrays.replicas["num_crashes"].sum() > 0


@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_and_all_pages_come_back(make_cluster, make_random_workload, seed):
    workload = make_random_workload(500, rate_rps=20.0, seed=seed)
    fleet = run_everything(make_cluster(GPUS, kv_pages=300), workload, seed)
    requests, replicas = fleet.requests, fleet.arrays.replicas
    assert requests.size == 500
    assert np.isin(requests["status"], (FINISHED, SHED, FAILED)).all()
    assert (requests["finish_s"] >= requests["arrival_s"]).all()
    cached = replicas["num_cached_blocks"] * fleet.arrays.fleet["block_pages"][0]
    np.testing.assert_array_equal(replicas["free_pages"] + cached, replicas["total_pages"])
    assert (fleet.arrays.views["outstanding_requests"] == 0).all()


def test_trouble_tells_what_happened_so_far_and_a_branch_tells_the_same(
    make_cluster, make_random_workload
):
    workload = make_random_workload(400, rate_rps=10.0, seed=0)
    fleet = SimulatedFleet(make_cluster(GPUS), workload, FleetConfig(faults=EVERYTHING))
    fleet.reset(seed=3)
    assert fleet.trouble() == []
    fleet.advance(20.0)
    early = fleet.trouble()
    fleet.advance(20.0)
    late = fleet.trouble()
    assert late[: len(early)] == early
    assert 0 < len(early) < len(late)
    assert all(record.at_s < 40.0 and record.end_s > record.at_s for record in late)
    assert {"stall", "queue_lie", "spot_reclaim"} <= {record.kind for record in late}
    assert fleet.branch().trouble() == late
    assert all(0 <= r < 3 for record in late for r in record.replicas)
