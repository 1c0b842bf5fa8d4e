"""Replicas of which nothing was heard."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agents.shield.staleness import (
    DEFAULT_STALENESS,
    FeatureGroup,
    Posture,
    StalenessEntry,
    StalenessRule,
    judge_staleness,
)
from trimtab.env.masks import Mask

PAGE = FeatureGroup.ENGINE_PAGE


def rule(posture: Posture, **changes) -> StalenessRule:
    return StalenessRule(group=PAGE, after_s=1.0, posture=posture, **changes)


@pytest.mark.parametrize(
    ("posture", "grace_s", "masked"),
    [
        (Posture.SATURATED, 0.0, [0, 0, 1, 1]),
        (Posture.GRACE, 4.0, [0, 0, 0, 1]),
        (Posture.IGNORE, 0.0, [0, 0, 0, 0]),
    ],
)
def test_a_posture_says_what_old_data_means(posture, grace_s, masked):
    ages_s = {PAGE: np.array([0.05, 1.0, 1.01, np.inf])}
    step = judge_staleness([rule(posture, grace_s=grace_s)], ages_s, np.ones(4, bool))
    assert list(step.masks) == [Mask.STALE * bit for bit in masked]
    assert step.outages == ()


def test_an_outage_of_metrics_masks_nobody():
    ages_s = {PAGE: np.array([9.0, 9.0, 9.0, 0.0])}
    step = judge_staleness([rule(Posture.SATURATED)], ages_s, np.ones(4, bool))
    assert not step.masks.any()
    assert step.outages == (PAGE,)


def test_shares_are_of_the_replicas_that_serve():
    # Two of three that serve are old: more than half, though not of the six.
    ages_s = {PAGE: np.array([9.0, 9.0, 0.0, 9.0, 9.0, 9.0])}
    serving = np.array([True, True, True, False, False, False])
    step = judge_staleness([rule(Posture.SATURATED)], ages_s, serving)
    assert step.outages == (PAGE,)
    assert not step.masks.any()


def test_what_was_never_heard_of_is_old():
    step = judge_staleness(
        [rule(Posture.SATURATED)], {PAGE: np.array([np.nan, 0.0, 0.0])}, np.ones(3, bool)
    )
    assert list(step.masks) == [Mask.STALE, 0, 0]


@given(
    ages=st.lists(st.floats(0, 1e6) | st.just(np.nan) | st.just(np.inf), min_size=1, max_size=20),
    frac=st.floats(0.01, 1.0),
)
def test_never_more_than_the_share_is_masked(ages, frac):
    one = rule(Posture.SATURATED, max_masked_frac=frac)
    step = judge_staleness([one], {PAGE: np.array(ages)}, np.ones(len(ages), bool))
    assert (step.masks != 0).sum() <= frac * len(ages)


def test_rules_explain_themselves():
    texts = [one.sentence() for one in DEFAULT_STALENESS]
    assert texts[0] == (
        "When a replica's metrics page was last read 1 s ago, the last values stay in use for 1 s "
        "more; then it counts as full, unless that would leave less than 50% of the fleet."
    )
    assert texts[1].endswith("the last values stay in use.")


def test_faults_name_the_value():
    with pytest.raises(ValueError, match=r"grace_s of staleness rule 'engine_page' .* got 3 with"):
        StalenessEntry(group="engine_page", after_s=1, posture="saturated", grace_s=3).rule()
    with pytest.raises(ValueError, match=r"after_s .* got 0"):
        StalenessRule(group=PAGE, after_s=0)
    with pytest.raises(ValueError, match=r"max_masked_frac .* got 1\.5"):
        rule(Posture.SATURATED, max_masked_frac=1.5)
