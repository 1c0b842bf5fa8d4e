"""How sure a choice was: its lead over the runner-up, against how wrong predictions have been.

Does not know: how either is logged.
"""

import math

import numpy as np

from ...env.dispatch import TERM_NAMES
from ..dispatcher.decision_ring import DecisionRecord
from ..dispatcher.request import Placement

# Error that is assumed before any was seen, of a prediction; and the requests that it counts for.
_FIRST_ERROR_FRAC, _FIRST_COUNT = 0.2, 20.0
# Requests over which the error is averaged in the long run.
_MEMORY = 1000.0
# Cost below which two replicas are alike whatever was predicted: TTFT limits, or goodput.
_LEAST_SCALE = 0.01
# The difference of two errors of mean size 1 (normal: deviation 1.2533 each) has a deviation of
# 1.7725; a logistic of that deviation has this scale.
_SCALE_PER_ERROR = 1.7725 * math.sqrt(3.0) / math.pi
_TTFT_TERM = TERM_NAMES.index("predicted_ttft")


class PredictionError:
    """Mean of |TTFT - predicted| / predicted over the newest requests whose first token was seen.

    One thread notes, any may read.
    """

    def __init__(self) -> None:
        self.frac = _FIRST_ERROR_FRAC
        self._count = _FIRST_COUNT

    def note(self, placement: Placement) -> None:
        """Take a request that has ended."""
        ttft_s = placement.first_token_at_s - placement.placed_at_s
        predicted_s = placement.predicted_ttft_s
        if not (ttft_s >= 0.0 and predicted_s > 0.0):
            return
        self._count = min(_MEMORY, self._count + 1.0)
        error_frac = min(10.0, abs(ttft_s - predicted_s) / predicted_s)
        self.frac += (error_frac - self.frac) / self._count


def confidence(record: DecisionRecord, error_frac: float = _FIRST_ERROR_FRAC) -> float:
    """Return the probability that the choice was truly the cheaper of the best two, [0.5, 1].

    What the predictions of both may be wrong by is `error_frac` of the choice's predicted TTFT,
    independently; all other terms are known. By worth, an error of a TTFT is one of a chance, which
    falls from 1 to 0 over `value_ramp` limits. A choice without a rival has 1.
    """
    usable = record.is_usable
    costs = np.where(usable, record.costs, np.inf)
    order = np.argsort(costs, kind="stable")
    if usable.sum() < 2:
        return 1.0
    lead = float(costs[order[1]] - costs[order[0]])
    error = error_frac * abs(float(record.terms[order[0], _TTFT_TERM]))
    if record.is_by_worth:
        error = min(1.0, error / record.knobs["value_ramp"])
    scale = max(_LEAST_SCALE, _SCALE_PER_ERROR * error)
    return 1.0 / (1.0 + math.exp(-min(50.0, lead / scale)))
