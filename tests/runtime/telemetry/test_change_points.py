"""Steps are found within a second, and hardly ever where there is none."""

import numpy as np
import pytest

from trimtab.runtime.telemetry.change_points import (
    ChangeDetector,
    DetectorConfig,
    cusum_threshold,
)

RATE_HZ = 10
SAMPLES_PER_DAY = 86_400 * RATE_HZ
QUICK = DetectorConfig(warm_up_samples=100, memory_samples=500)


def gaussian(num_samples: int, num_signals: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_samples, num_signals))


def changes(detector: ChangeDetector, samples: np.ndarray) -> list[tuple[int, int, float, float]]:
    """(sample, signal, size, sigmas) of every change."""
    return [
        (i, int(signal), float(size), float(sigmas))
        for i, values in enumerate(samples)
        for found in [detector.update(values)]
        for signal, size, sigmas in zip(found.signal, found.size, found.sigmas, strict=True)
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_of_three_sigmas_are_found_within_a_second(sign):
    num_signals, start = 1_000, 600
    samples = 5.0 + 0.2 * gaussian(start + 30, num_signals)
    samples[start:] += sign * 3 * 0.2
    found = changes(ChangeDetector(num_signals), samples)
    in_time = {s for i, s, _, _ in found if start <= i < start + RATE_HZ}
    assert len(in_time) >= 0.95 * num_signals
    sizes = [size for i, _, size, _ in found if i >= start]
    assert np.median(sizes) == pytest.approx(sign * 0.6, rel=0.25)


@pytest.mark.parametrize("tails", ["gaussian", "heavy"])
def test_less_than_one_false_alarm_in_a_signal_day(tails):
    rng = np.random.default_rng(3)
    num_signals, num_samples = 2_000, 4_000  # nine signal-days
    detector, number = ChangeDetector(num_signals), 0
    for _ in range(num_samples):
        heavy = tails == "heavy"
        values = rng.standard_t(4, num_signals) if heavy else rng.standard_normal(num_signals)
        number += detector.update(values).signal.size
    assert number / (num_samples * num_signals / SAMPLES_PER_DAY) < 1.0


def test_a_jump_in_a_signal_that_follows_itself_is_found():
    rng = np.random.default_rng(0)
    num_signals, start, correlation = 500, 2_000, 0.95
    noise, samples = np.zeros(num_signals), np.zeros((start + 20, num_signals))
    for row in samples:
        fresh = np.sqrt(1 - correlation**2) * rng.standard_normal(num_signals)
        noise = correlation * noise + fresh
        row[:] = noise
    samples[start:] += 3.0
    found = changes(ChangeDetector(num_signals), samples)
    in_time = {s for i, s, _, _ in found if start <= i < start + RATE_HZ}
    assert len(in_time) >= 0.9 * num_signals


def test_an_outlier_is_no_change():
    samples = gaussian(1_000, 200)
    samples[500] += 50.0
    assert changes(ChangeDetector(200), samples) == []


def test_a_slow_drift_is_followed():
    samples = gaussian(6_000, 200) + np.linspace(0, 5, 6_000)[:, None]
    assert changes(ChangeDetector(200), samples) == []


def test_after_a_change_the_new_level_is_the_level():
    samples = gaussian(3_000, 100, seed=1)
    samples[1_000:] += 8.0
    samples[2_000:] -= 8.0
    found = changes(ChangeDetector(100), samples)
    assert all(1_000 <= i < 1_010 or 2_000 <= i < 2_010 for i, _, _, _ in found)
    up = [size for i, _, size, _ in found if i < 2_000]
    down = [size for i, _, size, _ in found if i >= 2_000]
    assert len(up) == len(down) == 100
    assert np.median(up) > 5
    assert np.median(down) < -5


def test_absent_samples_change_nothing():
    samples = gaussian(700, 50)
    samples[500:] += 6.0
    whole = [change[1:] for change in changes(ChangeDetector(50), samples)]
    gaps = np.full((1_400, 50), np.nan)
    gaps[::2] = samples
    assert [change[1:] for change in changes(ChangeDetector(50), gaps)] == whole
    assert whole


def test_constant_signals_are_quiet_until_they_move():
    samples = np.full((600, 2), 0.5)
    samples[500:, 1] = 0.6
    assert {(i, s) for i, s, _, _ in changes(ChangeDetector(2), samples)} == {(503, 1)}


def test_small_changes_are_not_worth_an_event():
    samples = 0.01 * gaussian(700, 20)
    samples[600:] += 0.1
    config = DetectorConfig(least_step=0.3)
    assert changes(ChangeDetector(20, config), samples) == []
    assert len(changes(ChangeDetector(20), samples)) == 20


def test_spread_is_learnt_and_forgotten():
    detector = ChangeDetector(40, QUICK)
    assert np.isnan(detector.sigma).all()
    scale = np.linspace(0.1, 4.0, 40)
    for values in scale * gaussian(2_000, 40):
        detector.update(values)
    np.testing.assert_allclose(detector.sigma, scale, rtol=0.3)
    detector.forget(np.array([3]))
    assert np.isnan(detector.sigma[3])
    assert not np.isnan(detector.sigma[4])


def test_threshold_gives_the_run_length_that_was_asked_for():
    """Two-sided CUSUM on Gaussian noise, by simulation: within a third of Siegmund's formula."""
    threshold = cusum_threshold(0.5, 500.0)
    rng = np.random.default_rng(0)
    up, down = np.zeros(300), np.zeros(300)
    lengths = np.zeros(300)
    while (is_quiet := np.maximum(up, down) <= threshold).any():
        z = rng.standard_normal(300)
        up = np.where(is_quiet, np.maximum(0.0, up + z - 0.5), up)
        down = np.where(is_quiet, np.maximum(0.0, down - z - 0.5), down)
        lengths += is_quiet
    assert lengths.mean() == pytest.approx(500.0, rel=1 / 3)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"step_sigmas": 0.0}, "step_sigmas must be above 0, got 0.0"),
        ({"samples_between_false_alarms": 1.0}, "must be above 1, got 1.0"),
        ({"warm_up_samples": 1}, r"at least 2 and at most memory_samples \(1000\), got 1"),
        ({"warm_up_samples": 9000}, r"memory_samples \(1000\), got 9000"),
    ],
)
def test_config_that_cannot_be_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        DetectorConfig(**fields)
