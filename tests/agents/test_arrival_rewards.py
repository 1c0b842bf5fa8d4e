"""Advantages of regimes on one scale: overload does not drown the others."""

import numpy as np
import pytest

from trimtab.agents.arrival_rewards import normalise


def test_each_regime_has_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(0)
    regimes = rng.integers(0, 3, size=(50, 8))
    scales = np.array([1e-3, 0.1, 5.0])
    advantages = (scales[regimes] * (1.0 + rng.normal(size=regimes.shape))).astype(np.float32)
    order = [np.argsort(advantages[regimes == kind]) for kind in range(3)]
    normalise(advantages, regimes, range(3))
    for kind in range(3):
        own = advantages[regimes == kind]
        assert own.mean() == pytest.approx(0.0, abs=1e-5)
        assert own.std() == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_array_equal(np.argsort(own), order[kind])


def test_pooled_keeps_the_regimes_scales() -> None:
    regimes = np.repeat([0, 1], 100).reshape(2, 100)
    advantages = np.where(regimes == 0, 0.01, 1.0) * np.linspace(-1, 1, 100)
    advantages = advantages.astype(np.float32)
    normalise(advantages, regimes, [None])
    assert advantages.std() == pytest.approx(1.0, abs=1e-4)
    assert advantages[1].std() == pytest.approx(100 * advantages[0].std(), rel=1e-3)


def test_a_regime_in_which_all_is_equal_is_left() -> None:
    advantages = np.full((4, 4), 0.25, np.float32)
    normalise(advantages, np.zeros((4, 4), np.int64), [0])
    assert (advantages == 0.25).all()
