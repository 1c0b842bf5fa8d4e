"""Placing by worth in the live dispatcher: the simulated gateway's choices, from what it sees."""

from collections.abc import Callable

import numpy as np
import pytest
from live_requests import make_facts, three_replicas
from worth_replay import WORTH, Replay, end, make_dispatcher

from trimtab.agents.heuristics import UNIVERSAL_SCORER
from trimtab.env.cluster import ClusterSpec
from trimtab.env.restrictions import Restrictions, open_groups
from trimtab.env.shed_reason import ShedReason
from trimtab.env.simulator.workload import Workload
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.request import Ending, Placement, Refusal

SCORER = UNIVERSAL_SCORER.knobs
CLUSTER = three_replicas()
GPUS = ["A100-80G", "A100-80G", "H100-80G", "L40S-48G"]


def placed(chosen: Placement | Refusal) -> Placement:
    assert isinstance(chosen, Placement), chosen
    return chosen


def mirrored(dispatcher: LiveDispatcher) -> list[int]:
    """Open requests that worth knows of, by replica."""
    found: list[int] = dispatcher._arrays.mirrors["num_rows"].tolist()
    return found


@pytest.fixture(scope="module")
def make_replay(
    make_cluster: Callable[..., ClusterSpec], make_random_workload: Callable[..., Workload]
) -> Callable[..., Replay]:
    def make(*, tells_tokens: bool) -> Replay:
        workload = make_random_workload(
            600, rate_rps=60.0, seed=1, mean_input_tokens=1600.0, max_tokens=9000,
            mean_output_tokens=300.0, num_prompts=0,
        )  # fmt: skip
        return Replay(make_cluster(GPUS), workload, tells_tokens=tells_tokens)

    return make


def test_it_judges_and_chooses_as_the_simulated_gateway_does(
    make_replay: Callable[..., Replay],
) -> None:
    replay = make_replay(tells_tokens=True)
    replicas = set()
    for decision in replay.decisions():
        assert decision.live == decision.simulated
        assert decision.live_candidates.keys() == decision.simulated_candidates.keys()
        for replica, own in decision.live_candidates.items():
            assert own == pytest.approx(decision.simulated_candidates[replica], abs=1e-6)
        replicas.add(decision.live)
    assert replicas == {None, 0, 1, 2, 3}
    assert replay.live.totals.shed_by_reason[ShedReason.LATE] == replay.live.totals.num_shed > 0


def test_tokens_that_nobody_counts_are_told_by_the_pace(make_replay: Callable[..., Replay]) -> None:
    decisions = list(make_replay(tells_tokens=False).decisions())
    true, believed = np.concatenate([decision.tokens for decision in decisions]).T
    assert true.size > 10_000
    error = np.abs(believed - true) / true
    assert np.median(error) < 0.03
    assert np.quantile(error, 0.9) < 0.1
    assert np.mean([decision.live == decision.simulated for decision in decisions]) > 0.9


def test_mirrors_hold_what_is_open_whatever_the_endings() -> None:
    dispatcher = make_dispatcher(CLUSTER)
    placements = [placed(dispatcher.dispatch(make_facts(i, 0.0), 0.0)) for i in range(30)]
    assert mirrored(dispatcher) == dispatcher.views["outstanding_requests"].tolist()
    assert sum(mirrored(dispatcher)) == 30
    for number, placement in enumerate(placements):
        if number % 2:
            dispatcher.first_token(placement, 0.5)
        dispatcher.finish(placement, end(1.0, 20, list(Ending)[number % len(Ending)]))
    assert mirrored(dispatcher) == [0, 0, 0]
    assert dispatcher.num_unmirrored == 0


def test_only_whole_answers_tell_how_long_answers_are() -> None:
    dispatcher = make_dispatcher(CLUSTER)
    counts = dispatcher._arrays.length_counts
    before = counts.sum(axis=1)
    for number, ending in enumerate(Ending):
        facts = make_facts(number, 0.0, priority=1)
        dispatcher.finish(placed(dispatcher.dispatch(facts, 0.0)), end(1.0, 500, ending))
    np.testing.assert_allclose(counts.sum(axis=1) - before, [0.0, 1.0])


