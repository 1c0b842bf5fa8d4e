"""Steps are found soon, noise is not taken for steps, and thresholds are what theory says."""

import math

import numpy as np
import pytest

from trimtab.runtime.telemetry.change_points import (
    ChangeConfig,
    ChangePoints,
    samples_between_false_alarms,
    threshold_nats,
)  # fmt: skip


def watch(
    values: np.ndarray, least_change: float = 1e-3, config: ChangeConfig | None = None
) -> list[tuple[int, int]]:
    """Return (sample, signal) of every change in [samples, signals]."""
    owner = np.zeros(values.shape[1], np.int32)
    changes = ChangePoints(owner, least_change, config, max_changes=values.shape[1])
    is_new = np.ones(1, np.bool_)
    return [
        (t, int(i))
        for t, row in enumerate(values.astype(np.float32))
        for i in changes.update(row, is_new).signals
    ]


def noise(num_samples: int, num_signals: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_samples, num_signals))


def test_threshold_is_the_inverse_of_siegmunds_approximation():
    # By hand: boundary 18 + 2 * 0.583 * 3 = 21.498; (exp(b) - b - 1) / 4.5 / 2 sides
    expected = (math.exp(21.498) - 21.498 - 1) / 4.5 / 2
    assert samples_between_false_alarms(3.0, 18.0) == pytest.approx(expected)
    assert threshold_nats(3.0, expected) == pytest.approx(18.0, abs=1e-6)


def test_siegmunds_approximation_holds_in_simulation():
    # the plain two-sided test, noise known, a threshold low enough for many alarms
    nats, step = 4.0, 3.0
    up = down = np.zeros(400)
    alarms = 0
    for z in noise(5000, 400, seed=3):
        up, down = (
            np.maximum(w, 0.0) + step * (s * z - step / 2) for w, s in ((up, 1), (down, -1))
        )
        is_alarm = (up >= nats) | (down >= nats)
        alarms += int(is_alarm.sum())
        up, down = np.where(is_alarm, 0.0, up), np.where(is_alarm, 0.0, down)
    assert 5000 * 400 / alarms == pytest.approx(samples_between_false_alarms(step, nats), rel=0.15)


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_of_three_sigmas_are_found_within_a_second(sign: int):
    values = noise(615, 500)
    values[600:] += 3.0 * sign
    found = watch(values)
    assert all(t >= 600 for t, _ in found)
    in_time = {i for t, i in found if t < 610}
    assert len(in_time) >= 0.95 * 500


def correlated(num_samples: int, num_signals: int, correlation: float, seed: int) -> np.ndarray:
    """AR(1) noise of spread 1."""
    shocks = noise(num_samples, num_signals, seed)
    values = shocks.copy()
    for t in range(1, num_samples):
        values[t] = correlation * values[t - 1] + math.sqrt(1 - correlation**2) * shocks[t]
    return values


@pytest.mark.parametrize("correlation", [0.9, 0.95])
def test_a_jump_in_a_signal_that_follows_itself_is_found(correlation: float):
    values = correlated(1515, 400, correlation, seed=8)
    values[1500:, ::2] += 3.0
    values[1500:, 1::2] -= 3.0
    found = watch(values)
    assert sum(t < 1500 for t, _ in found) <= 2  # 0.7 signal-days
    assert len({i for t, i in found if 1500 <= t < 1510}) >= 0.8 * 400


def test_a_jump_that_returns_at_once_is_no_change():
    values = correlated(1100, 200, 0.9, seed=9)
    values[1000] += 20.0
    assert watch(values) == []


def test_where_large_innovations_are_common_jumps_are_part_of_the_noise():
    # shocks of Student's t with 3 degrees in signals that follow themselves: 0.7 signal-days
    shocks = np.random.default_rng(6).standard_t(3, (4000, 200))
    values = shocks.copy()
    for t in range(1, 4000):
        values[t] = 0.9 * values[t - 1] + shocks[t]
    number = sum(t >= 1000 for t, _ in watch(values))
    assert number <= 20
    heedless = ChangeConfig(most_large_frac=1.0)
    assert sum(t >= 1000 for t, _ in watch(values, config=heedless)) > 10 * number


