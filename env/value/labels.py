"""Labels: what candidates are worth by rollouts, beside the features that the network sees.

Does not know: how they are learned from.
"""

from dataclasses import dataclass

import numpy as np

from ..lookahead.settings import MAX_CANDIDATES, MAX_SAMPLES, Judge
from .features import NUM_FEATURES

LABEL_DTYPE = np.dtype(
    [
        ("features", np.float32, (NUM_FEATURES,)),
        ("own", np.float32),  # chance of the request, over its weight
        ("others", np.float32),  # what the others gain, over its weight
        ("request", np.int32),
        ("replica", np.int32),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings:
    """How labels are collected in a run.

    Raises:
        ValueError: a value is outside its range.
    """

    behaviour: Judge = Judge.ROLLOUTS
    """By what requests are placed meanwhile."""
    every: int = 4
    """Decisions of which one is labelled."""
    num_candidates: int = 6
    """Candidates of a decision, and rows of it."""
    num_samples: int = 8
    """Rollouts of a label."""
    most_labels: int = 100_000
    """No more are kept in a run."""

    def __post_init__(self) -> None:
        bounds = {
            "every": (1, 1_000_000),
            "num_candidates": (1, MAX_CANDIDATES),
            "num_samples": (1, MAX_SAMPLES),
            "most_labels": (1, 10_000_000),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                msg = f"{name} must be from {low} to {high}, got {getattr(self, name)}"
                raise ValueError(msg)
