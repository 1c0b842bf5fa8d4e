"""A closed loop keeps so many requests in flight, exactly in time; and scheduling ahead."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import FAILED, FINISHED, PENDING, SHED
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients

FIRST = Knobs.of()  # no term is on: ties go to the first replica
SPREAD = Knobs.of(round_robin_weight=1.0)
TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=400.0,
    slowdown_span_s=(0.5, 5.0),
    crashes_per_hour=60.0,
    restart_span_s=(1.0, 5.0),
)


def alone_s(c, input_tokens: int, output_tokens: int) -> float:
    """Time of a request on an idle replica whose budget its prompt fits."""
    span_s = iteration_time_s(c, input_tokens, 0, 0, 0)
    for context in range(input_tokens + 1, input_tokens + output_tokens):
        span_s += iteration_time_s(c, 0, 0, 1, context)
    return span_s


def num_in_flight(requests: np.ndarray, at_s: float) -> int:
    return int(((requests["arrival_s"] <= at_s) & (requests["finish_s"] > at_s)).sum())


def test_one_client_sends_the_next_when_the_last_one_ended(make_cluster, make_workload):
    cluster = make_cluster(max_batch_tokens=512)
    c = replica_coefficients(cluster)[0]
    # The trace's times are not used: all but the first would be late or early.
    workload = make_workload([0.0, 0.001, 50.0], [300, 100, 20], [5, 1, 9])
    config = FleetConfig(closed_loop_requests=1, closed_loop_gap_s=0.25)
    requests = run_workload(cluster, workload, FIRST, config=config).requests
    now_s = 0.0
    for request, (inputs, outputs) in zip(requests, [(300, 5), (100, 1), (20, 9)], strict=True):
        assert request["arrival_s"] == pytest.approx(now_s, abs=1e-12)
        now_s += alone_s(c, inputs, outputs)
        assert request["finish_s"] == pytest.approx(now_s, abs=1e-12)
        now_s += 0.25


def test_two_clients_on_two_replicas(make_cluster, make_workload):
    """Each replica serves one request at a time; whichever ends first gets the next one."""
    cluster = make_cluster(("H100-80G", "H100-80G"))
    c = replica_coefficients(cluster)[0]
    workload = make_workload([0.0] * 4, [200, 200, 100, 50], [40, 10, 10, 3])
    config = FleetConfig(closed_loop_requests=2)
    knobs = Knobs.of(outstanding_requests_weight=1.0)
    requests = run_workload(cluster, workload, knobs, config=config).requests
    second_s = alone_s(c, 200, 10)
    third_s = second_s + alone_s(c, 100, 10)
    expected_s = [0.0, 0.0, second_s, third_s]
    np.testing.assert_allclose(requests["arrival_s"], expected_s, rtol=0, atol=1e-12)
    assert requests["replica"].tolist() == [0, 1, 1, 1]
    assert requests["finish_s"][0] == pytest.approx(alone_s(c, 200, 40), abs=1e-12)


def test_a_refused_request_makes_room_at_once(make_cluster, make_workload):
    """A limit that nothing can meet: all are refused, each when the one before it was."""
    workload = make_workload([0.0] * 5, [2000] * 5, [5] * 5, ttft_slo_s=np.full(5, 1e-6))
    config = FleetConfig(closed_loop_requests=2)
    requests = run_workload(
        make_cluster(), workload, Knobs.of(shed_enabled=1.0, shed_interactive=1.0), config=config
    ).requests
    assert (requests["status"] == SHED).all()
    assert (requests["arrival_s"] == 0.0).all()


def test_requests_beyond_the_clients_wait_outside(make_cluster, make_workload):
    fleet = SimulatedFleet(
        make_cluster(),
        make_workload([0.0] * 6, [500] * 6, [200] * 6),
        FleetConfig(closed_loop_requests=4),
    )
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(0.5)
    assert fleet.requests.size == 4
    assert (fleet.arrays.requests["status"][4:] == PENDING).all()


@pytest.mark.parametrize("num_clients", [1, 7, 50])
def test_so_many_are_in_flight_until_the_trace_ends(
    make_cluster, make_random_workload, num_clients
):
    workload = make_random_workload(200, rate_rps=10.0, seed=5)
    config = FleetConfig(closed_loop_requests=num_clients)
    cluster = make_cluster(("H100-80G", "A100-80G", "L40S-48G"), max_num_seqs=8)
    fleet = run_workload(cluster, workload, SPREAD, config=config)
    requests = fleet.requests
    assert (requests["status"] == FINISHED).all()
    last_s = requests["arrival_s"][-1]
    for at_s in np.linspace(0.0, last_s, 300, endpoint=False):
        assert num_in_flight(requests, at_s) == num_clients
    assert fleet.kpis().num_requests == 200


@settings(max_examples=25, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    num_clients=st.sampled_from([1, 5, 40]),
    gap_s=st.sampled_from([0.0, 0.013]),
    kv_pages=st.sampled_from([200, 400, None]),
    is_in_trouble=st.booleans(),
    is_async_scheduling=st.booleans(),
)
def test_jump_equals_single_steps(
    make_cluster,
    make_random_workload,
    seed,
    num_clients,
    gap_s,
    kv_pages,
    is_in_trouble,
    is_async_scheduling,
):
    workload = make_random_workload(100, rate_rps=10.0, seed=seed, num_prompts=3)
    config = FleetConfig(
        closed_loop_requests=num_clients,
        closed_loop_gap_s=gap_s,
        faults=TROUBLE if is_in_trouble else FaultConfig(),
        is_async_scheduling=is_async_scheduling,
    )
    cluster = make_cluster(("H100-80G", "L40S-48G"), kv_pages=kv_pages, max_num_seqs=16)
    one, other = (
        run_workload(cluster, workload, SPREAD, config=config, seed=seed)
        for config in (config, replace(config, is_single_step=True))
    )
    assert set(one.requests["status"].tolist()) <= {FINISHED, FAILED}
    for name in ("status", "replica", "hit_tokens", "num_preemptions"):
        np.testing.assert_array_equal(one.requests[name], other.requests[name], err_msg=name)
    for name in ("arrival_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(
            one.requests[name], other.requests[name], rtol=0, atol=1e-9, err_msg=name
        )


def test_a_seed_fixes_a_closed_loop(make_cluster, make_random_workload):
    workload = make_random_workload(150, rate_rps=10.0, seed=2)
    config = FleetConfig(closed_loop_requests=20, faults=TROUBLE)
    cluster = make_cluster(("H100-80G", "A100-80G"))
    knobs = Knobs.of(scorer_weight=1.0, shed_enabled=1.0)
    first, second = (
        run_workload(cluster, workload, knobs, config=config, seed=9).requests for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("is_single_step", [False, True])
def test_scheduling_ahead_costs_an_iteration(make_cluster, make_workload, is_single_step):
    """A request that arrives at a busy engine is in the batch after the one composed meanwhile."""
    cluster = make_cluster(max_batch_tokens=512)
    c = replica_coefficients(cluster)[0]
    prefill_s = iteration_time_s(c, 400, 0, 0, 0)
    steps_s = [iteration_time_s(c, 0, 0, 1, context) for context in range(401, 420)]
    late_s = prefill_s + sum(steps_s[:5]) + 0.4 * steps_s[5]
    config = FleetConfig(is_async_scheduling=True, is_single_step=is_single_step)
    workload = make_workload([0.0, late_s], [400, 100], [50, 2])
    first, second = run_workload(cluster, workload, FIRST, config=config).requests
    assert first["first_token_s"] == pytest.approx(prefill_s, abs=1e-12)
    start_s = prefill_s + sum(steps_s[:7])
    expected_s = start_s + iteration_time_s(c, 100, 0, 1, 408)
    assert second["first_token_s"] == pytest.approx(expected_s, abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "value"), [("closed_loop_requests", -1), ("closed_loop_gap_s", -0.5)]
)
def test_settings_below_zero_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be at least 0, got {value}"):
        FleetConfig(**{setting: value})
