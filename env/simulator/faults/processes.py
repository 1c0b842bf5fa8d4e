"""Random processes in time: spans, steps, wandering, bursts, and draws from quantiles.

Does not know: what goes wrong, or where.
"""

from typing import NamedTuple

import numpy as np


class FaultSpan(NamedTuple):
    """Something that lasts from one moment to another, with a size."""

    start_s: float
    end_s: float
    value: float


Steps = list[tuple[float, float]]
"""Moments in order, each with the value from then on."""


def draw_spans(
    rng: np.random.Generator,
    per_hour: float,
    horizon_s: float,
    span_s: tuple[float, float],
    value: tuple[float, float] = (1.0, 1.0),
) -> list[FaultSpan]:
    """Return spans that begin as a Poisson process, lengths and values uniform in their ranges."""
    count = rng.poisson(per_hour * horizon_s / 3600.0)
    starts = rng.uniform(0.0, horizon_s, count)
    ends = starts + rng.uniform(*span_s, count)
    values = rng.uniform(*value, count)
    return [FaultSpan(*map(float, row)) for row in zip(starts, ends, values, strict=True)]


def product_steps(spans: list[FaultSpan]) -> Steps:
    """Turn overlapping spans into steps of the product of their values; 1 outside of them."""
    moments = sorted({edge for start, end, _ in spans for edge in (start, end)})
    return [
        (at_s, float(np.prod([v for start, end, v in spans if start <= at_s < end])))
        for at_s in moments
    ]


def multiply_steps(steps: list[Steps]) -> Steps:
    """Return the product of step functions that are 1 before their first moment."""
    steps = [each for each in steps if each]
    if len(steps) < 2:
        return steps[0] if steps else []
    moments = np.unique([at_s for each in steps for at_s, _ in each])
    product = np.ones(moments.size)
    for each in steps:
        at_s, values = np.array(each).T
        product *= np.append(1.0, values)[np.searchsorted(at_s, moments, side="right")]
    return list(zip(moments.tolist(), product.tolist(), strict=True))


def wander(
    rng: np.random.Generator, sigma: float, *, relax_s: float, step_s: float, horizon_s: float
) -> np.ndarray:
    """Return an Ornstein-Uhlenbeck process around 0 at every step, stationary from the start."""
    shocks = rng.normal(size=int(np.ceil(horizon_s / step_s)))
    keep = np.exp(-step_s / relax_s)
    values = np.empty(shocks.size)
    value = shocks[0] if shocks.size else 0.0
    for i, shock in enumerate(shocks):
        value = value if i == 0 else keep * value + np.sqrt(1.0 - keep * keep) * shock
        values[i] = value
    return sigma * values


def draw_quantiles(
    rng: np.random.Generator, quantiles: tuple[float, ...], count: int
) -> np.ndarray:
    """Return draws from a distribution given by quantiles at even probabilities, log-linear."""
    probabilities = np.linspace(0.0, 1.0, len(quantiles))
    return np.exp(np.interp(rng.random(count), probabilities, np.log(quantiles)))


def draw_bursts(
    rng: np.random.Generator, rate_per_s: float, horizon_s: float, *, frac: float, gap_s: float
) -> np.ndarray:
    """Return moments in order: bursts begin as a Poisson process; sizes are geometric.

    `rate_per_s` counts every moment, so that bursts do not raise it.
    """
    starts = rng.uniform(0.0, horizon_s, rng.poisson(rate_per_s * (1.0 - frac) * horizon_s))
    sizes = rng.geometric(1.0 - frac, starts.size)
    moments = [
        start + np.append(0.0, np.cumsum(rng.exponential(gap_s, size - 1)))
        for start, size in zip(starts, sizes, strict=True)
    ]
    drawn = np.sort(np.concatenate([np.zeros(0), *moments]))
    return drawn[drawn < horizon_s]


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of spans, in order; spans that touch become one."""
    union: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union
