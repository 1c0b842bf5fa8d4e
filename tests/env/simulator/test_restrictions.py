"""Rules in the dispatch kernel: who may go where, how many, at what penalty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agents.heuristics import HEURISTICS, heuristic
from trimtab.env.emergency import Emergency, EmergencyAction
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.masks import Mask, mask_text
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.restrictions import (
    ReplicaLimits,
    Restrictions,
    no_limits,
    open_groups,
    unrestricted,
)
from trimtab.env.shed_reason import ShedReason
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.layout import FINISHED, NONE, SHED
from trimtab.env.simulator.setup import FleetConfig

GPUS = ("H100-80G", "H100-80G", "A100-80G", "A100-80G")


def restrict(masks: list[list[int]], tenants: list[str]) -> Restrictions:
    """One group a tenant, by rows of masks; the last row is everybody else's."""
    array = np.array(masks, np.uint16)
    assert len(masks) == len(tenants) + 1
    return Restrictions(
        names=(*tenants, "others"),
        masks=array,
        penalties=np.zeros(array.shape),
        groups=open_groups(len(masks)),
        table=np.arange(len(masks))[:, None],
        tenants={name: i for i, name in enumerate(tenants)},
    )


VIP = restrict(
    [
        [0, 0, Mask.TENANT, Mask.TENANT],
        [Mask.TENANT, Mask.REGION, 0, 0],
        [Mask.TENANT, Mask.TENANT, 0, 0],
    ],
    ["bank", "shop"],
)


def tenants_workload(make_workload, num_requests=240, seed=0):
    rng = np.random.default_rng(seed)
    return make_workload(
        np.cumsum(rng.exponential(0.02, num_requests)),
        rng.integers(10, 900, num_requests),
        rng.integers(1, 80, num_requests),
        tenant=[str(name) for name in rng.choice(["bank", "shop", "visitor"], num_requests)],
        priority=rng.integers(0, 2, num_requests).astype(np.int8),
        prompts=[[int(p)] for p in rng.integers(5, size=num_requests)],
        session=rng.integers(20, size=num_requests),
    )


def places_of(fleet: SimulatedFleet, workload) -> dict[str, set[int]]:
    tenant = np.array(workload.tenant_names)[fleet.requests["tenant"]]
    return {
        str(name): {int(r) for r in fleet.requests["replica"][tenant == name] if r != NONE}
        for name in np.unique(tenant)
    }


@pytest.mark.parametrize("name", HEURISTICS)
def test_no_scheduler_sends_a_tenant_where_it_may_not_go(make_cluster, make_workload, name):
    workload, cluster = tenants_workload(make_workload), make_cluster(GPUS)
    free = run_workload(cluster, workload, heuristic(name).knobs)
    seen = places_of(free, workload)
    assert not (seen["bank"] <= {0, 1} and seen["shop"] <= {2, 3})
    bound = run_workload(
        cluster, workload, heuristic(name).knobs, config=FleetConfig(restrictions=VIP)
    )
    seen = places_of(bound, workload)
    assert seen["bank"] <= {0, 1}
    assert seen["shop"] | seen["visitor"] <= {2, 3}
    assert (bound.requests["status"] == FINISHED).sum() > 200


def test_masks_hold_in_a_fleet_that_scores_a_shortlist(make_cluster, make_workload):
    cluster = repeated_cluster(make_cluster(GPUS), 16)  # 64 replicas
    masks = np.full((2, 64), Mask.TENANT, np.uint16)
    masks[0, 50] = masks[1, :50] = 0
    bound = restrict(masks.tolist(), ["bank"])
    config = FleetConfig(restrictions=bound, num_candidates=4)
    workload = tenants_workload(make_workload)
    seen = places_of(
        run_workload(cluster, workload, ANALYTIC_SCORER_KNOBS, config=config), workload
    )
    assert seen["bank"] == {50}
    assert max(seen["shop"] | seen["visitor"]) < 50


def test_who_may_go_nowhere_is_refused(make_cluster, make_workload):
    nowhere = restrict([[Mask.REGION] * 2, [0, 0]], ["bank"])
    fleet = run_workload(
        make_cluster(GPUS[:2]),
        make_workload([0.0, 0.1], [10, 10], [5, 5], tenant=["bank", "shop"]),
        Knobs.of(),
        config=FleetConfig(restrictions=nowhere),
    )
    assert list(fleet.requests["status"]) == [SHED, FINISHED]


