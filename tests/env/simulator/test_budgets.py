"""Budgets in the simulator's dispatch, and the reasons that refusals carry."""

import numpy as np
import pytest

from trimtab.env.emergency import Emergency, EmergencyAction
from trimtab.env.knobs import Knobs
from trimtab.env.masks import Mask
from trimtab.env.request_life import read_life
from trimtab.env.restrictions import Restrictions, open_groups
from trimtab.env.shed_reason import SHED_TEXTS, ShedReason, shed_text
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.layout import FINISHED, SHED
from trimtab.env.simulator.setup import FleetConfig
from trimtab.scripts.life_text import outcome_lines

FIRST = Knobs.of()


def budget(num_replicas: int = 1, masks: int = 0, **values: float) -> Restrictions:
    """The bank has a group with these values of its own; everybody else has none."""
    groups = open_groups(2)
    for name, value in values.items():
        groups[name][0] = value
    return Restrictions(
        names=("bank", "others"),
        masks=np.array([[masks] * num_replicas, [0] * num_replicas], np.uint16),
        penalties=np.zeros((2, num_replicas)),
        groups=groups,
        table=np.array([[0], [1]]),
        tenants={"bank": 0},
    )


def run(cluster, workload, restrictions, knobs=FIRST, **config) -> SimulatedFleet:
    return run_workload(
        cluster, workload, knobs, config=FleetConfig(restrictions=restrictions, **config)
    )


def test_a_tenant_over_its_budget_is_refused_and_others_are_not(make_cluster, make_workload):
    tenant = ["bank", "bank", "shop", "bank", "shop", "bank"]
    workload = make_workload([0.0, 0.1, 0.1, 0.2, 0.3, 2.0], [10] * 6, [5] * 6, tenant=tenant)
    fleet = run(make_cluster(), workload, budget(requests_per_s=1.0, burst_requests=2.0))
    status, reason = fleet.requests["status"], fleet.requests["shed_reason"]
    assert list(status) == [FINISHED, FINISHED, FINISHED, SHED, FINISHED, FINISHED]
    assert list(reason) == [0, 0, 0, ShedReason.BUDGET, 0, 0]
    # A run begins with full buckets, whatever the one before took.
    fleet.reset(seed=0, knobs=FIRST)
    fleet.drain()
    assert np.array_equal(fleet.requests["status"], status)


def test_a_request_costs_its_prompt_and_what_is_expected_of_each_answer(
    make_cluster, make_workload
):
    # 200 tokens are expected before any answer has ended.
    workload = make_workload(
        [0.0, 0.0], [100, 100], [5, 5], tenant=["bank"] * 2, num_sequences=[3, 1]
    )
    fleet = run(make_cluster(), workload, budget(tokens_per_s=1.0, burst_tokens=1000.0))
    assert list(fleet.requests["paid_tokens"]) == [100 + 3 * 200, 100 + 200]
    assert fleet.arrays.buckets["tokens"][0] == pytest.approx(0.0)
    fleet = run(make_cluster(), workload, budget(tokens_per_s=1.0, burst_tokens=999.0))
    assert list(fleet.requests["status"]) == [FINISHED, SHED]


def test_a_group_may_send_what_it_has_no_budget_for_as_batch(make_cluster, make_workload):
    workload = make_workload([0.0, 0.1, 0.2], [10] * 3, [5] * 3, tenant=["bank"] * 3)
    rules = budget(requests_per_s=1e-6, burst_requests=1.0, is_demoting=1)
    fleet = SimulatedFleet(make_cluster(), workload, FleetConfig(restrictions=rules))
    fleet.reset(seed=0, knobs=FIRST)
    fleet.act(EmergencyAction(kind=Emergency.SHRINK_BEST_EFFORT, amount=2))
    fleet.drain()
    assert list(fleet.requests["query"]["priority"]) == [0, 1, 1]
    assert set(fleet.requests["status"]) == {FINISHED}
    # Demoted requests are cut as batch requests are.
    assert list(fleet.requests["generated_tokens"]) == [5, 2, 2]
    assert list(fleet.requests["paid_tokens"]) == [210, 0, 0]
    fleet.reset(seed=0, knobs=FIRST)
    assert set(fleet.arrays.requests["query"]["priority"]) == {0}


def test_what_is_refused_for_another_reason_costs_nothing(make_cluster, make_workload):
    workload = make_workload([0.0, 0.1], [10, 10], [5, 5], tenant=["bank"] * 2)
    rules = budget(masks=Mask.REGION, requests_per_s=1e-6, burst_requests=1.0)
    fleet = run(make_cluster(), workload, rules)
    assert set(fleet.requests["shed_reason"]) == {ShedReason.NOBODY}
    assert fleet.arrays.buckets["requests"][0] == 1.0


def test_gateways_share_a_budget_and_copies_of_a_fleet_do_not(make_cluster, make_random_workload):
    workload = make_random_workload(100, rate_rps=50.0, seed=1)
    rules = budget(num_replicas=2, requests_per_s=5.0, burst_requests=10.0)
    rules.table[:] = 0
    config = FleetConfig(restrictions=rules, num_gateways=4)
    fleet = SimulatedFleet(make_cluster(("H100-80G",) * 2), workload, config)
    fleet.reset(seed=0, knobs=FIRST)
    fleet.run_until(1.0)
    copy = fleet.branch()
    for one in (fleet, copy):
        one.drain()
        taken = (one.requests["shed_reason"] == 0).sum()
        assert 10 <= taken <= 10 + 5.0 * workload.span_s
    assert np.array_equal(fleet.requests["status"], copy.requests["status"])


@pytest.mark.parametrize("reason", ShedReason)
def test_a_life_says_why_a_request_was_refused(make_cluster, make_workload, reason):
    workload = make_workload([0.0, 0.0], [9000, 9000], [2, 2], ttft_slo_s=0.1, tenant=["bank"] * 2)
    rules, knobs = None, FIRST
    if reason is ShedReason.BUDGET:
        rules = budget(requests_per_s=1.0, burst_requests=1.0)
    elif reason is ShedReason.NOBODY:
        rules = budget(masks=Mask.TENANT)
    elif reason is ShedReason.LATE:
        knobs = Knobs.of(shed_enabled=1.0, shed_interactive=1.5)
    config = FleetConfig(restrictions=rules, watched_request=1)
    fleet = SimulatedFleet(make_cluster(), workload, config)
    fleet.reset(seed=0, knobs=knobs)
    if reason in (ShedReason.EMERGENCY, ShedReason.LATE):
        # Where both refuse, it is the knobs that are named.
        fleet.act(EmergencyAction(kind=Emergency.SHED, amount=1.5))
    fleet.drain()
    assert fleet.requests["shed_reason"][1] == reason
    life, words = read_life(fleet), SHED_TEXTS[reason]
    assert life.refusal == words
    assert life.notes[-1].text == f"refused by the gateway: {words}"
    assert f"  refused: {words}" in outcome_lines(life)


def test_who_is_not_refused_has_no_reason():
    assert shed_text(0) is None
