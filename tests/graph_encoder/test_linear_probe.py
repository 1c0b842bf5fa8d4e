"""The linear probe against answers that are known by hand or by construction."""

import numpy as np
import pytest

from trimtab.graph_encoder.linear_probe import (
    LinearProbe,
    auc_score,
    bootstrap_interval,
    kernel_of,
    r2_score,
)


def make_linear(num_samples: int, num_inputs: int, noise: float, seed: int = 0):
    """Return vectors, two targets that are linear in them, and runs of ten samples each."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((num_samples, num_inputs)).astype(np.float32)
    targets = vectors @ rng.standard_normal((num_inputs, 2))
    targets += noise * rng.standard_normal(targets.shape)
    return vectors, targets, np.arange(num_samples) // 10


def test_reads_a_linear_target_exactly() -> None:
    vectors, targets, runs = make_linear(200, 6, noise=0.0)
    is_fit = runs < 14
    predicted = LinearProbe(vectors, runs, is_fit=is_fit).predict(targets)
    assert predicted[~is_fit] == pytest.approx(targets[~is_fit], abs=1e-2)


def test_is_ridge_regression_of_standardised_vectors() -> None:
    vectors, targets, runs = make_linear(80, 5, noise=2.0)
    is_fit = runs < 6
    probe = LinearProbe(vectors, runs, is_fit=is_fit)
    predicted = probe.predict(targets[:, :1])[:, 0]
    fitted = vectors[is_fit]
    near = (vectors - fitted.mean(axis=0)) / fitted.std(axis=0)
    mean = targets[is_fit, 0].mean()
    # the same solution in the numbers' space, at one of the strengths
    answers = []
    for strength in 10.0 ** np.arange(-5.0, 3.1, 0.5):
        gram = near[is_fit].T @ near[is_fit] + 5 * strength * np.eye(5)
        weights = np.linalg.solve(gram, near[is_fit].T @ (targets[is_fit, 0] - mean))
        answers.append(np.abs(near @ weights + mean - predicted).max())
    assert min(answers) < 1e-4


def test_noise_is_not_learned_from_more_numbers_than_samples() -> None:
    rng = np.random.default_rng(1)
    vectors, runs = rng.standard_normal((120, 3000)), np.arange(120) // 10
    targets = rng.standard_normal((120, 1))
    is_fit = runs < 8
    predicted = LinearProbe(vectors, runs, is_fit=is_fit).predict(targets)
    assert abs(r2_score(predicted[~is_fit, 0], targets[~is_fit, 0])) < 0.15


def test_test_samples_do_not_move_the_fit() -> None:
    vectors, targets, runs = make_linear(120, 8, noise=1.0)
    is_fit = runs < 8
    expected = LinearProbe(vectors, runs, is_fit=is_fit).predict(targets)
    changed = targets.copy()
    changed[~is_fit] = 1e6
    found = LinearProbe(vectors, runs, is_fit=is_fit).predict(changed)
    assert np.array_equal(found, expected)


def test_constant_numbers_are_left_out() -> None:
    vectors = np.column_stack([np.arange(20.0), np.full(20, 1e4), np.zeros(20)])
    _, num_inputs = kernel_of(vectors, np.ones(20, dtype=bool))
    assert num_inputs == 1


def test_kernel_does_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _, runs = make_linear(40, 30, noise=0.0)
    expected, _ = kernel_of(vectors, runs < 3)
    monkeypatch.setattr("trimtab.graph_encoder.linear_probe._BLOCK", 7)
    found, _ = kernel_of(vectors, runs < 3)
    assert found == pytest.approx(expected, abs=1e-5)


def test_too_few_runs_are_refused() -> None:
    vectors, _, runs = make_linear(30, 3, noise=0.0)
    with pytest.raises(ValueError, match="at least 4 groups, got 3"):
        LinearProbe(vectors, runs, is_fit=np.ones(30, dtype=bool))


@pytest.mark.parametrize(
    ("predicted", "expected"), [([1.0, 2.0, 3.0], 1.0), ([2.0, 2.0, 2.0], 0.0), ([3, 2, 1], -3.0)]
)
def test_r2(predicted: list[float], expected: float) -> None:
    assert r2_score(np.array(predicted), np.array([1.0, 2.0, 3.0])) == pytest.approx(expected)


def test_r2_of_a_constant_is_unknown() -> None:
    assert np.isnan(r2_score(np.zeros(3), np.ones(3)))


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [([0.1, 0.2, 0.8, 0.9], 1.0), ([0.9, 0.8, 0.2, 0.1], 0.0), ([0.5] * 4, 0.5),
     ([0.1, 0.6, 0.4, 0.9], 0.75)],
)  # fmt: skip
def test_auc(predicted: list[float], expected: float) -> None:
    found = auc_score(np.array(predicted), np.array([False, False, True, True]))
    assert found == pytest.approx(expected)


def test_bootstrap_draws_whole_runs() -> None:
    runs = np.repeat([0, 1, 2, 3], 5)
    values = runs.astype(float)
    low, high = bootstrap_interval(runs, lambda rows: float(values[rows].mean()))
    assert 0.0 <= low < 1.0 < 2.0 < high <= 3.0
    again = bootstrap_interval(runs, lambda rows: float(values[rows].mean()))
    assert (low, high) == again
    sizes = []
    bootstrap_interval(runs, lambda rows: sizes.append(len(rows)) or 0.0, num_resamples=5)
    assert set(sizes) == {20}


def test_bootstrap_of_one_run_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        bootstrap_interval(np.zeros(5, dtype=np.int64), lambda rows: 0.0)
