"""Shadow first: when a policy that only decides on paper is let serve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.regret import NO_REGRET, Regret
from trimtab.runtime.serving.promotion import (
    Phase,
    Promotion,
    PromotionConfig,
    ShadowWindow,
    block_bootstrap_lower,
)
from trimtab.runtime.serving.promotion_rule import Comparison, parse_promotion_rule
from trimtab.traces.errors import ConfigError


def window(gain: float, *, has_doubt: bool = False, is_overridden: bool = False) -> ShadowWindow:
    return ShadowWindow(Regret(num_sampled=10, mean=gain, std_error=0.0), has_doubt, is_overridden)


def promotion(rule: str = "gain > 0.0 and doubts < 0.05", *, num_windows: int = 20) -> Promotion:
    config = PromotionConfig(
        span_s=2.0 * num_windows, window_s=2.0, rule=parse_promotion_rule(rule)
    )
    return Promotion(config)


def test_a_rule_is_comparisons_joined_by_and() -> None:
    rule = parse_promotion_rule("gain > 0.01 and doubts<=.05 and samples >= 200")
    assert rule.comparisons == (
        Comparison("gain", ">", 0.01),
        Comparison("doubts", "<=", 0.05),
        Comparison("samples", ">=", 200.0),
    )
    assert str(rule) == "gain > 0.01 and doubts <= 0.05 and samples >= 200"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is no comparison"),
        ("gain > 0 or doubts < 1", "'gain > 0 or doubts < 1' is no comparison"),
        ("gain > __import__('os')", "is no comparison"),
        ("profit > 0", "unknown figure 'profit'; known: gain, doubts"),
        ("gain = 0", "'gain = 0' is no comparison"),
        ("gain > 0 and", "'' is no comparison"),
    ],
)
def test_what_is_no_rule_is_refused_in_words(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault.replace("(", r"\(").replace(")", r"\)")):
        parse_promotion_rule(text)


def test_a_better_policy_is_promoted_after_the_span_and_not_before() -> None:
    subject = promotion()
    phases = [subject.step(window(0.02)) for _ in range(20)]
    assert phases == [Phase.SHADOW] * 19 + [Phase.PROMOTED]


@pytest.mark.parametrize("gain", [0.0, -0.1])
def test_a_policy_that_is_no_better_stays_in_shadow(gain: float) -> None:
    subject = promotion()
    for _ in range(100):
        subject.step(window(gain))
    assert subject.phase is Phase.SHADOW
    assert subject.unmet() == ("gain > 0",)


def test_a_gain_that_may_be_chance_does_not_promote() -> None:
    # Mean +0.01, but half of the windows lose more than that.
    subject = promotion()
    for number in range(20):
        subject.step(window(0.31 if number % 2 else -0.29))
    assert subject.gain_lower() < 0.0
    assert subject.phase is Phase.SHADOW


def test_doubts_keep_a_policy_in_shadow_until_they_are_past() -> None:
    subject = promotion()
    for number in range(20):
        subject.step(window(0.1, has_doubt=number < 2))
    assert subject.figures()["doubts"] == 0.1
    assert subject.unmet() == ("doubts < 0.05",)
    # The span slides: with the second doubt out of it, 1 of 20 is still no less than 0.05.
    assert subject.step(window(0.1)) is Phase.SHADOW
    assert subject.step(window(0.1)) is Phase.PROMOTED


def test_who_may_not_be_promoted_is_not() -> None:
    subject = promotion()
    for _ in range(30):
        assert subject.step(window(0.1), may_promote=False) is Phase.SHADOW
    assert subject.step(window(0.1)) is Phase.PROMOTED


def test_overrides_count_as_the_rule_says() -> None:
    subject = promotion("overrides < 0.5")
    for number in range(20):
        subject.step(window(0.0, is_overridden=number % 2 == 0))
    assert subject.phase is Phase.SHADOW
    assert subject.figures()["overrides"] == 0.5


def test_without_a_sample_there_is_no_gain() -> None:
    subject = promotion()
    for _ in range(20):
        subject.step(ShadowWindow(NO_REGRET, False, False))
    assert subject.figures()["gain"] == -math.inf
    assert subject.phase is Phase.SHADOW


def test_a_constant_series_has_its_own_value_for_bound() -> None:
    lower = block_bootstrap_lower(np.full(50, 0.25), np.arange(1.0, 51.0), confidence=0.95)
    assert lower == pytest.approx(0.25)


def test_windows_with_more_requests_weigh_more() -> None:
    means = np.array([0.5, -0.5] * 30)
    weights = np.array([99.0, 1.0] * 30)
    assert block_bootstrap_lower(means, weights, confidence=0.95) > 0.4


def test_the_bound_is_below_the_mean_of_a_series_that_drifts_in_nineteen_of_twenty_cases() -> None:
    # Neighbours are alike (autoregression 0.6), so a bound from independent windows is too tight.
    rng = np.random.default_rng(1)
    num_below = 0
    for _ in range(200):
        noise = rng.normal(size=300)
        series = np.zeros(300)
        for i in range(1, 300):
            series[i] = 0.6 * series[i - 1] + noise[i]
        lower = block_bootstrap_lower(0.01 * series, np.ones(300), confidence=0.95)
        num_below += lower < 0.0
    assert num_below >= 170


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_the_bound_lies_within_the_series(values: list[float]) -> None:
    means = np.array(values)
    lower = block_bootstrap_lower(means, np.ones(means.size), confidence=0.9)
    assert means.min() - 1e-9 <= lower <= means.max() + 1e-9


@pytest.mark.parametrize(("field", "value"), [("span_s", 0.0), ("confidence", 0.4)])
def test_a_config_without_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        PromotionConfig(**{field: value})  # type: ignore[arg-type]