def test_heavy_tails_raise_hardly_a_false_alarm():
    # Student's t with 4 degrees: 4.6 signal-days
    values = np.random.default_rng(3).standard_t(4, (2000, 2000)) / math.sqrt(2.0)
    assert len(watch(values)) <= 4


def test_a_slow_drift_is_followed():
    values = noise(3000, 200, seed=1) + np.linspace(0, 5, 3000)[:, None]
    assert watch(values) == []


def test_absent_samples_change_nothing():
    values = noise(700, 50, seed=2)
    values[500:] += 6.0
    gaps = np.full((1400, 50), np.nan)
    gaps[::2] = values
    found = watch(values)
    assert [(t // 2, i) for t, i in watch(gaps)] == found
    assert len(found) == 50


def test_spread_is_learned_and_forgotten():
    owner = np.repeat(np.arange(2, dtype=np.int32), 20)
    changes = ChangePoints(owner, 1e-3)
    scale = np.linspace(0.1, 4.0, 40)
    for row in scale * noise(2000, 40):
        changes.update(row.astype(np.float32), np.ones(2, np.bool_))
    np.testing.assert_allclose(changes.sigma, scale, rtol=0.3)
    changes.forget(1)
    assert (changes.sigma[20:] == 0).all()
    assert (changes.sigma[:20] > 0).all()


def test_noise_raises_no_alarm_in_signal_days():
    # 1,500 signals for 100 s each: 1.7 signal-days
    assert watch(noise(1000, 1500, seed=5)) == []


def test_one_outlier_is_no_change():
    values = noise(300, 50)
    values[200] += 50.0
    assert watch(values) == []


def test_steps_too_small_to_matter_are_not_reported():
    values = 0.001 * noise(400, 50)
    values[300:] += 0.01  # ten sigmas, but a hundredth
    assert watch(values, least_change=0.05) == []
    assert len({i for _, i in watch(values, least_change=0.005)}) == 50


def test_constants_that_jump_are_found_and_those_that_do_not_are_not():
    values = np.ones((200, 2))
    values[150:, 1] = 0.0
    found = watch(values, least_change=0.1)
    assert [i for _, i in found] == [1]
    assert 150 < found[0][0] <= 155


def test_a_second_step_is_found_after_the_first():
    values = 0.1 * noise(500, 40, seed=2)
    values[200:] += 1.0
    values[300:] -= 1.0
    found = watch(values)
    assert {i for t, i in found if 200 <= t < 210} == set(range(40))
    assert {i for t, i in found if 300 <= t < 310} == set(range(40))
    assert len(found) == 80


def test_correlated_noise_raises_no_alarm_that_independent_noise_would_not():
    assert len(watch(correlated(3000, 200, 0.7, seed=4))) <= 1  # 0.7 signal-days


def test_owners_without_a_sample_are_left_alone_and_absent_values_too():
    owner = np.array([0, 1], np.int32)
    changes = ChangePoints(owner, 0.1)
    row = np.array([0.5, 0.5], np.float32)
    for _ in range(100):
        changes.update(row, np.array([True, True]))
    for _ in range(10):
        found = changes.update(np.array([np.nan, 5.0], np.float32), np.array([True, False]))
        assert len(found.signals) == 0
    found_at = [len(changes.update(row + 1, np.array([True, True])).signals) for _ in range(6)]
    assert sum(found_at) == 2


def test_changes_beyond_the_room_are_counted():
    changes = ChangePoints(np.zeros(10, np.int32), 0.1, max_changes=4)
    is_new = np.ones(1, np.bool_)
    for _ in range(100):
        changes.update(np.zeros(10, np.float32), is_new)
    results = [changes.update(np.ones(10, np.float32), is_new) for _ in range(6)]
    assert sum(len(r.signals) for r in results) == 4
    assert sum(r.num_left_out for r in results) == 6


def test_a_bad_configuration_is_refused():
    with pytest.raises(ValueError, match="step_sigmas must be above 0, got 0"):
        ChangeConfig(step_sigmas=0.0)
    with pytest.raises(ValueError, match=r"most_correlation must be in \[0, 1\), got 1"):
        ChangeConfig(most_correlation=1.0)
