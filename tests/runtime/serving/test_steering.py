"""Who sets the knobs: a scheduler, a policy, its fallback, an operator; by a clock in hand."""

import logging

import numpy as np
import pytest
from steering_stand import (
    BASE,
    NUM_REPLICAS,
    SCHEDULER,
    FakeDispatcher,
    make_steering,
    policy,
    proposal,
    seated,
)

from trimtab.agents.shield.doubt import Doubt
from trimtab.agents.shield.fallback import Proposal
from trimtab.env.knobs import KNOB_NAMES, Knobs
from trimtab.env.regret import Regret
from trimtab.runtime.serving.promotion import PromotionConfig
from trimtab.runtime.serving.promotion_rule import parse_promotion_rule
from trimtab.runtime.serving.steering import Ruler

WINDOW_S = 2.0


def same(one: Knobs, other: Knobs) -> bool:
    return np.array_equal(one.values, other.values)


def regret(mean: float, num_sampled: int = 500) -> Regret:
    return Regret(num_sampled=num_sampled, mean=mean, std_error=0.001)


def test_without_a_policy_the_scheduler_rules_for_ever() -> None:
    dispatcher = FakeDispatcher()
    steering = make_steering(dispatcher)
    for tick in range(3000):
        steering.tick(0.01 * tick)
    assert (steering.ruler, dispatcher.num_set) == (Ruler.SCHEDULER, 1)
    assert same(dispatcher.knobs, SCHEDULER)
    assert steering.counts.num_windows == 0


def test_a_policy_has_the_seat_from_its_first_valid_proposal() -> None:
    told: list = []
    dispatcher = FakeDispatcher()
    steering = make_steering(dispatcher, on_seated=told)
    steering.announce(policy())
    steering.tick(60.0)
    assert steering.ruler is Ruler.SCHEDULER
    assert not steering.counts.doubts
    assert steering.offer("p1", proposal(60.02), 60.02)
    assert steering.ruler is Ruler.POLICY
    assert [p.source for p in told] == ["p1"]
    assert dispatcher.version == "bundle of p1"
    assert dispatcher.shadow is not None
    assert same(dispatcher.shadow, SCHEDULER)


def test_proposals_of_nobody_and_second_ones_are_left_out_and_counted() -> None:
    steering = seated(make_steering())
    assert not steering.offer("stranger", proposal(2.1), 2.1)
    assert not steering.offer("p1", proposal(2.1), 2.1)
    assert steering.counts.num_ignored == 2
    assert steering.offer("p1", proposal(4.1), 4.1)


BAD_PROPOSALS = {
    Doubt.ABSENT: None,
    Doubt.LATE: proposal(3.0),
    Doubt.NOT_FINITE: Proposal(
        values=np.full(BASE.values.size, np.nan), state_at_s=4.02, arrived_at_s=4.02
    ),
    Doubt.WRONG_SHAPE: Proposal(values=np.ones(3), state_at_s=4.02, arrived_at_s=4.02),
    Doubt.NOVEL: proposal(4.02, novelty=1.5),
}


@pytest.mark.parametrize("doubt", list(BAD_PROPOSALS))
def test_each_doubt_lets_the_fallback_rule_at_once(doubt: Doubt) -> None:
    dispatcher = FakeDispatcher()
    steering = seated(make_steering(dispatcher))
    assert steering.offer("p1", BAD_PROPOSALS[doubt], 4.02)
    assert (steering.ruler, steering.doubt) == (Ruler.FALLBACK, doubt)
    assert same(dispatcher.knobs, SCHEDULER)
    assert dispatcher.version == "least-requests"
    assert steering.counts.doubts == {doubt: 1}


def test_a_policy_that_raised_is_in_doubt_by_error() -> None:
    steering = seated(make_steering())
    assert steering.offer("p1", None, 4.02, has_failed=True)
    assert steering.doubt is Doubt.ERROR


def test_a_policy_that_says_nothing_rules_half_a_second_into_the_window_and_no_longer() -> None:
    steering = seated(make_steering())
    steering.tick(4.49)
    assert steering.ruler is Ruler.POLICY
    steering.tick(4.51)
    assert (steering.ruler, steering.doubt) == (Ruler.FALLBACK, Doubt.ABSENT)