def test_an_answer_that_does_not_stream_is_taken_to_stream_unheard() -> None:
    dispatcher = make_dispatcher(CLUSTER)
    placement = placed(dispatcher.dispatch(make_facts(0, 0.0, is_stream=False), 0.0))
    rows = dispatcher._arrays.mirror_rows[placement.replica]
    dispatcher.settle(placement.predicted_ttft_s + 1e-6)
    assert rows["generated_tokens"][0] == 1
    dispatcher.dispatch(make_facts(1, 2.0), 2.0)
    assert rows["generated_tokens"][0] > 20


def test_a_second_choice_is_not_refused_and_leaves_nothing_behind() -> None:
    dispatcher = make_dispatcher(CLUSTER)
    first = placed(dispatcher.dispatch(make_facts(0, 0.0), 0.0))
    first.facts.ttft_slo_s = 1e-4
    again = placed(dispatcher.redispatch(first, 0.1, "connection refused"))
    assert again.replica != first.replica
    assert mirrored(dispatcher)[again.replica] == sum(mirrored(dispatcher)) == 1


def test_a_replica_that_went_down_is_forgotten() -> None:
    dispatcher = make_dispatcher(CLUSTER)
    placements = [placed(dispatcher.dispatch(make_facts(i, 0.0), 0.0)) for i in range(9)]
    gone = placements[0].replica
    dispatcher.set_available(gone, False, 1.0)
    assert mirrored(dispatcher)[gone] == 0
    for placement in placements:
        dispatcher.finish(placement, end(1.0, 0, Ending.FAILED))
    assert mirrored(dispatcher) == [0, 0, 0]
    assert dispatcher.num_unmirrored == 0


