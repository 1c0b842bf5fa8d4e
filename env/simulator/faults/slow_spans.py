"""Slow-downs that are given, beside those that are drawn: constant ones and ones of known spans.

Does not know: why a replica is slow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..layout import SLOWDOWN_DTYPE
from .processes import FaultSpan, Steps, multiply_steps, product_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowSpan:
    """A slow-down of one replica from one moment to another.

    Raises:
        ValueError: the span is empty, the replica below 0, or the factor not above 0.
    """

    start_s: float
    end_s: float
    replica: int
    factor: float
    """On iteration time."""

    def __post_init__(self) -> None:
        is_span = 0.0 <= self.start_s < self.end_s < np.inf
        if not is_span or self.replica < 0 or not 0.0 < self.factor < np.inf:
            msg = f"a slow span must be of a replica, a span and a factor above 0, got {self}"
            raise ValueError(msg)


def with_slow_spans(
    table: np.ndarray, spans: Sequence[SlowSpan], factors: np.ndarray
) -> np.ndarray:
    """Return a table of slow-downs with given ones multiplied in.

    Shapes: `table` SLOWDOWN_DTYPE [R, K], padded with infinity; `factors` float64 [R], constant.

    Raises:
        ValueError: a span is of a replica that is not there.
    """
    if not spans and (factors == 1.0).all():
        return table
    for span in spans:
        if span.replica >= len(table):
            msg = f"a slow span is of replica {span.replica}, but there are {len(table)}"
            raise ValueError(msg)
    rows = [
        _row_steps(row, [one for one in spans if one.replica == r], float(factors[r]))
        for r, row in enumerate(table)
    ]
    wider = np.zeros((len(rows), max(map(len, rows)) + 1), dtype=SLOWDOWN_DTYPE)
    wider["at_s"] = np.inf
    wider["factor"] = 1.0
    for target, steps in zip(wider, rows, strict=True):
        target[: len(steps)] = np.array(steps, dtype=SLOWDOWN_DTYPE)
    return wider


def _row_steps(row: np.ndarray, spans: Sequence[SlowSpan], factor: float) -> Steps:
    drawn: Steps = [(float(each["at_s"]), float(each["factor"])) for each in row]
    given = product_steps([FaultSpan(one.start_s, one.end_s, one.factor) for one in spans])
    constant: Steps = [(0.0, factor)] if factor != 1.0 else []
    return multiply_steps([[step for step in drawn if step[0] < np.inf], given, constant])
