"""The live dispatcher: the simulator's choices and counts, on the moments of a live gateway."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.masks import Mask
from trimtab.env.restrictions import ReplicaLimits, Restrictions, open_groups
from trimtab.env.shed_reason import ShedReason
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.layout import FINISHED
from trimtab.env.simulator.workload import compile_workload
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.replica_page import ReplicaPage
from trimtab.runtime.dispatcher.request import (
    Ending,
    Placement,
    Refusal,
    RequestEnd,
    RequestFacts,
)
from trimtab.traces.bundled import load_bundled
from trimtab.traces.superposition import superpose

LEAST_REQUESTS = Knobs.of(outstanding_requests_weight=1.0)


@pytest.fixture(scope="module")
def cluster() -> ClusterSpec:
    return load_cluster("demo-16")


def make_dispatcher(
    cluster: ClusterSpec, knobs: Knobs = LEAST_REQUESTS, *, num_up: int = 16, keep_every: int = 0
) -> LiveDispatcher:
    dispatcher = LiveDispatcher(cluster, knobs=knobs, keep_every=keep_every, num_kept=4)
    for replica in range(num_up):
        dispatcher.set_available(replica, True, 0.0)
    return dispatcher


def make_facts(number: int = 0, **changes: object) -> RequestFacts:
    values: dict[str, object] = {
        "request_id": f"r{number}", "model": "m", "model_index": 0, "tenant": "t",
        "input_tokens": 100, "max_output_tokens": 64, "expected_output_tokens": 64.0,
        "output_tokens_p90": 64.0, "ttft_slo_s": 10.0, "tpot_slo_s": 1.0, "arrived_at_s": 0.0,
        "is_stream": True,
    }  # fmt: skip
    return RequestFacts(**(values | changes))  # type: ignore[arg-type]


def placed(chosen: Placement | Refusal) -> Placement:
    assert isinstance(chosen, Placement), chosen
    return chosen


def ended(ending: Ending = Ending.FINISHED, at_s: float = 1.0, tokens: int = 5) -> RequestEnd:
    return RequestEnd(ending=ending, status=200, ended_at_s=at_s, output_tokens=tokens)


@pytest.mark.parametrize(
    "knobs",
    [
        LEAST_REQUESTS,
        Knobs.of(outstanding_tokens_weight=1.0, pending_tokens_weight=2.0),
        Knobs.of(round_robin_weight=1.0),
    ],
)
def test_it_chooses_as_the_simulated_gateway_does(knobs: Knobs) -> None:
    trace = superpose(load_bundled("azure-conv"), rate_rps=20.0, span_s=20.0, seed=1)
    fleet = SimulatedFleet(load_cluster("demo-16"), compile_workload(trace, name="plain"))
    fleet.reset(seed=0, knobs=knobs)
    fleet.drain()
    requests = fleet.requests
    assert (requests["status"] == FINISHED).all()
    assert (requests["num_dispatches"] == 1).all()
    events = [(r["arrival_s"], 2, i) for i, r in enumerate(requests)]
    events += [(r["first_token_s"], 1, i) for i, r in enumerate(requests)]
    events += [(r["finish_s"], 0, i) for i, r in enumerate(requests)]
    dispatcher = make_dispatcher(fleet.cluster, knobs)
    placements: dict[int, Placement] = {}
    chosen = np.zeros(len(requests), np.int64)
    for at_s, what, i in sorted(events):
        query = requests[i]["query"]
        if what == 2:
            facts = make_facts(
                i,
                input_tokens=int(query["input_tokens"]),
                expected_output_tokens=float(query["expected_output_tokens"]),
            )
            placements[i] = placed(dispatcher.dispatch(facts, at_s))
            chosen[i] = placements[i].replica
        elif what == 1:
            dispatcher.first_token(placements[i], at_s)
        else:
            dispatcher.finish(placements[i], ended(at_s=at_s))
    assert (chosen == requests["replica"]).all()
    assert dispatcher.num_open == 0
    assert not dispatcher.views["outstanding_requests"].any()


def test_counts_return_to_nothing_whatever_the_endings(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster)
    placements = [placed(dispatcher.dispatch(make_facts(i), 0.0)) for i in range(40)]
    assert dispatcher.views["outstanding_requests"].sum() == 40
    assert dispatcher.views["pending_tokens"].sum() == 4000.0
    for number, placement in enumerate(placements):
        if number % 2:
            dispatcher.first_token(placement, 0.5)
        dispatcher.finish(placement, ended(list(Ending)[number % len(Ending)]))
    for name in ("outstanding_requests", "outstanding_tokens", "pending_tokens"):
        assert not dispatcher.views[name].any(), name
    totals = dispatcher.totals
    assert (totals.num_arrived, totals.num_placed, totals.num_open) == (40, 40, 0)
    assert totals.num_finished + totals.num_failed + totals.num_aborted + totals.num_refused == 40


def test_a_repeated_prompt_goes_where_its_prefix_is(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, Knobs.of(prefix_miss_weight=1.0))
    blocks = np.arange(1, 5, dtype=np.uint64)
    known = {"blocks": blocks, "block_tokens": 20}
    first = placed(dispatcher.dispatch(make_facts(0, **known), 0.0))
    again = placed(dispatcher.dispatch(make_facts(1, **known), 0.0))
    assert first.hit_tokens == 0
    assert (again.replica, again.hit_tokens) == (first.replica, 80)


def test_a_whole_hit_still_computes_one_token(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, Knobs.of(prefix_miss_weight=1.0))
    known = {"blocks": np.arange(1, 6, dtype=np.uint64), "block_tokens": 20}
    dispatcher.dispatch(make_facts(0, **known), 0.0)
    assert placed(dispatcher.dispatch(make_facts(1, **known), 0.0)).hit_tokens == 80


def test_a_second_choice_avoids_those_that_were_tried(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, num_up=3)
    placement = placed(dispatcher.dispatch(make_facts(), 0.0))
    seen = [placement.replica]
    for _ in range(2):
        placement = placed(dispatcher.redispatch(placement, 0.1, "connection refused"))
        seen.append(placement.replica)
    assert sorted(seen) == [0, 1, 2]
    assert placement.num_attempts == 3
    lost = dispatcher.redispatch(placement, 0.2, "connection refused")
    assert isinstance(lost, Refusal)
    assert (lost.status, lost.message) == (
        503,
        "connection refused, and no other replica can take the request",
    )
    assert not dispatcher.views["outstanding_requests"].any()
    assert not dispatcher.views["mask"].any()
    assert (dispatcher.totals.num_failed, dispatcher.num_open) == (1, 0)


def test_nobody_up_is_503_and_too_late_is_429(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, num_up=0)
    refusal = dispatcher.dispatch(make_facts(), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (503, "rejected-no-endpoints")
    dispatcher = make_dispatcher(cluster, ANALYTIC_SCORER_KNOBS)
    refusal = dispatcher.dispatch(make_facts(input_tokens=4000, ttft_slo_s=1e-4), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (429, "rejected-saturated")
    assert dispatcher.totals.shed_by_reason[ShedReason.LATE] == 1


def test_an_emergency_refuses_what_the_knobs_would_take(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster)
    facts = make_facts(input_tokens=4000, ttft_slo_s=1e-4)
    placed(dispatcher.dispatch(facts, 0.0))
    dispatcher.set_emergency(shed_limits=1.0)
    assert isinstance(dispatcher.dispatch(facts, 0.0), Refusal)
    assert dispatcher.totals.shed_by_reason[ShedReason.EMERGENCY] == 1


def test_limits_of_the_shield_are_obeyed(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster)
    masks = np.full(16, int(Mask.QUARANTINED), np.uint16)
    masks[5] = masks[6] = 0
    most = np.full(16, np.inf)
    most[5] = 2
    dispatcher.set_limits(ReplicaLimits(masks=masks, max_outstanding=most, penalties=np.zeros(16)))
    chosen = [placed(dispatcher.dispatch(make_facts(i), 0.0)).replica for i in range(10)]
    assert (chosen.count(5), chosen.count(6)) == (2, 8)


def test_rules_keep_a_tenant_in_its_pool(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster)
    masks = np.zeros((2, 16), np.uint16)
    masks[1, 1:] = int(Mask.REGION)
    rules = Restrictions(
        names=("all", "eu"), masks=masks, penalties=np.zeros((2, 16)), groups=open_groups(2),
        table=np.array([[1], [0]]), tenants={"eu": 0},
    )  # fmt: skip
    dispatcher.set_restrictions(rules)
    pool = {placed(dispatcher.dispatch(make_facts(i, tenant="eu"), 0.0)).replica for i in range(8)}
    free = {placed(dispatcher.dispatch(make_facts(i), 0.0)).replica for i in range(8)}
    assert pool == {0}
    assert len(free) == 8


def test_a_budget_is_taken_from_and_given_back(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster)
    groups = open_groups(1)
    groups["requests_per_s"], groups["burst_requests"] = 1.0, 2.0
    rules = Restrictions(
        names=("all",), masks=np.zeros((1, 16), np.uint16), penalties=np.zeros((1, 16)),
        groups=groups, table=np.zeros((1, 1), np.int64),
    )  # fmt: skip
    dispatcher.set_restrictions(rules)
    answers = [dispatcher.dispatch(make_facts(i), 0.0) for i in range(3)]
    assert [isinstance(a, Placement) for a in answers] == [True, True, False]
    assert isinstance(answers[2], Refusal)
    assert answers[2].code == "rejected-budget"
    placed(dispatcher.dispatch(make_facts(), 1.0))
    # What nobody can take costs nothing.
    for replica in range(16):
        dispatcher.set_available(replica, False, 1.0)
    assert isinstance(dispatcher.dispatch(make_facts(), 2.0), Refusal)
    dispatcher.set_available(0, True, 2.0)
    placed(dispatcher.dispatch(make_facts(), 2.0))


def test_a_replica_that_went_down_is_forgotten(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, num_up=1)
    placement = placed(dispatcher.dispatch(make_facts(blocks=np.ones(1, np.uint64)), 0.0))
    dispatcher.set_available(0, False, 1.0)
    dispatcher.finish(placement, ended(Ending.FAILED))
    assert dispatcher.views["outstanding_requests"][0] == 0
    assert dispatcher.prefix_index.num_blocks(0) == 0
    dispatcher.set_available(0, True, 2.0)
    assert dispatcher.views["scraped_at_s"][0] == 2.0


def test_what_a_page_does_not_say_stays_as_it_was(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster)
    page = ReplicaPage(running_requests=3.0, waiting_requests=2.0, kv_usage_frac=0.5)
    dispatcher.put_page(4, page, 1.0)
    dispatcher.put_page(4, ReplicaPage(waiting_requests=0.0), 2.0)
    view = dispatcher.views[4]
    assert (view["running_requests"], view["waiting_requests"]) == (3.0, 0.0)
    assert (view["kv_usage_frac"], view["scraped_at_s"]) == (0.5, 2.0)


def test_a_slow_replica_is_found_by_its_first_tokens(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, ANALYTIC_SCORER_KNOBS)
    first = placed(dispatcher.dispatch(make_facts(), 0.0))
    dispatcher.finish(first, ended(at_s=0.0))
    best = first.replica
    for i in range(60):
        placement = placed(dispatcher.dispatch(make_facts(i), float(i)))
        slow = 10.0 if placement.replica == best else 1.0
        at_s = i + slow * placement.nominal_ttft_s
        dispatcher.first_token(placement, at_s)
        dispatcher.finish(placement, ended(at_s=at_s))
    assert dispatcher.views["slow_factor"][best] > 1.05
    assert dispatcher.views["slow_factor"].argmax() == best


def test_decisions_are_kept_in_full_and_bounded(cluster: ClusterSpec) -> None:
    dispatcher = make_dispatcher(cluster, ANALYTIC_SCORER_KNOBS, keep_every=2)
    for i in range(12):
        dispatcher.dispatch(make_facts(i), float(i))
    records = dispatcher.decisions.take()
    # Six were kept, the ring holds four.
    assert [record.request_id for record in records] == ["r5", "r7", "r9", "r11"]
    assert dispatcher.decisions.num_dropped == 2
    assert dispatcher.decisions.take() == []
    last = records[-1]
    assert (last.number, last.at_s, last.refused) == (12, 11.0, None)
    assert last.choice == last.costs.argmin()
    assert last.view["outstanding_requests"].sum() == 11


def test_regret_prefers_the_better_shadow(cluster: ClusterSpec) -> None:
    pile_up = Knobs.of(session_hash_weight=1.0)
    dispatcher = make_dispatcher(cluster, pile_up)
    dispatcher.set_shadow(ANALYTIC_SCORER_KNOBS.replace({"shed_enabled": 0.0}), every=1)
    for i in range(200):
        facts = make_facts(i, input_tokens=2000, ttft_slo_s=1.0, session_hash=7)
        dispatcher.dispatch(facts, i * 1e-3)
    regret = dispatcher.take_regret()
    assert regret.num_sampled == 200
    assert regret.mean > 0.5
    assert dispatcher.take_regret().num_sampled == 0


@pytest.mark.parametrize(
    ("is_stream", "first_s", "end_s", "is_met"),
    [
        (True, 0.9, 0.95, True),
        (True, 1.1, 1.15, False),
        (True, 0.5, 1.2, False),
        (False, float("nan"), 1.3, True),
        (False, float("nan"), 1.5, False),
    ],
)
def test_credit_is_for_requests_within_both_limits(
    cluster: ClusterSpec, is_stream: bool, first_s: float, end_s: float, is_met: bool
) -> None:
    dispatcher = make_dispatcher(cluster)
    facts = make_facts(ttft_slo_s=1.0, tpot_slo_s=0.1, is_stream=is_stream, weight=2.0)
    placement = placed(dispatcher.dispatch(facts, 0.0))
    if is_stream:
        dispatcher.first_token(placement, first_s)
    dispatcher.finish(placement, ended(at_s=end_s, tokens=5))
    assert dispatcher.totals.credit == (2.0 if is_met else 0.0)


def test_listeners_hear_of_every_request(cluster: ClusterSpec) -> None:
    heard: list[tuple[str, str]] = []

    class Listener:
        def on_placed(self, placement: Placement) -> None:
            heard.append(("placed", placement.facts.request_id))

        def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
            heard.append(("refused", facts.request_id))

        def on_ended(self, placement: Placement, end: RequestEnd) -> None:
            heard.append((str(end.ending), placement.facts.request_id))

    dispatcher = make_dispatcher(cluster, num_up=1)
    dispatcher.listeners.append(Listener())
    placement = placed(dispatcher.dispatch(make_facts(1), 0.0))
    dispatcher.finish(placement, ended())
    dispatcher.set_available(0, False, 1.0)
    dispatcher.dispatch(make_facts(2), 1.0)
    assert heard == [("placed", "r1"), ("finished", "r1"), ("refused", "r2")]


def test_a_fleet_of_several_models_is_asked_for_the_right_one(cluster: ClusterSpec) -> None:
    other = replace(
        cluster,
        replicas=tuple(
            replace(replica, model="qwen3-32b") if r == 3 else replica
            for r, replica in enumerate(cluster.replicas)
        ),
    )
    if cluster.replicas[0].model == "qwen3-32b":
        pytest.skip("the demo cluster serves this very model")
    dispatcher = make_dispatcher(other)
    chosen = placed(dispatcher.dispatch(make_facts(model_index=1, input_tokens=10), 0.0))
    assert chosen.replica == 3