def test_a_penalty_moves_requests_only_while_it_outweighs_the_rest(make_cluster, make_workload):
    base = unrestricted(2)
    costly = Restrictions(
        names=base.names,
        masks=base.masks,
        penalties=np.array([[0.5, 0.0]]),
        groups=base.groups,
        table=base.table,
    )
    workload = make_workload(np.arange(40) * 0.01, [800] * 40, [20] * 40)
    counts = {}
    for name, config in (
        ("free", FleetConfig()),
        ("costly", FleetConfig(restrictions=costly)),
    ):
        knobs = Knobs.of(scorer_weight=1.0)
        fleet = run_workload(make_cluster(GPUS[:2]), workload, knobs, config=config)
        counts[name] = int((fleet.requests["replica"] == 0).sum())
    assert 0 < counts["costly"] < counts["free"]


def test_a_group_sets_limits_class_and_worth(make_cluster, make_workload):
    groups = open_groups(2)
    groups[0] = (0.3, 0.02, 1.0, 5.0, np.inf, np.inf, np.inf, np.inf, 0, 0)
    bound = Restrictions(
        names=("bank", "others"),
        masks=np.zeros((2, 1), np.uint16),
        penalties=np.zeros((2, 1)),
        groups=groups,
        table=np.array([[0], [1]]),
        tenants={"bank": 0},
    )
    fleet = SimulatedFleet(
        make_cluster(),
        make_workload([0.0, 0.0], [10, 10], [5, 5], tenant=["bank", "shop"], ttft_slo_s=1.5),
        FleetConfig(restrictions=bound),
    )
    fleet.reset(seed=0)
    fleet.drain()
    bank, shop = fleet.requests
    query = bank["query"]
    assert (query["ttft_slo_s"], query["tpot_slo_s"], query["priority"]) == (0.3, 0.02, 1)
    assert bank["weight"] == 5.0
    assert (shop["query"]["ttft_slo_s"], shop["query"]["priority"]) == (1.5, 0)


def test_groups_of_a_tenant_share_its_budget(make_cluster, make_workload):
    """Two requests in all, not two with and two without the adapter."""
    groups = open_groups(2)
    groups["requests_per_s"], groups["burst_requests"] = 1e-6, 2.0
    groups["budget_group"] = 0
    bound = Restrictions(
        names=("bank with adapter lora", "bank"),
        masks=np.zeros((2, 1), np.uint16),
        penalties=np.zeros((2, 1)),
        groups=groups,
        table=np.array([[0, 1]]),
        adapters={"lora": 0},
    )
    adapters = ["lora", None, "lora", None]
    workload = make_workload([0.0, 0.1, 0.2, 0.3], [10] * 4, [5] * 4, adapter=adapters)
    fleet = SimulatedFleet(make_cluster(), workload, FleetConfig(restrictions=bound))
    fleet.reset(seed=0)
    fleet.drain()
    assert fleet.requests["query"]["group"].tolist() == [0, 1, 0, 1]
    assert fleet.requests["shed_reason"].tolist() == [0, 0, ShedReason.BUDGET, ShedReason.BUDGET]


def test_a_budget_of_no_group_is_refused():
    groups = open_groups(1)
    groups["budget_group"] = 1
    with pytest.raises(ValueError, match=r"budget_group must be from 0 to 0, got \[1\]"):
        Restrictions(
            names=("all",),
            masks=np.zeros((1, 1), np.uint16),
            penalties=np.zeros((1, 1)),
            groups=groups,
            table=np.zeros((1, 1), np.int64),
        )


def test_limits_of_the_moment(make_cluster, make_workload):
    cluster = make_cluster(GPUS[:2])
    fleet = SimulatedFleet(cluster, make_workload(np.arange(12) * 0.5, [100] * 12, [400] * 12))
    fleet.reset(seed=0, knobs=Knobs.of(outstanding_requests_weight=1.0))

    def limit(**changes):
        now = no_limits(cluster)
        fields = {n: getattr(now, n) for n in ("masks", "max_outstanding", "penalties")}
        fleet.limit(ReplicaLimits(**(fields | changes)))

    limit(masks=np.array([Mask.QUARANTINED, 0], np.uint16))
    fleet.advance(1.2)
    assert set(fleet.requests["replica"]) == {1}
    limit(max_outstanding=np.array([1.0, 0.0]))
    fleet.advance(1.0)
    # One goes to the first replica, which is full then.
    assert list(fleet.requests["replica"][3:5]) == [0, NONE]
    limit()
    fleet.advance(2.0)
    assert set(fleet.requests["replica"][5:]) == {0, 1}


