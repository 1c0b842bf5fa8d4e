"""What holds for every kind of breaker rule, whatever the signal: absent, NaN, old, any clock."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from breaker_fleet import make_places, make_rule, make_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.agents.shield.alarm import Severity
from trimtab.agents.shield.breaker_kernel import MAX_AGE_S, MAX_BACK_OFF
from trimtab.agents.shield.breaker_rules import BreakerRule, Effect, Recovery
from trimtab.agents.shield.breakers import Breakers, Phase
from trimtab.agents.shield.slow_start import SlowStart
from trimtab.env.state.registry import column

# A share of each kind of node.
METRICS = (
    "replica.kv_usage_frac", "gpu.sm_activity_frac", "server.cpu_frac", "link.out_frac",
    "zone.sm_activity_frac", "tenant.late_frac", "fleet.late_frac",
)  # fmt: skip
ALARM_ONLY = ("tenant", "fleet")
KINDS = [
    (metric, effect, is_above, is_counted)
    for metric, effect, is_above, is_counted in product(METRICS, Effect, *[(True, False)] * 2)
    if effect is Effect.ALARM or not metric.startswith(ALARM_ONLY)
]
PLACES = make_places(num_replicas=6, num_models=2)
NUM_NODES = 6

# What a node says at a moment: how far beyond, between or on the good side, or nothing of use.
LEVELS = {"breach": 0.99, "between": 0.85, "quiet": 0.1, "nan": np.nan, "absent": None}
moments = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 0.1, 0.1, 1.0, 7.0, 100.0, -3.0]),  # the clock goes on
        st.lists(st.sampled_from(list(LEVELS)), min_size=NUM_NODES, max_size=NUM_NODES),
        st.sampled_from([0.0, 0.0, 0.0, 0.05, 2.0, 6.0, np.inf, np.nan]),  # age
        st.integers(1, 8),  # times in a row
    ),
    min_size=1,
    max_size=20,
)
spans = st.sampled_from([0.0, 0.3, 1.0])


@st.composite
def rules_of(draw, kind) -> BreakerRule:
    metric, effect, is_above, is_counted = kind
    is_degrade = effect is Effect.DEGRADE
    return make_rule(
        metric=metric,
        is_above=is_above,
        threshold=0.9 if is_above else 0.1,
        for_s=0.0 if is_counted else draw(spans),
        consecutive=draw(st.integers(1, 5)) if is_counted else None,
        effect=effect,
        amount=0.5 if is_degrade else 0.0,
        outstanding_frac=draw(st.sampled_from([None, 0.5])) if is_degrade else None,
        recovery=Recovery(
            threshold=0.8 if is_above else 0.2,
            for_s=draw(spans),
            cool_down_s=draw(st.sampled_from([0.5, 2.0])),
            probes=draw(st.sampled_from([0, 1, 3])),
        ),
        severity=Severity.WARNING,
        max_open_frac=draw(st.sampled_from([0.3, 0.5, 0.7, 1.0])),
    )


class Watch:
    """Steps breakers of one rule, and checks after each step what must always hold."""

    def __init__(self, rule: BreakerRule) -> None:
        self.rule = rule
        self.breakers = Breakers([rule], PLACES, SlowStart(span_s=0))
        self.template = make_state(PLACES, 100.0, {})
        self.now_s = self.clock_s = 100.0
        self.size = len(PLACES.names[rule.node])
        self.phase: dict[str, Phase] = {}
        self.opened_at_s: dict[str, float] = {}
        self.openings: Counter[str] = Counter()
        self.raised: set[str] = set()

    def see(self, levels: list[str], age_s: float, passed_s: float) -> None:
        self.now_s += passed_s
        self.clock_s += max(passed_s, 0.0)
        values = [LEVELS[level] for level in levels[: self.size]]
        if not self.rule.is_above:
            values = [None if value is None else 1.0 - value for value in values]
        node, template = self.rule.node, self.template
        row = column(node, self.rule.feature.name)
        template.values[node][:, row] = [1e9 if value is None else value for value in values]
        template.is_valid[node][:, row] = [value is not None for value in values]
        template.age_s[node][:] = age_s
        step = self.breakers.step(replace(template, now_s=self.now_s))
        self.check_phases(dict(zip(PLACES.names[self.rule.node], levels, strict=False)), age_s)
        self.check_limits(step.limits)
        for alarm in step.alarms:
            assert alarm.is_resolved == (alarm.place in self.raised)  # in turns
            self.raised ^= {alarm.place}
        assert self.raised == set(self.phase)  # alarmed while, and only while, not closed

    def check_phases(self, levels: dict[str, str], age_s: float) -> None:
        now = {state.place: state.phase for state in self.breakers.states()}
        cool_down_s = self.rule.recovery.cool_down_s
        can_judge = 0 <= age_s <= MAX_AGE_S
        for name, level in levels.items():
            place = f"{self.rule.node} {name}"
            before, after = self.phase.get(place), now.get(place)
            if before is after:
                continue
            if after is Phase.OPEN:  # only on a fresh observation in breach
                assert can_judge
                assert level == "breach"
                self.opened_at_s[place] = self.clock_s
                self.openings[place] += 1
                assert self.openings[place] <= 1 + (self.clock_s - 100.0) / cool_down_s + 1e-5
            elif after is Phase.HALF_OPEN:  # after the cool-down
                assert before is Phase.OPEN
                assert self.clock_s - self.opened_at_s[place] >= cool_down_s - 1e-5
            else:  # closes only half open, on a fresh quiet observation
                assert before is Phase.HALF_OPEN
                assert can_judge
                assert level == "quiet"
        self.phase = now

    def check_limits(self, limits) -> None:
        is_masked, is_limited = limits.masks != 0, np.isfinite(limits.max_outstanding)
        effect = self.rule.effect
        if effect in (Effect.QUARANTINE, Effect.MAINTENANCE):
            for model in (0, 1):
                own = PLACES.model == model
                most = np.floor(self.rule.max_open_frac * own.sum() + 1e-9)
                assert (is_masked | is_limited)[own].sum() <= most
            assert not limits.penalties.any()
        else:
            assert not is_masked.any()
            assert (limits.penalties <= self.rule.amount).all()
        if effect is Effect.ALARM or not self.phase:
            assert not (is_masked | is_limited).any()
            assert not limits.penalties.any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_kind_of_rule_is_bounded_and_comes_back(kind, data):
    watch = Watch(data.draw(rules_of(kind)))
    for passed_s, levels, age_s, times in data.draw(moments):
        for _ in range(times):
            watch.see(levels, age_s, passed_s)
    # Values are fine from here on: the longest cool-down and twice the quiet span lead back.
    recovery = watch.rule.recovery
    fine_s = MAX_BACK_OFF * recovery.cool_down_s + 2 * recovery.for_s
    for _ in range(int(fine_s / 0.5) + 4):
        watch.see(["quiet"] * NUM_NODES, 0.0, 0.5)
    assert watch.phase == {}
    assert watch.raised == set()


@pytest.mark.parametrize("effect", list(Effect))
def test_a_value_that_swings_opens_a_breaker_seldom(effect):
    """A square wave of 2 s for 1,000 s would be 500 openings without cool-down and back-off."""
    degrade = {"amount": 1.0} if effect is Effect.DEGRADE else {}
    rule = make_rule(
        effect=effect, for_s=0.0, max_open_frac=1.0,
        recovery=Recovery(threshold=0.8, for_s=0.5, cool_down_s=4.0), **degrade,
    )  # fmt: skip
    watch = Watch(rule)
    for tick in range(2000):
        watch.see(["breach" if tick // 2 % 2 else "quiet"] * NUM_NODES, 0.0, 0.5)
    # Back-off reaches 32 s after three openings; then there is one every 32 s at most.
    assert max(watch.openings.values()) <= 3 + 1000 / 32.0


def test_a_clock_that_stands_still_opens_a_breaker_once_and_for_good():
    watch = Watch(make_rule(for_s=0.0))
    random = np.random.default_rng(0)
    for _ in range(500):
        watch.see(list(random.choice(list(LEVELS), NUM_NODES)), float(random.uniform(0, 6)), 0.0)
    assert all(number == 1 for number in watch.openings.values())
    assert set(watch.phase.values()) <= {Phase.OPEN}
