"""Successive halving: the best of many candidates, found on few workloads.

Does not know: what a candidate is, or how it is judged.
Source: Jamieson and Talwalkar, "Non-stochastic best arm identification" (2016).
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..env.knobs import Knobs
from ..env.state.feature import FloatArray

JudgeOn = Callable[[Sequence[Knobs], Sequence[int]], FloatArray]
"""Returns the goodput of candidates on numbered workloads, [candidates, workloads]."""

ROUNDS = (2, 3, 4)
"""Further workloads that a round plays."""


def try_vectors(
    candidates: Sequence[Knobs],
    judge: JudgeOn,
    *,
    rounds: Sequence[int] = ROUNDS,
    on_round: Callable[[float], None] = lambda goodput: None,
) -> tuple[int, float]:
    """Return which candidate is best, and its mean goodput: the better third of a round stays.

    A round plays those that are left on so many further workloads; what they did in earlier rounds
    counts on. Of equals the earlier candidate wins. `on_round` is called after each with the
    goodput of the best.

    Raises:
        ValueError: there is no candidate, or no round.
    """
    if not candidates or not rounds:
        msg = f"need candidates and rounds, got {len(candidates)} and {len(rounds)}"
        raise ValueError(msg)
    left = list(range(len(candidates)))
    met = np.empty((len(candidates), 0))  # [left, workloads]
    for num_workloads in rounds:
        first = met.shape[1]
        numbers = range(first, first + num_workloads)
        met = np.hstack([met, judge([candidates[i] for i in left], numbers)])
        order = np.argsort(-met.mean(axis=1), kind="stable")[: -(-len(left) // 3)]
        left, met = [left[i] for i in order], met[order]
        on_round(float(met[0].mean()))
    return left[0], float(met[0].mean())
