"""The response controller on made-up signals: what begins when, how long it lasts, what counts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agents.shield.controller import make_controller, tick
from trimtab.agents.shield.emergencies import Emergencies
from trimtab.agents.shield.emergency_rules import (
    DEFAULT_RULES,
    EmergencyEntry,
    EmergencyRule,
    Precondition,
    Trigger,
)
from trimtab.agents.shield.signals import make_signals
from trimtab.env.emergency import EMERGENCY_SPECS, Emergency, EmergencyAction

TICK_S = 0.01
KINDS = list(Emergency)
BY_KIND = {rule.kind: rule for rule in DEFAULT_RULES}


class Bench:
    """A controller of some replicas with signals that a test sets, tick by tick."""

    def __init__(self, num_replicas=2, rules=DEFAULT_RULES):
        self.core = make_controller(num_replicas, rules)
        self.fleet, self.replicas = make_signals(num_replicas)
        self.fleet["ttft_slo_s"] = 0.5
        self.replicas["is_available"] = 1
        self.now_s = 0.0
        self.events = []

    def tick(self, span_s=TICK_S):
        """One tick on which every replica makes progress unless a test says otherwise."""
        self.now_s += span_s
        self.fleet["now_s"] = self.now_s
        num = tick(self.core, self.fleet, self.replicas)
        for row in self.core.transitions[:num]:
            self.events.append(
                (float(row["at_s"]), KINDS[row["kind"]], int(row["replica"]), bool(row["is_on"]))
            )

    def run(self, span_s, change=lambda bench: None):
        for _ in range(round(span_s / TICK_S)):
            self.replicas["progress_at_s"] = self.now_s + TICK_S
            self.replicas["busy_s"] += TICK_S
            self.replicas["probed_at_s"] = self.now_s + TICK_S
            change(self)
            self.tick()

    def begun(self, kind):
        return [at_s for at_s, one, _, is_on in self.events if one is kind and is_on]

    def ended(self, kind):
        return [at_s for at_s, one, _, is_on in self.events if one is kind and not is_on]


def arrive(rate_rps, rng):
    def change(bench):
        bench.fleet["num_arrived"] += rng.poisson(rate_rps * TICK_S)

    return change


@pytest.mark.parametrize("rate_rps", [1.0, 30.0, 1000.0])
def test_steady_arrivals_are_no_surge(rate_rps):
    bench = Bench()
    bench.run(100.0, arrive(rate_rps, np.random.default_rng(1)))
    assert bench.events == []


@pytest.mark.parametrize("rate_rps", [50.0, 1000.0])
def test_a_tenfold_surge_sheds_within_its_first_moments(rate_rps):
    bench, rng = Bench(), np.random.default_rng(2)
    bench.run(20.0, arrive(rate_rps, rng))
    bench.run(0.5, arrive(10 * rate_rps, rng))
    (begun_s,) = bench.begun(Emergency.SHED)
    # 1,000/s: 20 ms show it. 50/s: it takes some arrivals to tell it from chance.
    assert begun_s - 20.0 <= (0.02 if rate_rps == 1000.0 else 0.06) + 1e-9
    bench.run(10.0, arrive(rate_rps, rng))
    (ended_s,) = bench.ended(Emergency.SHED)
    assert ended_s - 20.5 < 0.5 + BY_KIND[Emergency.SHED].quiet_s + 0.1


def test_a_surge_fills_the_spill_tier_only_if_it_is_up():
    for num_spill in (0, 3):
        bench, rng = Bench(), np.random.default_rng(3)
        bench.fleet["num_spill"] = num_spill
        bench.run(10.0, arrive(100.0, rng))
        bench.run(0.3, arrive(1500.0, rng))
        assert len(bench.begun(Emergency.SPILL_SHORT)) == (num_spill > 0)


def test_best_effort_shrinks_only_while_queues_are_long():
    bench, rng = Bench(), np.random.default_rng(4)
    bench.run(10.0, arrive(100.0, rng))
    bench.run(0.1, arrive(1500.0, rng))
    assert bench.begun(Emergency.SHED)
    assert not bench.begun(Emergency.SHRINK_BEST_EFFORT)
    bench.fleet["least_wait_s"] = 0.2
    bench.run(0.01, arrive(1500.0, rng))
    assert bench.begun(Emergency.SHRINK_BEST_EFFORT) == [pytest.approx(10.11)]


def test_queues_that_grow_beyond_the_limit_shed_at_once():
    bench = Bench()
    bench.fleet["least_wait_s"] = 0.005
    bench.run(5.0)

    def grow(bench):
        bench.fleet["least_wait_s"] += 0.02  # two seconds a second

    bench.run(1.0, grow)
    # Above the limit of 0.5 s after 25 ticks; the same tick acts.
    assert bench.begun(Emergency.SHED) == [pytest.approx(5.25)]
    bench.fleet["least_wait_s"] = 0.0
    bench.run(1.5)
    assert bench.ended(Emergency.SHED) == [pytest.approx(7.01, abs=0.011)]


def test_failed_allocations_act_on_their_replica_alone():
    bench = Bench(3)
    bench.replicas["has_neighbour"] = 1
    bench.run(2.0)
    bench.replicas["allocation_failures"][1] += 2
    bench.run(0.1)
    assert bench.events == []
    bench.replicas["allocation_failures"][1] += 1
    bench.run(0.01)
    kinds = {Emergency.FREEZE_KV_GROWTH, Emergency.MOVE_KV, Emergency.CAP_BATCH_TOKENS}
    assert {(at, kind, r) for at, kind, r, _ in bench.events} == {
        (bench.events[0][0], kind, 1) for kind in kinds
    }
    assert bench.events[0][0] == pytest.approx(2.11)


def test_an_engine_that_starts_anew_has_not_failed():
    bench = Bench()
    bench.replicas["allocation_failures"] = 1000
    bench.run(2.0)
    bench.replicas["allocation_failures"] = 0
    bench.run(2.0)
    assert bench.events == []


def test_full_memory_moves_kv_to_a_neighbour_again_and_again():
    bench = Bench()
    bench.replicas["kv_usage_frac"][0] = 0.98
    bench.run(2.05)
    assert bench.events == []  # nobody has room
    bench.replicas["has_neighbour"] = 1
    bench.run(3.0)
    begun = bench.begun(Emergency.MOVE_KV)
    assert len(begun) == 3
    assert np.diff(begun).min() >= BY_KIND[Emergency.MOVE_KV].cool_down_s


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_replica_that_falls_silent_is_marked_until_it_speaks(is_idle):
    bench = Bench()
    bench.replicas["outstanding_requests"] = 4
    bench.run(3.0)
    stopped_s = bench.now_s

    def stall(bench):
        bench.replicas["progress_at_s"][0] = stopped_s
        if is_idle:
            bench.replicas["busy_s"][0] = 3.0

    bench.run(0.48, stall)
    assert not bench.core.detector.is_silent.any()
    bench.run(0.57, stall)
    # Idle with work: after 500 ms. Busy but mute: after a second.
    assert list(bench.core.detector.is_silent) == [1, 0]
    bench.run(0.02)
    assert not bench.core.detector.is_silent.any()


def test_a_queue_that_stands_still_is_marked_until_it_is_gone():
    bench = Bench()
    bench.replicas["outstanding_requests"] = 4
    bench.replicas["first_token_at_s"] = 3.0
    bench.run(3.0)
    # Tokens of others go on coming, so it is not silent.
    bench.replicas["pending_tokens"][0] = 500
    bench.run(0.99)
    assert not bench.core.detector.is_stuck.any()
    bench.run(0.03)
    assert list(bench.core.detector.is_stuck) == [1, 0]
    # One first token is not enough: it would be filled up again at once.
    bench.replicas["first_token_at_s"][0] = 4.0
    bench.run(0.1)
    assert list(bench.core.detector.is_stuck) == [1, 0]
    assert not bench.core.detector.is_silent.any()
    bench.replicas["pending_tokens"][0] = 0
    bench.run(0.01)
    assert not bench.core.detector.is_stuck.any()


def test_a_long_backlog_is_no_silence():
    bench = Bench()
    bench.replicas["outstanding_requests"] = 4
    bench.replicas["predicted_wait_s"] = 3.0
    bench.run(3.0)

    def prefill(bench):
        bench.replicas["progress_at_s"][0] = 3.0

    bench.run(6.9, prefill)
    assert not bench.core.detector.is_silent.any()
    bench.run(0.2, prefill)
    assert list(bench.core.detector.is_silent) == [1, 0]


SIGNALS = ["arrivals", "wait", "failures", "memory", "neighbour", "spill", "busy", "progress"]
VALUES = st.floats(0, 1e4) | st.sampled_from([np.nan, np.inf, -np.inf, -5.0, 0.0, 0.99])


@st.composite
def storms(draw):
    """Ticks with arbitrary signals, spans among them that are no spans."""
    spans = st.sampled_from([0.01, 0.01, 0.01, 0.02, 0.3, 2.0, 0.0, -1.0, np.nan])
    return draw(st.lists(st.tuples(spans, *[VALUES] * len(SIGNALS)), min_size=20, max_size=150))


QUICK = tuple(
    replace(rule, max_s=min(rule.max_s, 0.5), cool_down_s=0.3, quiet_s=min(rule.quiet_s, 0.1))
    for rule in DEFAULT_RULES
)


@given(ticks=storms())
def test_whatever_the_signals_every_action_is_bounded_rests_and_is_undone_once(ticks):
    bench, now_s = Bench(2, QUICK), 0.0
    for span_s, *values in ticks:
        arrivals, wait_s, failures, memory, neighbour, spill, busy_s, progress_s = values
        bench.fleet["num_arrived"] = arrivals
        bench.fleet["least_wait_s"] = wait_s
        bench.fleet["num_spill"] = spill == 0.99
        bench.replicas["allocation_failures"][0] = failures
        bench.replicas["kv_usage_frac"][0] = memory
        bench.replicas["has_neighbour"] = neighbour > 0
        bench.replicas["busy_s"] = busy_s
        bench.replicas["progress_at_s"] = progress_s
        bench.replicas["outstanding_requests"] = 1
        bench.now_s = now_s
        bench.tick(span_s)
        if np.isfinite(bench.now_s):
            now_s = max(now_s, bench.now_s)
    check_machines(bench, now_s)


def check_machines(bench, now_s):
    rules = {rule.kind: rule for rule in QUICK}
    for kind in Emergency:
        for place in {r for _, one, r, _ in bench.events if one is kind}:
            own = [(at, on) for at, one, r, on in bench.events if (one, r) == (kind, place)]
            assert [on for _, on in own] == [i % 2 == 0 for i in range(len(own))]
            moments = [at for at, _ in own]
            assert moments == sorted(moments)
            rests = np.array(moments[2::2]) - np.array(moments[1:-1:2])
            assert (rests >= rules[kind].cool_down_s - 1e-9).all()
            # No more beginnings than cool-downs fit into the time.
            assert len(own) // 2 <= now_s / rules[kind].cool_down_s + 1


@pytest.mark.parametrize("kind", Emergency)
def test_an_action_ends_in_time_though_its_trigger_never_ceases(kind):
    rule = BY_KIND[kind]
    bench = Bench(1)
    bench.replicas["has_neighbour"] = 1
    bench.fleet["num_spill"] = 1
    bench.fleet["least_wait_s"] = 9.0

    def press(bench):
        bench.fleet["least_wait_s"] += 0.02
        bench.replicas["allocation_failures"] += 1

    bench.run(80.0, press)
    begun, ended = bench.begun(kind), bench.ended(kind)
    assert len(begun) >= 2
    lasted = np.array(ended) - np.array(begun[: len(ended)])
    assert lasted.max() <= rule.max_s + TICK_S + 1e-9
    rested = np.array(begun[1:]) - np.array(ended[: len(begun) - 1])
    assert rested.min() >= rule.cool_down_s - 1e-9


def test_a_clock_that_stands_still_changes_nothing():
    bench, rng = Bench(), np.random.default_rng(5)
    bench.run(10.0, arrive(100.0, rng))
    for _ in range(100):
        bench.fleet["num_arrived"] += 1000
        bench.tick(0.0)
    assert bench.events == []


class Doer:
    """A fleet that writes down what it is told."""

    def __init__(self, able):
        self.able, self.told = able, []

    def can(self, kind, replica):
        return kind in self.able

    def act(self, action: EmergencyAction):
        self.told.append(("act", action.kind, action.replica, action.amount))
        return 7

    def undo(self, kind, replica=None):
        self.told.append(("undo", kind, replica))


def test_what_an_engine_cannot_do_is_skipped_by_name():
    bench = Bench()
    doer = Doer({Emergency.CAP_BATCH_TOKENS})
    emergencies = Emergencies(DEFAULT_RULES)
    bench.replicas["allocation_failures"][1] = 5
    bench.tick()
    bench.replicas["allocation_failures"][1] = 9
    bench.tick()
    num = int(bench.core.detector.memory["num_transitions"][0])
    emergencies.obey(bench.core.transitions[:num], doer)
    assert doer.told == [("act", Emergency.CAP_BATCH_TOKENS, 1, 0.25)]
    assert emergencies.skipped == {Emergency.FREEZE_KV_GROWTH: 1}
    assert [r.sentence() for r in emergencies.records] == [
        "0.02 s: skip freeze_kv_growth on replica 1: KV allocations fail",
        "0.02 s: begin cap_batch_tokens on replica 1: KV allocations fail",
    ]
    emergencies.close(0.5, doer)
    emergencies.close(0.6, doer)
    assert doer.told[1:] == [("undo", Emergency.CAP_BATCH_TOKENS, 1)]


def test_rules_explain_themselves_and_refuse_nonsense():
    shed = BY_KIND[Emergency.SHED]
    assert shed.sentence() == (
        "When arrivals surge or every queue is late and grows (the fleet's signals of the last "
        "500 ms), the shield refuses requests whose predicted TTFT is too late for at most 30 s "
        "(1.5 TTFT limits of predicted TTFT above which a request is refused), and not again "
        "for 2 s."
    )
    assert replace(shed, is_on=False).sentence().startswith("The shield never refuses")
    assert EmergencyEntry(amount=3).rule(Emergency.SHED) == replace(shed, amount=3)
    with pytest.raises(ValueError, match=r"amount of shed must be in \[0.1, 50\].*got 80"):
        EmergencyEntry(amount=80).rule(Emergency.SHED)
    with pytest.raises(ValueError, match=r"cool_down_s of shed must be in \[0.1, 3600\] s, got 0"):
        replace(shed, cool_down_s=0)
    with pytest.raises(ValueError, match="one rule for each of"):
        make_controller(1, DEFAULT_RULES[:2])


def test_every_kind_of_action_has_a_default_rule_within_its_bounds():
    assert [rule.kind for rule in DEFAULT_RULES] == list(EMERGENCY_SPECS)
    assert all(isinstance(rule, EmergencyRule) and rule.is_on for rule in DEFAULT_RULES)
    assert {rule.precondition for rule in DEFAULT_RULES} == set(Precondition)
    used = Trigger(0)
    for rule in DEFAULT_RULES:
        used |= rule.triggers
    # The other three bar a replica, whatever the rules.
    assert not used & (Trigger.IDLE_SURGE | Trigger.SILENCE | Trigger.STUCK)
