"""Settings of the lookahead scheduler.

Does not know: how a rollout runs.
Source: the defaults are those that held on 20 unseen sites of the project's headroom study.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ..compiled import inlined

MAX_SAMPLES = 8
"""Most remaining lengths that are sampled for a request."""
MAX_CANDIDATES = 64
"""Most replicas that are looked at for a request."""
NETWORK_CANDIDATES = 8
"""Replicas that the value network looks at, unless it is told."""


class Judge(IntEnum):
    """By what candidates are judged."""

    ROLLOUTS = 0
    NETWORK = 1
    COST = 2  # the scorer's cheapest is taken, for labels of what it would do


_NETWORK = int(Judge.NETWORK)
LOOKAHEAD_DTYPE = np.dtype(
    [
        ("judge", np.int64),
        ("label_every", np.int64),  # decisions; 0: no labels
        ("num_candidates", np.int64),  # 0: the lookahead is off
        ("num_samples", np.int64),
        ("cache_s", np.float64),
        ("seed", np.uint64),
        ("sees_all", np.int64),
        # Counts since the start.
        ("num_decisions", np.int64),
        ("num_rollouts", np.int64),
        ("num_cached", np.int64),  # rollouts that a remembered result spared
        ("num_labels", np.int64),
        # What came of the last.
        ("num_chosen", np.int64),  # rows of its candidates
        ("is_found", np.int64),
        ("is_worth", np.int64),
        ("chosen", np.int64),
    ]
)


@inlined
def is_by_worth(ahead, knobs):
    """Whether requests are placed by worth, and not by cost."""
    is_asked = knobs.value_weight > 0.0 or ahead.judge != _NETWORK or ahead.label_every > 0
    return ahead.num_candidates > 0 and is_asked


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadSettings:
    """How far and how often to look ahead; margin and prices are knobs, which a policy may move.

    Raises:
        ValueError: a value is outside its range.
    """

    num_candidates: int = 4
    """Replicas looked at: the cheapest by the analytic scorer."""
    num_samples: int = 3
    """Remaining lengths drawn for each request; the worth is the mean over them."""
    cache_s: float = 0.02
    """How long the outcome without a request stays good while its replica's requests stay."""
    seed: int = 0
    """Of the lengths drawn."""
    sees_all: bool = False
    """Uses what no gateway knows, as a bound: true lengths, coefficients and slow-downs."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_candidates", 1, MAX_CANDIDATES),
            ("num_samples", 1, MAX_SAMPLES),
        ):
            if not low <= getattr(self, name) <= high:
                msg = f"{name} must be from {low} to {high}, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("cache_s", "seed"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)

    def record(self) -> np.ndarray:
        """Return the settings for the compiled functions, LOOKAHEAD_DTYPE [1]."""
        record = np.zeros(1, dtype=LOOKAHEAD_DTYPE)
        for name in ("num_candidates", "num_samples", "cache_s", "seed", "sees_all"):
            record[name] = getattr(self, name)
        return record


def no_lookahead() -> np.ndarray:
    """Return the record of a lookahead that is off, LOOKAHEAD_DTYPE [1]."""
    return np.zeros(1, dtype=LOOKAHEAD_DTYPE)
