"""How unlike the states of training a state is: a score, 1 at the edge of what was seen.

A state's observation is reduced to means, spreads and quantiles over its nodes, which mean the same
in fleets of any size. The score is the larger of two: how far single numbers leave the range that
they had in training, and the Mahalanobis distance, which finds combinations that never occurred.
Both are in units of what states of training held out of the fit reach at a high quantile.

Fit it at all loads that a policy is meant for: half of the only load of training is novel, too.

Does not know: what a policy does in a state, or what follows from a score (`fallback.py`).
Source: Mahalanobis distance with a shrunken covariance as in Lee et al., NeurIPS 2018 (arXiv
1807.03888); Ledoit and Wolf 2004 for the shrinkage.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ...env.observation import OBSERVED, Observation, ObservationLayout, observe
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import FloatArray, Node

_NODES = (Node.REPLICA, Node.GPU, Node.SERVER, Node.TENANT)
_QUANTILES = (0.1, 0.9)
_PARTS = ("mean", "spread", *(f"q{100 * q:.0f}" for q in _QUANTILES))
# What grows with the fleet is left out: it says nothing of how a fleet of another size fares.
_COLUMNS = {
    node: np.array([i for i, f in enumerate(OBSERVED[node]) if f.name != "arrival_rate_rps"])
    for node in _NODES
}
SUMMARY_NAMES: tuple[str, ...] = (
    *(
        f"{node}.{OBSERVED[node][i].name}.{part}"
        for node in _NODES
        for part in _PARTS
        for i in _COLUMNS[node]
    ),
    *(f"fleet.{f.name}" for f in OBSERVED[Node.FLEET]),
)
"""What each number of a summary is."""

# Observations lie near [-1, 1]; a change smaller than this is never what makes a state novel.
_FLOOR = 0.1
# Share of the covariance that is taken to be without correlations.
_SHRINKAGE = 0.1
# Shares of the training states below and above which a number is out of its range.
_RANGE_QUANTILES = (0.005, 0.995)
# Least number of states that ranges and a quantile can be taken from.
_LEAST_STATES = 20


def _node_summary(features: FloatArray) -> FloatArray:
    """Return means, spreads and quantiles over nodes, [4 x F]; zeros if there is no node."""
    if features.shape[0] == 0:
        return np.zeros(len(_PARTS) * features.shape[1])
    num = features.shape[0]
    # Values that occur, none in between: a fleet repeated has the quantiles of the one it repeats.
    places = [math.ceil(share * num) - 1 for share in _QUANTILES]
    quantiles = np.partition(features, places, axis=0)[places]
    return np.concatenate([features.mean(axis=0), features.std(axis=0), quantiles.ravel()])


def summarise(observation: Observation) -> FloatArray:
    """Return the summary of an observation, [len(SUMMARY_NAMES)], NaN if a number of it is none.

    The last action is left out: it is the policy's own.
    """
    if not all(np.isfinite(observation[str(node)]).all() for node in (*_NODES, Node.FLEET)):
        return np.full(len(SUMMARY_NAMES), np.nan)
    parts = []
    for node in _NODES:
        is_there = observation[f"{node}_mask"] > 0.0
        features = observation[str(node)].reshape(is_there.size, -1)[is_there]
        parts.append(_node_summary(features[:, _COLUMNS[node]].astype(np.float64)))
    return np.concatenate([*parts, observation["fleet"].astype(np.float64)])


def observation_of(state: ClusterState) -> Observation:
    """Return the observation of a state in a layout of its own size, with no last action."""
    num = {node: max(1, state.age_s[node].size) for node in _NODES}
    layout = ObservationLayout(
        max_replicas=num[Node.REPLICA],
        max_gpus=num[Node.GPU],
        max_servers=num[Node.SERVER],
        max_tenants=num[Node.TENANT],
    )
    return observe(state, np.zeros(layout.action_size, np.float32), layout)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoveltyModel:
    """What the states of training were like; `fit_novelty` makes it.

    Shapes: S = len(SUMMARY_NAMES); `mean`, `low`, `high` [S], `whitening` [S, S], `units` [2].
    """

    mean: FloatArray
    whitening: FloatArray
    """Turns a difference from the mean into independent numbers of spread 1."""
    low: FloatArray
    high: FloatArray
    """Range of each number in training."""
    units: FloatArray
    """Excess over the ranges and distance that count as 1."""

    def __post_init__(self) -> None:
        size = len(SUMMARY_NAMES)
        shapes = {"mean": (size,), "whitening": (size, size), "low": (size,), "high": (size,)}
        for name, shape in {**shapes, "units": (2,)}.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                msg = (
                    f"novelty array '{name}' must be finite numbers of shape {shape}, got shape "
                    f"{array.shape}; fit it anew with this Trimtab"
                )
                raise ValueError(msg)

    def score(self, observation: Observation) -> float:
        """Return how unlike training an observation is: 0 or more, infinite if it is no number."""
        return float(self.scores(summarise(observation)[None])[0])

    def score_state(self, state: ClusterState) -> float:
        """Return how unlike training a state is."""
        return self.score(observation_of(state))

    def scores(self, summaries: FloatArray) -> FloatArray:
        """Return the scores of summaries; [n, S] to [n]."""
        is_finite = np.asarray(np.isfinite(summaries).all(axis=1))
        known = np.where(is_finite[:, None], summaries, 0.0)
        parts = _parts(known, self.mean, self.whitening, self.low, self.high)
        return np.where(is_finite, (parts / self.units).max(axis=1), np.inf)

    def furthest(self, observation: Observation, num: int = 3) -> dict[str, float]:
        """Return the numbers of a summary that are furthest out of their range, by name.

        Values are in widths of the range; what is within it is not named.
        """
        excess = _excess(summarise(observation)[None], self.low, self.high)[0]
        order = np.argsort(-np.nan_to_num(excess, nan=np.inf))[:num]
        return {SUMMARY_NAMES[i]: float(excess[i]) for i in order if not excess[i] <= 0.0}

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return what it is made of, to be stored with a policy."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> "NoveltyModel":
        """Return the model that `as_arrays` was called on.

        Raises:
            ValueError: an array is missing, not finite, or of another shape.
        """
        missing = [item.name for item in fields(cls) if item.name not in arrays]
        if missing:
            msg = f"novelty arrays lack {missing}; got {sorted(arrays)}"
            raise ValueError(msg)
        return cls(**{item.name: np.asarray(arrays[item.name], float) for item in fields(cls)})


def _excess(summaries: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return how far each number is out of its range, in widths of it; [n, S]."""
    beyond = np.maximum(np.maximum(low - summaries, summaries - high), 0.0)
    excess: FloatArray = beyond / (high - low + _FLOOR)
    return excess