def test_a_dead_policy_is_counted_each_window_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steering = seated(make_steering())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for tick in range(500, 3000):
            steering.tick(0.01 * tick)
    assert steering.counts.doubts == {Doubt.ABSENT: 13}
    assert [r.message for r in caplog.records] == [
        "policy 'bundle of p1' is in doubt: absent",
        "fallback rules in place of policy (absent)",
    ]


def test_a_policy_that_is_well_again_rules_after_its_good_windows() -> None:
    steering = seated(make_steering())
    steering.tick(4.6)
    rulers = []
    for window in range(3, 7):
        at_s = WINDOW_S * window + 0.02
        steering.offer("p1", proposal(at_s), at_s)
        rulers.append(steering.ruler)
    assert rulers == [Ruler.FALLBACK, Ruler.FALLBACK, Ruler.POLICY, Ruler.POLICY]


def test_a_stalled_loop_judges_one_window_and_not_those_it_slept_through() -> None:
    steering = seated(make_steering())
    steering.tick(60.6)
    assert steering.counts.num_windows == 2
    assert steering.window_at_s == 60.0


def test_regret_trips_the_wire_and_the_policy_goes_on_in_shadow() -> None:
    dispatcher = FakeDispatcher()
    steering = seated(make_steering(dispatcher))
    # The fallback in shadow is estimated to do better by a fifth.
    dispatcher.regret = regret(0.2)
    at_s = 4.02
    steering.offer("p1", proposal(at_s), at_s)
    assert (steering.ruler, steering.doubt) == (Ruler.FALLBACK, Doubt.REGRET)
    assert dispatcher.shadow is not None
    assert same(dispatcher.shadow, BASE)
    # Now the policy is in shadow, so the same policy shows with the opposite sign.
    dispatcher.regret = regret(-0.2)
    at_s += WINDOW_S
    steering.offer("p1", proposal(at_s), at_s)
    assert steering.records[-1].gain.mean == -0.2
    assert steering.ruler is Ruler.FALLBACK


def test_a_new_policy_glides_from_the_knobs_in_force() -> None:
    dispatcher = FakeDispatcher()
    steering = make_steering(dispatcher)
    steering.announce(policy("p1", base=BASE))
    at_s = 2.02
    for _ in range(10):
        steering.offer("p1", proposal(at_s, backlog=4.0), at_s)
        at_s += WINDOW_S
    assert dispatcher.knobs["backlog"] == 4.0
    steering.announce(policy("p2"))
    steering.offer("p1", proposal(at_s, backlog=4.0), at_s)
    assert steering.offer("p2", proposal(at_s + 0.1, backlog=0.05), at_s + 0.1)
    assert dispatcher.version == "bundle of p2"
    # Half a unit of the logarithm a second, for the one window that may have passed.
    assert dispatcher.knobs["backlog"] == pytest.approx(4.0 / np.exp(0.5 * WINDOW_S))


def test_a_new_policy_without_a_valid_proposal_leaves_the_old_one_where_it_is() -> None:
    dispatcher = FakeDispatcher()
    steering = seated(make_steering(dispatcher))
    steering.announce(policy("p2"))
    bad = Proposal(values=np.full(len(KNOB_NAMES), np.nan), state_at_s=4.0, arrived_at_s=4.0)
    assert not steering.offer("p2", bad, 4.02)
    assert steering.candidate_fault in (Doubt.NOT_FINITE, Doubt.WRONG_SHAPE)
    assert steering.offer("p1", proposal(4.1), 4.1)
    assert (steering.ruler, dispatcher.version) == (Ruler.POLICY, "bundle of p1")
    assert steering.counts.num_refused_candidates == 1
    assert not steering.counts.doubts
    steering.withdraw()
    assert not steering.offer("p2", proposal(4.2), 4.2)


def test_a_policy_in_shadow_is_promoted_when_it_has_shown_to_be_better() -> None:
    promotion = PromotionConfig(
        span_s=20.0, rule=parse_promotion_rule("gain > 0.01 and doubts < 0.05")
    )
    dispatcher = FakeDispatcher()
    steering = make_steering(dispatcher, promotion=promotion)
    steering.announce(policy())
    rulers = []
    for window in range(1, 13):
        at_s = WINDOW_S * window + 0.02
        steering.offer("p1", proposal(at_s, hit_weight=0.6), at_s)
        # The policy stands in shadow until it is promoted: what is measured is its gain.
        dispatcher.regret = regret(0.1 if steering.ruler is Ruler.SHADOWED else -0.1)
        rulers.append(steering.ruler)
    # The first window compared nothing; ten windows are the span.
    assert rulers == [Ruler.SHADOWED] * 9 + [Ruler.POLICY] * 3
    assert dispatcher.version == "bundle of p1"


