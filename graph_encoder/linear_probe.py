"""What a linear map can read out of vectors: ridge regression, its strength by cross-validation.

Solved in the samples' space, so that vectors may have far more numbers than there are samples.

Does not know: where the vectors come from.
Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..env.state.feature import FloatArray

STRENGTHS: FloatArray = 10.0 ** np.arange(-5.0, 3.1, 0.5)
"""Ridge strengths that are tried, per number of the vector."""
NUM_RESAMPLES = 2000
"""Of a bootstrap."""
# Standardised values beyond so many spreads of the fitted samples count as so many.
_CLIP = 8.0
# Spread below which a number is constant and left out.
_CONSTANT = 1e-6
# Columns that are standardised at a time.
_BLOCK = 16_384


class LinearProbe:
    """Ridge regressions from the same vectors to any number of targets.

    Shapes (N samples, D numbers): `vectors` [N, D]; `groups`, `is_fit` [N]. Samples of one group,
    a run say, are never split between fitting and choosing the strength.

    Raises:
        ValueError: the samples to fit on have fewer groups than folds.
    """

    def __init__(
        self,
        vectors: NDArray[np.floating],
        groups: NDArray[np.int64],
        *,
        is_fit: NDArray[np.bool_],
        num_folds: int = 4,
    ) -> None:
        found = np.unique(groups[is_fit])
        if len(found) < num_folds:
            msg = f"samples to fit on must have at least {num_folds} groups, got {len(found)}"
            raise ValueError(msg)
        self._fit = np.flatnonzero(is_fit)
        kernel, self.num_inputs = kernel_of(vectors, is_fit)
        self._whole = _Ridge(kernel, self._fit, np.arange(len(vectors)))
        self._folds = [
            _Ridge(kernel, self._fit[~held], self._fit[held])
            for held in (
                np.isin(groups[self._fit], fold) for fold in np.array_split(found, num_folds)
            )
        ]

    def predict(self, targets: FloatArray) -> FloatArray:
        """Return what is read off all samples, fitted on those to fit on.

        Shapes (T targets): [N, T] -> [N, T].
        """
        errors = np.zeros((len(STRENGTHS), targets.shape[1]))
        for fold in self._folds:
            for i, read in enumerate(fold.by_strength(targets)):
                errors[i] += ((read - targets[fold.held]) ** 2).sum(axis=0)
        best = errors.argmin(axis=0)
        predicted = np.empty(targets.shape)
        for i, read in enumerate(self._whole.by_strength(targets)):
            predicted[:, best == i] = read[:, best == i]
        return predicted


class _Ridge:
    """Regressions fitted on some samples and read off others, at every strength."""

    def __init__(self, kernel: FloatArray, fit: NDArray[np.int64], held: NDArray[np.int64]) -> None:
        self.fit, self.held = fit, held
        self._values, self._vectors = np.linalg.eigh(kernel[np.ix_(fit, fit)])
        self._across = kernel[np.ix_(held, fit)] @ self._vectors

    def by_strength(self, targets: FloatArray) -> Iterator[FloatArray]:
        """Yield what is read off the held samples at each strength, [held, T]."""
        mean = targets[self.fit].mean(axis=0)
        projected = self._vectors.T @ (targets[self.fit] - mean)
        for strength in STRENGTHS:
            yield self._across @ (projected / (self._values + strength)[:, None]) + mean


def kernel_of(vectors: NDArray[np.floating], is_fit: NDArray[np.bool_]) -> tuple[FloatArray, int]:
    """Return products of standardised vectors over their length, [N, N], and that length.

    Numbers that do not vary over the samples to fit on are left out.
    """
    kernel = np.zeros((len(vectors), len(vectors)))
    num_inputs = 0
    for begin in range(0, vectors.shape[1], _BLOCK):
        block = vectors[:, begin : begin + _BLOCK].astype(np.float32)
        fitted = block[is_fit]
        mean, spread = fitted.mean(axis=0), fitted.std(axis=0)
        varies = spread > _CONSTANT * np.maximum(1.0, np.abs(mean))
        near = (block[:, varies] - mean[varies]) / spread[varies]
        np.clip(near, -_CLIP, _CLIP, out=near)
        kernel += near @ near.T
        num_inputs += near.shape[1]
    return kernel / max(num_inputs, 1), num_inputs


def r2_score(predicted: FloatArray, actual: FloatArray) -> float:
    """Return the coefficient of determination; NaN if the actual values do not vary."""
    total = ((actual - actual.mean()) ** 2).sum()
    return float(1.0 - ((predicted - actual) ** 2).sum() / total) if total > 0 else float("nan")


def auc_score(predicted: FloatArray, is_positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, ties counted half; NaN without both kinds."""
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    least = num_positive * (num_positive + 1) / 2.0
    return float((ranks[is_positive].sum() - least) / (num_positive * num_negative))


def bootstrap_interval(
    groups: NDArray[np.int64],
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % interval of a statistic of sample indices, whole groups drawn again.

    Raises:
        ValueError: there are fewer than two groups.
    """
    names = np.unique(groups)
    if len(names) < 2:
        msg = f"a bootstrap needs at least 2 groups, got {len(names)}"
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == name) for name in names]
    found = [
        statistic(np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))]))
        for _ in range(num_resamples)
    ]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)