def _parts(
    summaries: FloatArray,
    mean: FloatArray,
    whitening: FloatArray,
    low: FloatArray,
    high: FloatArray,
) -> FloatArray:
    """Return the largest excess over a range and the distance from the mean; [n, 2]."""
    distance = np.linalg.norm((summaries - mean) @ whitening.T, axis=1) / np.sqrt(mean.size)
    return np.stack([_excess(summaries, low, high).max(axis=1), distance], axis=1)


def fit_novelty(
    seen: Sequence[Observation], held_out: Sequence[Observation], *, quantile: float = 0.995
) -> NoveltyModel:
    """Return the model of some states; a share `1 - quantile` of those held out scores above 1.

    Hold out whole workloads: neighbouring windows of one are too alike to show what is new.

    Raises:
        ValueError: there are too few states, one is not finite, or the quantile is out of (0, 1).
    """
    if not 0.0 < quantile < 1.0:
        msg = f"quantile must be in (0, 1), got {quantile}"
        raise ValueError(msg)
    if min(len(seen), len(held_out)) < _LEAST_STATES:
        msg = (
            f"novelty needs at least {_LEAST_STATES} states seen and as many held out, got "
            f"{len(seen)} and {len(held_out)}; collect more windows"
        )
        raise ValueError(msg)
    fitted, checked = (np.stack([summarise(o) for o in group]) for group in (seen, held_out))
    if not (np.isfinite(fitted).all() and np.isfinite(checked).all()):
        msg = "observations of training must be finite; make them with env.observation.observe"
        raise ValueError(msg)
    mean = fitted.mean(axis=0)
    covariance = np.cov(fitted, rowvar=False)
    spread = np.diag(np.diag(covariance)) + _FLOOR**2 * np.eye(mean.size)
    covariance = (
        (1.0 - _SHRINKAGE) * covariance + _SHRINKAGE * spread + _FLOOR**2 * np.eye(mean.size)
    )
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    low, high = np.quantile(fitted, _RANGE_QUANTILES, axis=0)
    parts = _parts(checked, mean, whitening, low, high)
    units = np.maximum(np.quantile(parts, quantile, axis=0), _FLOOR)
    # Each part alone leaves that share above 1; the larger of both leaves more.
    units *= np.quantile((parts / units).max(axis=1), quantile)
    return NoveltyModel(mean=mean, whitening=whitening, low=low, high=high, units=units)
