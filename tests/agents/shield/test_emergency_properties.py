"""For every emergency action and any signals: bounded, rests, undone exactly once, in few moves."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents.shield.controller import make_controller, tick
from trimtab.agents.shield.emergencies import Emergencies
from trimtab.agents.shield.emergency_rules import DEFAULT_RULES
from trimtab.agents.shield.signals import make_signals
from trimtab.env.emergency import EMERGENCY_SPECS, Emergency, EmergencyAction

# Short, so that a few seconds of signals see many rounds.
RULES = tuple(
    replace(
        rule,
        max_s=min(rule.max_s, 0.4),
        cool_down_s=0.1 * (2 + place),
        quiet_s=min(rule.quiet_s, 0.05),
    )
    for place, rule in enumerate(DEFAULT_RULES)
)
BY_KIND = {rule.kind: rule for rule in RULES}
NUM_REPLICAS = 2
BROKEN = [np.nan, np.inf, -np.inf, -1e300, 1e300]
# Mostly ticks; sometimes a gap, a clock that stands, goes back, or is no clock.
SPANS = st.sampled_from([0.01] * 12 + [0.002, 0.05, 0.3, 2.0, 0.0, -0.5, np.nan, np.inf])
MOODS = st.sampled_from(["calm", "press", "press", "press", "flicker", "broken"])


class Recorder:
    """A fleet that can do some kinds of action and counts what is in force."""

    def __init__(self, able):
        self.able = able
        self.in_force: Counter[tuple[Emergency, int | None]] = Counter()
        self.num_acts = self.num_undos = 0

    def can(self, kind, replica):
        return kind in self.able

    def act(self, action: EmergencyAction):
        self.num_acts += 1
        self.in_force[action.kind, action.replica] += 1
        assert self.in_force[action.kind, action.replica] == 1
        return 1

    def undo(self, kind, replica=None):
        self.num_undos += 1
        self.in_force[kind, replica] -= 1
        assert self.in_force[kind, replica] == 0


def spoil(fleet, replicas, rng, mood):
    """Set signals that call for everything, for nothing, or for both in turn; or nonsense."""
    is_pressing = mood == "press" or (mood == "flicker" and rng.random() < 0.5)
    fleet["num_arrived"] += 500 if is_pressing else 1
    fleet["least_wait_s"] = fleet["least_wait_s"] + 0.1 if is_pressing else 0.0
    fleet["num_spill"] = replicas["has_neighbour"] = int(is_pressing)
    replicas["kv_usage_frac"] = 0.99 if is_pressing else 0.3
    replicas["allocation_failures"] += 3 if is_pressing else 0
    if mood == "broken":
        for array in (fleet, replicas):
            for name in array.dtype.names:
                if array.dtype[name] == np.float64 and rng.random() < 0.5:
                    array[name] = rng.choice(BROKEN)


def run(script, seed, able=frozenset(Emergency)):
    """Run a script of (span, mood); return moments of ticks, transitions, and who obeyed."""
    core, (fleet, replicas) = make_controller(NUM_REPLICAS, RULES), make_signals(NUM_REPLICAS)
    rng, emergencies, recorder = np.random.default_rng(seed), Emergencies(RULES), Recorder(able)
    fleet["ttft_slo_s"] = 0.2
    replicas["is_available"] = 1
    moments_s, rows, now_s = [], [], 100.0
    for span_s, mood in script:
        fleet["ttft_slo_s"] = 0.2
        spoil(fleet, replicas, rng, mood)
        now_s = now_s + span_s if np.isfinite(span_s) else now_s
        fleet["now_s"] = now_s if np.isfinite(span_s) else span_s
        before_s = moments_s[-1] if moments_s else -np.inf
        num = tick(core, fleet, replicas)
        if now_s > before_s and np.isfinite(span_s):
            moments_s.append(now_s)
        else:
            assert num == 0
        rows += [tuple(row) for row in core.transitions[:num].tolist()]
        emergencies.obey(core.transitions[:num], recorder)
    return np.array(moments_s), rows, (emergencies, recorder)


def check(kind, place, moments_s, rows):
    """Hold one machine's transitions against its rule; return how often it began."""
    rule = BY_KIND[kind]
    own = [(at_s, is_on) for at_s, k, r, is_on, _ in rows if (KINDS[k], r) == (kind, place)]
    begun_s, ended_s = [at_s for at_s, on in own if on], [at_s for at_s, on in own if not on]
    assert [on for _, on in own] == [1 - i % 2 for i in range(len(own))]
    for begin_s, end_s in zip(begun_s, ended_s, strict=False):
        # No tick goes by after its time is over without ending it.
        over_s = moments_s[moments_s >= begin_s + max(rule.max_s, 1e-5)]
        assert begin_s < end_s <= min(over_s, default=np.inf)
    if len(begun_s) > len(ended_s):
        assert moments_s[-1] < begun_s[-1] + max(rule.max_s, 1e-5)
    for end_s, begin_s in zip(ended_s, begun_s[1:], strict=False):
        assert begin_s - end_s >= rule.cool_down_s - 1e-9
    assert len(begun_s) <= (moments_s[-1] - moments_s[0]) / rule.cool_down_s + 1
    return len(begun_s)


KINDS = list(Emergency)
SCRIPTS = st.lists(st.tuples(SPANS, MOODS, st.integers(1, 30)), min_size=3, max_size=25).map(
    lambda parts: [(span_s, mood) for span_s, mood, num in parts for _ in range(num)]
)


@pytest.mark.parametrize("kind", Emergency)
@settings(max_examples=20)
@given(script=SCRIPTS, seed=st.integers(0, 99))
def test_it_is_bounded_rests_and_ends_as_often_as_it_begins(kind, script, seed):
    moments_s, rows, _ = run([(0.01, "calm"), *script], seed)
    places = range(NUM_REPLICAS) if EMERGENCY_SPECS[kind].is_per_replica else (-1,)
    for place in places:
        check(kind, place, moments_s, rows)


@pytest.mark.parametrize("kind", Emergency)
def test_under_lasting_pressure_it_comes_again_and_again(kind):
    """The properties above speak of something: each kind does begin, end, rest and begin."""
    moments_s, rows, _ = run([(0.01, "calm")] * 20 + [(0.01, "press")] * 400, 0)
    place = 0 if EMERGENCY_SPECS[kind].is_per_replica else -1
    rule = BY_KIND[kind]
    num = check(kind, place, moments_s, rows)
    assert num == pytest.approx(4.0 / (max(rule.max_s, 0.01) + rule.cool_down_s), abs=1.01)


@settings(max_examples=30)
@given(
    script=SCRIPTS,
    seed=st.integers(0, 99),
    able=st.sets(st.sampled_from(KINDS)),
)
def test_a_fleet_is_told_to_undo_exactly_what_it_was_told_to_do(script, seed, able):
    _, rows, (emergencies, recorder) = run(script, seed, frozenset(able))
    emergencies.close(1e3, recorder)
    emergencies.close(2e3, recorder)
    assert not +recorder.in_force
    assert recorder.num_acts == recorder.num_undos == emergencies.num_begun
    begun = Counter(KINDS[k] for _, k, _, is_on, _ in rows if is_on)
    assert emergencies.skipped == Counter({k: n for k, n in begun.items() if k not in able})
