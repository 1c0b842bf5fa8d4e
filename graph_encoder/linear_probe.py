"""What a linear map can read out of vectors: ridge regression, its strength by cross-validation.

Solved in the samples' space, so that vectors may have far more numbers than there are samples.

Does not know: where the vectors come from.
Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..env.state.feature import FloatArray

STRENGTHS: FloatArray = 10.0 ** np.arange(-5.0, 3.1, 0.5)
"""Ridge strengths that are tried, per number of the vector."""
# Standardised values beyond so many spreads of the training samples count as so many.
_CLIP = 8.0
# Spread below which a number is constant and left out.
_CONSTANT = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """How well a target could be read from vectors.

    Shapes: `predicted`, `actual` [test samples].
    """

    num_inputs: int
    strength: float
    predicted: FloatArray
    actual: FloatArray

    @property
    def r2(self) -> float:
        """Share of the test samples' variance that is foretold; 1 is perfect, 0 is the mean."""
        return r2_score(self.predicted, self.actual)

    def auc(self, threshold: float) -> float:
        """Probability that a sample above the threshold is foretold above one that is not."""
        return auc_score(self.predicted, self.actual > threshold)


def fit_probe(
    vectors: NDArray[np.floating],
    targets: FloatArray,
    groups: NDArray[np.int64],
    *,
    is_test: NDArray[np.bool_],
    num_folds: int = 4,
) -> Probe:
    """Fit on the samples that are no test samples, and predict those that are.

    Shapes: `vectors` [samples, numbers]; `targets`, `groups`, `is_test` [samples]. Samples of one
    group, a run say, are never split between fitting and choosing the strength.

    Raises:
        ValueError: the training samples have fewer groups than folds.
    """
    train = np.flatnonzero(~is_test)
    if len(np.unique(groups[train])) < num_folds:
        found = len(np.unique(groups[train]))
        msg = f"training samples must have at least {num_folds} groups, got {found}"
        raise ValueError(msg)
    inputs = _standardised(vectors, train)
    kernel = inputs @ inputs.T / max(inputs.shape[1], 1)
    strength = _best_strength(kernel, targets, groups, train, num_folds)
    mean = targets[train].mean()
    ridge = kernel[np.ix_(train, train)] + strength * np.eye(len(train))
    weights = np.linalg.solve(ridge, targets[train] - mean)
    predicted = kernel[np.ix_(np.flatnonzero(is_test), train)] @ weights + mean
    return Probe(
        num_inputs=inputs.shape[1],
        strength=strength,
        predicted=predicted,
        actual=targets[is_test],
    )


def _standardised(vectors: NDArray[np.floating], train: NDArray[np.int64]) -> FloatArray:
    mean = vectors[train].mean(axis=0, dtype=np.float64)
    spread = vectors[train].std(axis=0, dtype=np.float64)
    varies = spread > _CONSTANT
    near = (vectors[:, varies] - mean[varies]) / spread[varies]
    return np.clip(near, -_CLIP, _CLIP)


def _best_strength(
    kernel: FloatArray,
    targets: FloatArray,
    groups: NDArray[np.int64],
    train: NDArray[np.int64],
    num_folds: int,
) -> float:
    errors = np.zeros(len(STRENGTHS))
    for fold in np.array_split(np.unique(groups[train]), num_folds):
        is_held = np.isin(groups[train], fold)
        fit, held = train[~is_held], train[is_held]
        values, vectors = np.linalg.eigh(kernel[np.ix_(fit, fit)])
        mean = targets[fit].mean()
        projected = vectors.T @ (targets[fit] - mean)
        across = kernel[np.ix_(held, fit)] @ vectors
        for i, strength in enumerate(STRENGTHS):
            missed = across @ (projected / (values + strength)) + mean - targets[held]
            errors[i] += (missed**2).sum()
    return float(STRENGTHS[errors.argmin()])


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