def test_moments_of_a_fleet_keep_its_limits(make_cluster, make_workload):
    cluster = make_cluster(GPUS)
    fleet = SimulatedFleet(cluster, tenants_workload(make_workload), FleetConfig(restrictions=VIP))
    fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
    masks = np.array([Mask.STALE, 0, 0, Mask.MAINTENANCE], np.uint16)
    fleet.limit(
        ReplicaLimits(masks=masks, max_outstanding=np.full(4, 9.0), penalties=np.arange(4.0))
    )
    fleet.advance(1.0)
    copy, held = fleet.branch(), fleet.snapshot()
    fleet.limit(no_limits(cluster))
    fleet.drain()
    copy.drain()
    assert {0, 3} & set(fleet.requests["replica"])
    assert not {0, 3} & set(copy.requests["replica"])
    fleet.restore(held)
    fleet.drain()
    assert np.array_equal(fleet.requests["replica"], copy.requests["replica"])
    assert np.array_equal(fleet.requests["finish_s"], copy.requests["finish_s"], equal_nan=True)


def test_a_session_does_not_migrate_where_it_may_not_go(make_cluster, make_workload):
    fleet = SimulatedFleet(
        make_cluster(GPUS),
        make_workload([0.0], [100], [400], tenant="bank"),
        FleetConfig(restrictions=VIP),
    )
    fleet.reset(seed=0)
    fleet.advance(1.0)
    with pytest.raises(ValueError, match="may not go there by the rules in force"):
        fleet.migrate(0, 2)
    fleet.migrate(0, 1)


@given(
    masks=st.lists(st.sampled_from([0, 8, 16, 24]), min_size=12, max_size=12),
    seed=st.integers(0, 9),
)
def test_any_masks_hold(make_cluster, make_workload, masks, seed):
    bound = restrict(np.reshape(masks, (3, 4)).tolist(), ["bank", "shop"])
    workload = tenants_workload(make_workload, 60, seed)
    fleet = run_workload(
        make_cluster(GPUS),
        workload,
        ANALYTIC_SCORER_KNOBS,
        config=FleetConfig(restrictions=bound),
        seed=seed,
    )
    for tenant, places in places_of(fleet, workload).items():
        row = bound.masks[bound.group_of(tenant)]
        assert all(row[r] == 0 for r in places)
        if (row != 0).all():
            is_own = np.array(workload.tenant_names)[fleet.requests["tenant"]] == tenant
            assert (fleet.requests["status"][is_own] == SHED).all()


def test_faults_say_what_is_expected(make_cluster, make_workload):
    workload = make_workload([0.0], [10], [5])
    fleet = SimulatedFleet(make_cluster(), workload, FleetConfig(restrictions=VIP))
    with pytest.raises(ValueError, match="for 4 replicas, but the cluster has 1"):
        fleet.reset(seed=0)
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0)
    with pytest.raises(ValueError, match="limits must be of 1 replicas, got 4"):
        fleet.limit(no_limits(make_cluster(GPUS)))
    with pytest.raises(ValueError, match=r"amount of shed must be in \[0.1, 50\] .*, got 99"):
        EmergencyAction(kind=Emergency.SHED, amount=99)
    with pytest.raises(ValueError, match="is done to a replica, got replica None"):
        EmergencyAction(kind=Emergency.MOVE_KV, amount=3)
    with pytest.raises(ValueError, match="table must name groups from 0 to 0"):
        Restrictions(
            names=("all",),
            masks=np.zeros((1, 2), np.uint16),
            penalties=np.zeros((1, 2)),
            groups=open_groups(1),
            table=np.ones((1, 1), np.int64),
        )


def test_a_mask_says_why():
    assert mask_text(0) == "may take it"
    text = mask_text(Mask.REGION | Mask.STALE)
    assert text == "is outside the tenant's regions; was last heard of too long ago"
