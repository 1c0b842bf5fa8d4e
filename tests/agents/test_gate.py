"""The gate: lets through what is better, and neither what is worse nor what was lucky."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agents.gate import LEAST_WORKLOADS, PairedRun, judge, site_interval


def runs(gains, *, regimes=None, per_site=3):
    """Paired runs with these gains over a base of a half."""
    return [
        PairedRun(
            site=f"test/{i // per_site}",
            candidate=0.5 + gain,
            base=0.5,
            regimes=(regimes[i] if regimes else {"steady": (0.5 + gain, 0.5)}),
        )
        for i, gain in enumerate(gains)
    ]


def noise(mean, spread, count=36, seed=0):
    return mean + spread * np.random.default_rng(seed).standard_normal(count)


def test_what_is_better_passes():
    verdict = judge(runs(noise(0.02, 0.01)))
    assert verdict.may_act
    assert verdict.reasons == ()
    assert 0.0 < verdict.gain.low < verdict.gain.mean < verdict.gain.high
    assert verdict.sentence.startswith("passed: +")


def test_what_is_worse_is_refused():
    verdict = judge(runs(noise(-0.02, 0.01)))
    assert not verdict.may_act
    assert "lower bound is -" in verdict.reasons[0]
    assert any("regime 'steady' loses" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("seed", range(5))
def test_what_gained_by_luck_is_refused(seed):
    """Of no true gain, with a mean above 0 by chance."""
    gains = noise(0.0, 0.03, seed=seed)
    lucky = gains - gains.mean() + 0.004
    verdict = judge(runs(lucky))
    assert verdict.gain.mean == pytest.approx(0.004)
    assert not verdict.may_act


def test_one_lucky_site_is_no_proof():
    gains = np.concatenate([np.full(20, 0.2), np.zeros(20)])
    of_one = [
        PairedRun(site="a" if i < 20 else f"b{i}", candidate=0.5 + g, base=0.5, regimes={})
        for i, g in enumerate(gains)
    ]
    assert not judge(of_one).may_act


def test_few_workloads_are_refused_however_good():
    verdict = judge(runs(noise(0.1, 0.001, count=LEAST_WORKLOADS - 1)))
    assert verdict.reasons == ("29 workloads are fewer than 30",)


def test_a_regime_that_loses_is_named():
    each = {"usual": (0.60, 0.50), "overload": (0.48, 0.50)}
    verdict = judge(runs(noise(0.04, 0.01), regimes=[each] * 36))
    assert not verdict.may_act
    assert verdict.reasons == ("regime 'overload' loses 2.00 points, more than 1",)
    mild = {"usual": (0.60, 0.50), "overload": (0.495, 0.50)}
    assert judge(runs(noise(0.04, 0.01), regimes=[mild] * 36)).may_act


@given(seed=st.integers(0, 1000))
def test_the_order_of_workloads_does_not_matter(seed):
    found = runs(noise(0.005, 0.01))
    shuffled = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    assert judge(found).gain.low == pytest.approx(judge(shuffled).gain.low, abs=1e-12)
    assert judge(found).reasons == judge(shuffled).reasons


def test_an_interval_of_one_group_is_that_of_its_values():
    values = noise(0.0, 1.0, count=400).tolist()
    interval = site_interval([values])
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_a_gate_without_runs_says_so():
    with pytest.raises(ValueError, match="needs at least 30 paired runs, got 0"):
        judge([])
    with pytest.raises(ValueError, match=r"goodput must be in \[0, 1\], got 1.5 and 0.5"):
        judge([PairedRun(site="a", candidate=1.5, base=0.5, regimes={})])