def test_what_is_worth_less_than_its_price_is_refused() -> None:
    dispatcher = make_dispatcher(CLUSTER, keep_every=1)
    refusal = dispatcher.dispatch(make_facts(0, 0.0, ttft_slo_s=1e-4, input_tokens=4000), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (429, "rejected-saturated")
    assert dispatcher.totals.shed_by_reason[ShedReason.LATE] == 1
    (record,) = dispatcher.decisions.take()
    assert record.is_refused
    assert (record.choices["worth"] <= record.choices["price"]).all()
    dispatcher.set_knobs(WORTH.replace({"shed_enabled": 0.0}))
    placed(dispatcher.dispatch(make_facts(1, 0.0, ttft_slo_s=1e-4), 0.0))
    dispatcher.set_emergency(shed_limits=1.0)
    assert isinstance(dispatcher.dispatch(make_facts(2, 0.0, ttft_slo_s=1e-4), 0.0), Refusal)
    assert dispatcher.totals.shed_by_reason[ShedReason.EMERGENCY] == 1


def test_nobody_up_is_503() -> None:
    dispatcher = LiveDispatcher(CLUSTER, knobs=WORTH)
    refusal = dispatcher.dispatch(make_facts(0, 0.0), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (503, "rejected-no-endpoints")


def test_a_decision_that_is_kept_says_what_each_candidate_was_worth() -> None:
    dispatcher = make_dispatcher(CLUSTER, keep_every=1)
    dispatcher.set_available(1, False, 0.0)
    placement = placed(dispatcher.dispatch(make_facts(0, 0.0), 0.0))
    (record,) = dispatcher.decisions.take()
    assert record.is_by_worth
    assert sorted(record.choices["replica"].tolist()) == [0, 2]
    assert record.choice == placement.replica == record.costs.argmin()
    assert record.is_usable.tolist() == [True, False, True]
    own, others, price, scorer = record.worth_terms[placement.replica]
    assert own == pytest.approx(-1.0)
    assert others == 0.0
    assert price > 0.0
    # The scorer's share is a small part of its cost.
    terms = record.terms[placement.replica].sum()
    assert scorer == pytest.approx(WORTH["cost_weight"] * terms)
    assert record.costs[placement.replica] == pytest.approx(own + others + price + scorer)
    dispatcher.set_knobs(SCORER)
    dispatcher.dispatch(make_facts(1, 0.0), 0.0)
    (record,) = dispatcher.decisions.take()
    assert not record.is_by_worth
    assert np.isnan(record.worth_terms).all()


def test_decisions_keep_their_names_when_one_was_over_budget() -> None:
    dispatcher = make_dispatcher(CLUSTER, keep_every=2, num_kept=8)
    groups = open_groups(1)
    groups["requests_per_s"], groups["burst_requests"] = 1.0, 3.0
    rules = Restrictions(
        names=("all",), masks=np.zeros((1, 3), np.uint16), penalties=np.zeros((1, 3)),
        groups=groups, table=np.zeros((1, 1), np.int64),
    )  # fmt: skip
    dispatcher.set_restrictions(rules)
    moments = [0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 4.0]
    chosen = [dispatcher.dispatch(make_facts(i, at_s), at_s) for i, at_s in enumerate(moments)]
    assert [isinstance(each, Refusal) for each in chosen[3:5]] == [True, True]
    records = dispatcher.decisions.take()
    # The fourth was over its budget, and nothing was looked at.
    assert [(r.number, r.request_id) for r in records] == [
        (2, "req-1"), (6, "req-5"), (8, "req-7"),
    ]  # fmt: skip


def test_who_remembers_nothing_refuses_to_place_by_worth() -> None:
    dispatcher = make_dispatcher(CLUSTER, SCORER)
    assert not dispatcher.can_place_by_worth
    version = dispatcher.knob_version
    with pytest.raises(ValueError, match=r"place by worth \(value_weight 1\).*marginal-value"):
        dispatcher.set_knobs(WORTH)
    with pytest.raises(ValueError, match="does not remember what that takes"):
        dispatcher.set_shadow(WORTH)
    assert (dispatcher.knobs, dispatcher.knob_version) == (SCORER, version)
    placed(dispatcher.dispatch(make_facts(0, 0.0), 0.0))
    assert dispatcher._arrays.mirrors.size == 0
    assert dispatcher._arrays.mirror_rows.nbytes == 0


def test_who_begins_by_cost_may_go_on_by_worth_if_it_was_said() -> None:
    dispatcher = make_dispatcher(CLUSTER, SCORER, keep_every=1, can_place_by_worth=True)
    open_requests = [placed(dispatcher.dispatch(make_facts(i, 0.0), 0.0)) for i in range(12)]
    assert not any(record.is_by_worth for record in dispatcher.decisions.take())
    dispatcher.set_knobs(WORTH)
    assert sum(mirrored(dispatcher)) == len(open_requests)
    placed(dispatcher.dispatch(make_facts(13, 0.0), 0.0))
    (record,) = dispatcher.decisions.take()
    assert record.is_by_worth


def test_a_policy_that_places_by_worth_is_tried_on_paper_by_worth() -> None:
    """The scorer takes what cannot be met, worth refuses it: on paper that is no gain lost."""
    careless = SCORER.replace({"shed_enabled": 0.0})
    dispatcher = make_dispatcher(CLUSTER, careless, can_place_by_worth=True)
    before = dispatcher.views["slow_factor"].copy()
    for shadow, expected in ((WORTH, -1.0), (WORTH.replace({"shed_enabled": 0.0}), 0.0)):
        # Limits that the judge thinks can be met, and a price that nothing is worth.
        dispatcher.set_shadow(shadow.replace({"price_interactive": 8.0}), every=1)
        for number in range(20):
            facts = make_facts(number, 0.0, input_tokens=2000, ttft_slo_s=0.7)
            dispatcher.finish(placed(dispatcher.dispatch(facts, 0.0)), end(0.0, 1))
        regret = dispatcher.take_regret()
        assert regret.num_sampled == 20
        assert regret.mean == pytest.approx(expected, abs=0.3)
    np.testing.assert_array_equal(dispatcher.views["slow_factor"], before)