def test_a_promoted_policy_is_demoted_by_the_trip_wire() -> None:
    promotion = PromotionConfig(span_s=4.0, rule=parse_promotion_rule("windows >= 2"))
    dispatcher = FakeDispatcher()
    steering = make_steering(dispatcher, promotion=promotion)
    steering.announce(policy())
    for window in (1, 2):
        steering.offer("p1", proposal(WINDOW_S * window + 0.02), WINDOW_S * window + 0.02)
    assert steering.ruler is Ruler.POLICY
    dispatcher.regret = regret(0.2)
    steering.offer("p1", proposal(6.02), 6.02)
    assert (steering.ruler, steering.doubt) == (Ruler.FALLBACK, Doubt.REGRET)


def test_a_policy_in_shadow_that_is_in_doubt_is_not_promoted() -> None:
    promotion = PromotionConfig(span_s=4.0, rule=parse_promotion_rule("windows >= 2"))
    steering = make_steering(promotion=promotion)
    steering.announce(policy())
    steering.offer("p1", proposal(2.02), 2.02)
    steering.offer("p1", proposal(4.02, novelty=2.0), 4.02)
    assert steering.ruler is Ruler.SHADOWED
    for window in (3, 4, 5):
        at_s = WINDOW_S * window + 0.02
        steering.offer("p1", proposal(at_s), at_s)
    assert steering.ruler is Ruler.POLICY


def test_an_order_rules_over_all_until_its_lease_is_over() -> None:
    dispatcher = FakeDispatcher()
    steering = seated(make_steering(dispatcher))
    turns = Knobs.of(round_robin_weight=1.0)
    assert same(steering.order(turns, 3.0, lease_s=4.0), turns)
    for at_s in (4.02, 6.02):
        steering.offer("p1", proposal(at_s), at_s)
        assert steering.ruler is Ruler.ORDER
        assert same(dispatcher.knobs, turns)
    steering.tick(7.0)
    assert steering.ruler is Ruler.FALLBACK
    assert same(dispatcher.knobs, SCHEDULER)
    steering.offer("p1", proposal(8.02), 8.02)
    assert steering.ruler is Ruler.POLICY


def test_an_order_is_withdrawn() -> None:
    steering = make_steering()
    steering.order(Knobs.of(round_robin_weight=1.0), 1.0)
    steering.withdraw_order(2.0)
    assert steering.ruler is Ruler.SCHEDULER
    assert same(steering.knobs, SCHEDULER)


def test_nothing_that_an_order_ruled_over_counts_as_regret() -> None:
    dispatcher = FakeDispatcher()
    steering = seated(make_steering(dispatcher))
    steering.order(Knobs.of(round_robin_weight=1.0), 3.0)
    dispatcher.regret = regret(0.9)
    for window in (2, 3, 4):
        at_s = WINDOW_S * window + 0.02
        steering.offer("p1", proposal(at_s), at_s)
    assert not steering.counts.doubts
    assert all(record.gain.num_sampled == 0 for record in steering.records)


def test_a_proposal_beyond_its_limits_is_brought_within_them_and_counted() -> None:
    dispatcher = FakeDispatcher()
    steering = seated(make_steering(dispatcher))
    steering.offer("p1", proposal(4.02, backlog=4.0), 4.02)
    assert steering.counts.num_overrides == 1
    assert 1.0 < dispatcher.knobs["backlog"] < 4.0
    assert steering.records[-1].override_size > 0.0


def test_each_window_is_on_record_with_what_the_policy_looked_at() -> None:
    steering = seated(make_steering())
    steering.offer("p1", proposal(4.02), 4.02, attention={"replica 0": 0.75})
    record = steering.records[-1]
    assert (record.at_s, record.ruler, record.doubt) == (4.02, Ruler.POLICY, None)
    assert record.attention == {"replica 0": 0.75}
    assert record.knobs.replica_bias.size == NUM_REPLICAS
