"""Emergency actions on a simulated fleet: what each does, and that undoing it leaves nothing."""

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.emergency import Emergency, EmergencyAction
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.kpis import compute_kpis
from trimtab.env.masks import Mask
from trimtab.env.restrictions import ReplicaLimits, no_limits
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.layout import DECODING, FINISHED, MOVING, SHED
from trimtab.env.simulator.setup import FleetConfig

FIRST = Knobs.of()


def act(fleet, kind, amount, replica=None):
    return fleet.act(EmergencyAction(kind=kind, amount=amount, replica=replica))


def begin(cluster, workload, knobs=FIRST, **config) -> SimulatedFleet:
    fleet = SimulatedFleet(cluster, workload, FleetConfig(**config))
    fleet.reset(seed=0, knobs=knobs)
    return fleet


def test_a_cap_on_batch_tokens_slows_prefill_until_it_is_undone(make_cluster, make_workload):
    workload = make_workload([0.0, 2.0], [4000, 4000], [2, 2])
    ttft_s = {}
    for amount in (1.0, 0.125):
        fleet = begin(make_cluster(max_batch_tokens=2048), workload)
        assert act(fleet, Emergency.CAP_BATCH_TOKENS, amount, 0) == 1
        fleet.run_until(1.9)
        fleet.undo(Emergency.CAP_BATCH_TOKENS, 0)
        fleet.drain()
        ttft_s[amount] = fleet.requests["first_token_s"] - fleet.requests["arrival_s"]
    # 16 chunks in place of 2 read the weights 14 times more.
    assert ttft_s[0.125][0] > 1.3 * ttft_s[1.0][0]
    assert ttft_s[0.125][1] == pytest.approx(ttft_s[1.0][1], abs=1e-9)


def test_shedding_refuses_what_would_be_late_whatever_the_knobs_say(make_cluster, make_workload):
    workload = make_workload(
        [0.0, 0.01, 0.02, 3.0], [9000, 9000, 50, 9000], [2] * 4, ttft_slo_s=0.1
    )
    fleet = begin(make_cluster(), workload)
    act(fleet, Emergency.SHED, 2.0)
    fleet.run_until(2.5)
    assert list(fleet.requests["status"]) == [SHED, SHED, FINISHED]
    fleet.undo(Emergency.SHED)
    fleet.drain()
    assert fleet.requests["status"][3] == FINISHED


def test_shrinking_cuts_new_batch_requests_and_their_worth(make_cluster, make_workload):
    workload = make_workload(
        [0.0, 0.1, 0.2, 0.3, 60.0],
        [50] * 5,
        [100, 100, 100, 10, 100],
        priority=[0, 1, 1, 1, 1],
        num_sequences=[2, 1, 2, 1, 1],
        ttft_slo_s=5.0,
        tpot_slo_s=5.0,
    )
    fleet = begin(make_cluster(), workload)
    act(fleet, Emergency.SHRINK_BEST_EFFORT, 40)
    fleet.run_until(50.0)
    fleet.undo(Emergency.SHRINK_BEST_EFFORT)
    fleet.drain()
    requests = fleet.requests
    assert list(requests["generated_tokens"]) == [100, 40, 40, 10, 100]
    assert list(requests["extra_sequences"]) == [1, 0, 0, 0, 0]
    assert requests["worth_frac"] == pytest.approx([1.0, 0.4, 0.2, 1.0, 1.0])
    kpis = compute_kpis(requests, fleet.arrays.replicas)
    # Weights 2, 1, 1, 1, 1.
    assert kpis.goodput_frac == pytest.approx((2 + 0.4 + 0.2 + 1 + 1) / 6)
    credit = fleet.credit_by_window(100.0, 1).sum()
    assert credit == pytest.approx(2 + 0.4 + 0.2 + 1 + 1)
    # The recording itself is whole for the next run.
    fleet.reset(seed=0, knobs=FIRST)
    fleet.drain()
    assert list(fleet.requests["generated_tokens"]) == [100, 100, 100, 10, 100]


def spill_cluster() -> ClusterSpec:
    servers = (
        ServerSpec(name="s0", zone="z0", gpu="H100-80G", num_gpus=1),
        ServerSpec(name="s1", zone="z0", gpu="L40S-48G", num_gpus=1),
    )
    replicas = tuple(
        ReplicaSpec(
            name=f"r{i}", server=f"s{i}", model="llama-3-8b", gpu_indices=(0,), is_spill=i == 1
        )
        for i in range(2)
    )
    return ClusterSpec(name="spill", servers=servers, replicas=replicas)


