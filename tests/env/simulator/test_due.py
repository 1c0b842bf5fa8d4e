"""The tree of due replicas against a plain list, and jumps that stay planned between looks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.due import next_due, next_event_s, set_next_event, wake
from trimtab.env.simulator.layout import NONE
from trimtab.env.simulator.memory import handle
from trimtab.env.simulator.setup import FleetConfig

MOMENTS = st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0, np.inf])


@settings(max_examples=40, derandomize=True, database=None)
@given(
    num_replicas=st.sampled_from([1, 2, 3, 8, 13]),
    changes=st.lists(st.tuples(st.integers(0, 12), MOMENTS), max_size=40),
    now_s=st.sampled_from([0.5, 1.5, 3.0]),
)
def test_due_replicas_are_those_of_a_plain_list(
    make_cluster, make_workload, num_replicas, changes, now_s
):
    fleet = SimulatedFleet(make_cluster(("H100-80G",) * num_replicas), make_workload([0], [9], [1]))
    fleet.reset(seed=0)
    sim, plain = handle(fleet.arrays)[0], np.full(num_replicas, np.inf)
    for replica, at_s in changes:
        plain[replica % num_replicas] = at_s
        set_next_event(sim, replica % num_replicas, at_s)
    due, replica = [], next_due(sim, 0, now_s)
    while replica != NONE:
        due.append(replica)
        replica = next_due(sim, replica + 1, now_s)
    assert due == np.flatnonzero(plain <= now_s).tolist()
    assert [next_event_s(sim, r) for r in range(num_replicas)] == plain.tolist()


def test_waking_drops_the_plan_and_never_delays(make_cluster, make_workload):
    workload = make_workload([0.0], [200], [500])
    fleet = SimulatedFleet(make_cluster(), workload, FleetConfig(scrape_interval_s=100.0))
    fleet.reset(seed=0)
    fleet.advance(1.0)
    sim, replica = handle(fleet.arrays)[0], fleet.arrays.replicas
    assert 0 < replica["plan_iterations"][0] < 499
    planned_s = next_event_s(sim, 0)
    assert planned_s > 1.0
    wake(sim, 0, 1.0)
    assert replica["plan_iterations"][0] == 0
    wake(sim, 0, 2.0)
    assert next_event_s(sim, 0) == 1.0
    fleet.drain()
    # The one request ends when it was planned to.
    assert fleet.requests["finish_s"][0] == pytest.approx(planned_s, abs=1e-9)


@pytest.mark.parametrize("kv_pages", [None, 200])
def test_looking_often_changes_nothing(make_cluster, make_random_workload, kv_pages):
    """Scrapes cut every jump into parts; a policy that does not read them fares the same."""
    workload = make_random_workload(300, rate_rps=25.0, seed=4, mean_output_tokens=200.0)
    cluster = make_cluster(("H100-80G", "A100-80G"), kv_pages=kv_pages)
    often, seldom = (
        run_workload(
            cluster,
            workload,
            Knobs.of(round_robin_weight=1.0),
            config=FleetConfig(scrape_interval_s=interval_s),
        )
        for interval_s in (0.002, 1000.0)
    )
    steps = [fleet.arrays.replicas["num_steps"].sum() for fleet in (often, seldom)]
    assert steps[0] > 3 * steps[1]
    for name in ("status", "hit_tokens", "num_preemptions"):
        np.testing.assert_array_equal(often.requests[name], seldom.requests[name])
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(
            often.requests[name], seldom.requests[name], rtol=0, atol=1e-9, err_msg=name
        )
