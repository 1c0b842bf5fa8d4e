"""The fallback: replaced within one tick, recovery with hysteresis, no oscillation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.agents.heuristics import heuristic
from trimtab.agents.shield.doubt import Doubt
from trimtab.agents.shield.fallback import Fallback, FallbackConfig, FallbackEntry, Proposal
from trimtab.agents.shield.projection import KnobLimit, KnobLimits
from trimtab.agents.shield.trip_wire import TripWireConfig
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.regret import Regret

BASE = ANALYTIC_SCORER_KNOBS
WINDOW_S = 2.0
CONFIG = FallbackConfig(
    heuristic="predicted-ttft", recovery_windows=4, max_recovery_windows=16, late_s=0.5
)
GOOD = BASE.replace({"backlog": 1.2})
CLEAR = Regret(num_sampled=100, mean=0.5, std_error=0.02)
NONE_OF_IT = Regret(num_sampled=100, mean=0.0, std_error=0.02)


def make_fallback(**changes) -> Fallback:
    return Fallback(CONFIG, base=BASE, num_replicas=2, **changes)


class Driver:
    """Windows of a fallback, each WINDOW_S after the last."""

    def __init__(self, fallback: Fallback) -> None:
        self.fallback, self.now_s = fallback, 0.0

    def window(self, values=GOOD.values, regret=None, *, age_s=0.0, has_failed=False, **fields):
        self.now_s += WINDOW_S
        proposal = None
        if values is not None and not has_failed:
            state_at_s = self.now_s - age_s
            proposal = Proposal(
                values=values, state_at_s=state_at_s, arrived_at_s=state_at_s, **fields
            )
        return self.fallback.judge(proposal, self.now_s, regret, has_failed=has_failed)


BAD = {
    Doubt.LATE: {"age_s": 10.0},
    Doubt.ABSENT: {"values": None},
    Doubt.ERROR: {"has_failed": True},
    Doubt.NOT_FINITE: {"values": np.full(GOOD.values.size, np.nan)},
    Doubt.WRONG_SHAPE: {"values": np.zeros(3)},
    Doubt.NOVEL: {"novelty": 1.5},
    Doubt.REGRET: {"regret": CLEAR},
}


@pytest.mark.parametrize("doubt", Doubt)
def test_a_policy_in_doubt_is_replaced_at_once_and_rules_again_when_it_was_good(doubt):
    driver = Driver(make_fallback())
    verdict = driver.window()
    assert not verdict.is_fallback
    assert verdict.knobs["backlog"] == 1.2
    assert verdict.shadow is driver.fallback.knobs
    verdict = driver.window(**BAD[doubt])
    assert verdict.doubt is doubt
    assert verdict.knobs.values.tobytes() == heuristic("predicted-ttft").knobs.values.tobytes()
    assert driver.fallback.counts[doubt] == 1
    # In shadow the regret is that of the fallback against the policy: none is good.
    for _ in range(3):
        verdict = driver.window(regret=NONE_OF_IT)
        assert verdict.doubt is doubt
        assert verdict.shadow is not None
        assert verdict.shadow["backlog"] == 1.2
    assert not driver.window(regret=NONE_OF_IT).is_fallback
    assert driver.fallback.num_switches == 2


def test_a_bad_window_in_shadow_starts_the_count_again():
    driver = Driver(make_fallback())
    driver.window(values=None)
    for _ in range(3):
        driver.window()
    assert driver.window(novelty=math.nan).doubt is Doubt.NOVEL
    assert [driver.window().is_fallback for _ in range(4)] == [True, True, True, False]


def test_regret_trips_stay_until_regret_says_otherwise():
    driver = Driver(make_fallback())
    assert driver.window(regret=CLEAR).doubt is Doubt.REGRET
    assert all(driver.window(regret=None).is_fallback for _ in range(30))
    # The fallback does better by half in shadow, too: minus half for the policy.
    worse = CLEAR.flipped()
    assert all(driver.window(regret=worse).is_fallback for _ in range(30))
    # The bad windows leave the five that count one by one.
    assert [driver.window(regret=NONE_OF_IT).is_fallback for _ in range(8)] == [True] * 7 + [False]


def test_each_further_trip_takes_twice_as_long_up_to_a_limit_and_is_forgiven():
    driver = Driver(make_fallback())
    spans = []
    for _ in range(5):
        driver.window(values=None)
        spans.append(1)
        while driver.window().is_fallback:
            spans[-1] += 1
    assert spans == [4, 8, 16, 16, 16]
    for _ in range(16):
        driver.window()
    driver.window(values=None)
    assert driver.fallback.required_windows == 4


def test_an_overdue_proposal_is_noticed_between_windows():
    driver = Driver(make_fallback())
    driver.window()
    assert driver.fallback.watch(driver.now_s + WINDOW_S + 0.49) is None
    verdict = driver.fallback.watch(driver.now_s + WINDOW_S + 0.51)
    assert verdict is not None
    assert verdict.doubt is Doubt.ABSENT
    assert driver.fallback.watch(driver.now_s + 99.0) is None


@pytest.mark.parametrize(
    ("state_at_s", "arrived_at_s", "doubt"),
    [
        (10.0, 10.4, None),
        (10.0, 10.6, Doubt.LATE),
        (9.4, 9.5, Doubt.LATE),
        (99.0, 10.0, Doubt.LATE),
        (math.nan, 10.0, Doubt.NOT_FINITE),
        (10.0, math.nan, Doubt.NOT_FINITE),
        (10.0, math.inf, Doubt.NOT_FINITE),
    ],
)
def test_the_age_of_a_proposal_is_from_its_state_to_its_arrival(state_at_s, arrived_at_s, doubt):
    proposal = Proposal(values=GOOD.values, state_at_s=state_at_s, arrived_at_s=arrived_at_s)
    assert make_fallback().judge(proposal, 10.0).doubt is doubt


def test_any_knobs_can_be_the_fallback_within_the_limits():
    limits = KnobLimits.of([KnobLimit(knob="shed_interactive", low=3.0)])
    fallback = make_fallback(knobs=Knobs.of(random_weight=1.0), limits=limits)
    verdict = fallback.judge(None, 1.0)
    assert verdict.knobs["random_weight"] == 1.0
    assert verdict.knobs["shed_interactive"] == 3.0
    assert fallback.begin(0.0)["shed_interactive"] == 3.0
    assert not fallback.is_fallback


def test_a_policy_in_shadow_is_slowed_as_if_it_ruled():
    limits = KnobLimits.of([KnobLimit(knob="backlog", max_change_per_s=0.01)])
    driver = Driver(make_fallback(limits=limits))
    driver.window(values=None)
    shadows = [driver.window().shadow for _ in range(2)]
    moved = [math.log(shadow["backlog"]) for shadow in shadows if shadow is not None]
    # The first comes 4 s after the beginning, which counts as one window after the base was set.
    assert moved == pytest.approx([0.06, 0.08])


WINDOWS = st.lists(
    st.tuples(st.sampled_from([None, *Doubt]), st.floats(-1, 1), st.integers(0, 50)),
    max_size=120,
)


@settings(max_examples=80)
@given(WINDOWS)
def test_no_series_makes_it_follow_a_doubtful_policy_or_swing(windows):
    driver = Driver(make_fallback())
    rulers = [False]
    for doubt, mean, num in windows:
        regret = Regret(num_sampled=num, mean=mean, std_error=0.1)
        fields = {"regret": regret} | (BAD[doubt] if doubt else {})
        verdict = driver.window(**fields)
        if doubt not in (None, Doubt.REGRET):
            assert verdict.doubt is doubt
        assert verdict.is_fallback or np.isfinite(verdict.knobs.values).all()
        rulers.append(verdict.is_fallback)
    switches = np.flatnonzero(np.diff(rulers))
    assert len(switches) == driver.fallback.num_switches
    trips, recoveries = switches[::2], switches[1::2]
    spans = recoveries - trips[: len(recoveries)]
    # Ruling for 16 windows forgives; without it each span is at least twice the one before.
    ruled = trips[1:] - recoveries[: len(trips) - 1]
    least = 4
    for i, span in enumerate(spans):
        least = 4 if i == 0 or ruled[i - 1] > 16 else min(2 * least, 16)
        assert span >= least
    assert len(trips) <= 1 + len(windows) / 5


def test_entries_of_a_policy_file():
    content = {
        "heuristic": "least-requests", "late_s": 0.3, "regret": 0.1, "windows": 3,
        "recovery_windows": 200,
    }  # fmt: skip
    config = FallbackEntry.model_validate(content).config(window_s=5.0)
    assert config == FallbackConfig(
        heuristic="least-requests",
        late_s=0.3,
        window_s=5.0,
        recovery_windows=200,
        max_recovery_windows=200,
        trip_wire=TripWireConfig(limit=0.1, windows=3),
    )
    assert FallbackEntry().config() == FallbackConfig()
    with pytest.raises(ValidationError, match="did you mean 'least-requests'"):
        FallbackEntry.model_validate({"heuristic": "least-request"})
    both = FallbackEntry.model_validate({"recovery_windows": 9, "max_recovery_windows": 3})
    with pytest.raises(ValueError, match=r"at most max_recovery_windows \(3\), got 9"):
        both.config()
    with pytest.raises(ValueError, match="late_s must be above 0, got 0"):
        FallbackConfig(late_s=0)