def test_the_spill_tier_takes_short_requests_only_while_it_may(make_workload):
    arrival_s = np.arange(60) * 0.05
    workload = make_workload(arrival_s, [100, 2000] * 30, [20] * 60)
    fleet = begin(spill_cluster(), workload, ANALYTIC_SCORER_KNOBS)
    fleet.run_until(0.99)
    assert set(fleet.requests["replica"]) == {0}
    # Nothing is known of answers yet: some hundred tokens are expected of each.
    act(fleet, Emergency.SPILL_SHORT, 600)
    fleet.limit(
        ReplicaLimits(
            masks=np.array([Mask.QUARANTINED, Mask.SPILL], np.uint16),
            max_outstanding=np.full(2, np.inf),
            penalties=np.zeros(2),
        )
    )
    fleet.run_until(1.99)
    new = fleet.requests[20:]
    is_short = new["query"]["input_tokens"] == 100
    assert set(new["replica"][is_short]) == {1}
    assert set(new["status"][~is_short]) == {SHED}
    fleet.undo(Emergency.SPILL_SHORT)
    fleet.limit(no_limits(fleet.cluster))
    fleet.drain()
    assert set(fleet.requests["replica"][40:]) == {0}


def test_moving_kv_takes_the_longest_of_the_least_urgent(make_cluster, make_workload):
    cluster = make_cluster(("H100-80G", "H100-80G"), kv_pages=2000)
    workload = make_workload(
        np.arange(5) * 1e-3, [800, 900, 1000, 700, 600], [2000] * 5, priority=[0, 1, 0, 1, 0]
    )
    fleet = begin(cluster, workload)
    fleet.run_until(2.0)
    assert set(fleet.requests["replica"]) == {0}
    assert act(fleet, Emergency.MOVE_KV, 3, 0) == 3
    fleet.run_until(4.0)
    # The two batch requests, then the longest of the others.
    assert list(fleet.requests["replica"]) == [0, 1, 1, 1, 0]
    assert set(fleet.requests["status"]) == {DECODING}
    fleet.drain()
    assert set(fleet.requests["status"]) == {FINISHED}


def test_nothing_moves_where_there_is_no_room_or_no_leave(make_cluster, make_workload):
    cluster = make_cluster(("H100-80G", "H100-80G"), kv_pages=120)
    workload = make_workload([0.0, 1e-3, 2e-3], [1000, 1000, 1000], [900] * 3)
    fleet = begin(cluster, workload, Knobs.of(outstanding_requests_weight=1.0))
    fleet.run_until(2.0)
    # One runs on each, and neither has the pages for a second.
    assert act(fleet, Emergency.MOVE_KV, 8, 0) + act(fleet, Emergency.MOVE_KV, 8, 1) == 0
    limits = ReplicaLimits(
        masks=np.array([0, Mask.MAINTENANCE], np.uint16),
        max_outstanding=np.full(2, np.inf),
        penalties=np.zeros(2),
    )
    fleet = begin(make_cluster(("H100-80G", "H100-80G")), workload)
    fleet.limit(limits)
    fleet.run_until(1.0)
    assert act(fleet, Emergency.MOVE_KV, 8, 0) == 0
    fleet.run_until(1.5)
    assert MOVING not in fleet.requests["status"]


def test_a_fleet_says_what_it_cannot_do(make_cluster, make_workload):
    workload = make_workload([0.0], [10], [5])
    able = frozenset({Emergency.SHED, Emergency.SPILL_SHORT})
    fleet = begin(make_cluster(), workload, emergencies=able)
    assert fleet.can(Emergency.SHED)
    assert not fleet.can(Emergency.CAP_BATCH_TOKENS, 0)
    # Its engines could, but there is no spill tier.
    assert not fleet.can(Emergency.SPILL_SHORT)
    with pytest.raises(ValueError, match=r"replica must be in \[0, 0\], got 3"):
        act(fleet, Emergency.CAP_BATCH_TOKENS, 0.5, 3)


@pytest.mark.parametrize("kind", Emergency)
def test_an_action_done_and_undone_at_once_changes_nothing(
    make_cluster, make_random_workload, kind
):
    workload = make_random_workload(80, rate_rps=40.0, seed=3)
    ends = []
    for is_done in (False, True):
        fleet = begin(make_cluster(("H100-80G",) * 2), workload, ANALYTIC_SCORER_KNOBS)
        fleet.run_until(1.0)
        if is_done and kind is not Emergency.MOVE_KV:
            replica = (
                0 if kind in (Emergency.CAP_BATCH_TOKENS, Emergency.FREEZE_KV_GROWTH) else None
            )
            act(fleet, kind, 1.0, replica)
            fleet.undo(kind, replica)
        fleet.drain()
        ends.append(fleet.requests["finish_s"].copy())
    assert np.allclose(ends[0], ends[1], atol=1e-9, equal_nan=True)


def test_snapshots_hold_what_is_in_force(make_cluster, make_random_workload):
    workload = make_random_workload(200, rate_rps=150.0, seed=4)
    fleet = begin(make_cluster(max_batch_tokens=1024), workload, ANALYTIC_SCORER_KNOBS)
    fleet.run_until(0.3)
    act(fleet, Emergency.SHED, 1.0)
    act(fleet, Emergency.SHRINK_BEST_EFFORT, 20)
    act(fleet, Emergency.CAP_BATCH_TOKENS, 0.25, 0)
    copy = fleet.branch()
    for one in (fleet, copy):
        one.drain()
    assert (fleet.requests["worth_frac"] < 1.0).any()
    for name in ("finish_s", "worth_frac", "status"):
        assert np.array_equal(fleet.requests[name], copy.requests[name], equal_nan=True)
