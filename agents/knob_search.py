"""Search for knobs: CMA-ES over some of them, from a known setting.

Does not know: how a setting is judged, or what it is for.
Source: CMA-ES (Hansen), package `cmaes`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cmaes import CMA

from ..env.knobs import KNOB_SPECS, SCORER_KNOBS, VALUE_KNOBS, WORTH_KNOBS, Knobs
from ..env.state.feature import FloatArray

Judge = Callable[[Sequence[Knobs]], FloatArray]
"""Returns how good each candidate of a generation is, [candidates]; more is better."""
Progress = Callable[[float], None]
"""Called after each generation with the goodput share of its best candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBudget:
    """How long a search goes on."""

    num_generations: int = 40
    population: int = 14
    """Candidates in a generation."""
    step_size: float = 0.3
    """Initial standard deviation, in twice the residual scales of the knobs."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_generations < 1:
            msg = f"num_generations must be at least 1, got {self.num_generations}"
            raise ValueError(msg)
        if self.population < 4:
            msg = f"population must be at least 4, got {self.population}"
            raise ValueError(msg)


def knobs_to_tune(base: Knobs) -> tuple[str, ...]:
    """Return the knobs that count under a setting: of its scorer, or of how it judges worth."""
    if base["value_weight"] > 0.0:
        return (*WORTH_KNOBS, *VALUE_KNOBS, "iteration_drift", "ttft_drift")
    return SCORER_KNOBS


class KnobSpace:
    """Coordinates of some knobs: logarithms where the low bound is above 0, in search steps.

    The origin is the base. Raises `KeyError` for a name that is no knob's.
    """

    def __init__(self, base: Knobs, names: Sequence[str]) -> None:
        by_name = {spec.name: spec for spec in KNOB_SPECS}
        self._base = base
        self._specs = [by_name[name] for name in names]
        self._is_log = np.array([spec.is_log for spec in self._specs])
        values = np.array([base[name] for name in names])
        self._start = np.where(self._is_log, np.log(np.where(self._is_log, values, 1.0)), values)
        # A unit step of the search is twice what the learned policy may move a knob by.
        self._scale = np.array([2.0 * spec.residual_scale for spec in self._specs])

    @property
    def bounds(self) -> FloatArray:
        """Bounds of the coordinates, [knobs, 2]."""
        ends = [
            (np.log(spec.low), np.log(spec.high)) if spec.is_log else (spec.low, spec.high)
            for spec in self._specs
        ]
        return np.asarray((np.array(ends) - self._start[:, None]) / self._scale[:, None])

    def knobs(self, point: FloatArray) -> Knobs:
        """Return the knobs at a point, clipped to their bounds."""
        moved = self._start + self._scale * point
        values = np.where(self._is_log, np.exp(np.where(self._is_log, moved, 0.0)), moved)
        clipped = {
            spec.name: float(np.clip(value, spec.low, spec.high))
            for spec, value in zip(self._specs, values, strict=True)
        }
        return self._base.replace(clipped)


def search_knobs(
    base: Knobs,
    names: Sequence[str],
    judge: Judge,
    budget: SearchBudget,
    *,
    on_generation: Progress = lambda goodput: None,
) -> Knobs:
    """Return the mean of a search that starts at `base`; `judge` is called once a generation."""
    space = KnobSpace(base, names)
    search = CMA(
        mean=np.zeros(len(names)),
        sigma=budget.step_size,
        bounds=space.bounds,
        seed=budget.seed,
        population_size=budget.population,
    )
    for _ in range(budget.num_generations):
        points = [search.ask() for _ in range(budget.population)]
        goodput = judge([space.knobs(point) for point in points])
        search.tell(list(zip(points, -goodput, strict=True)))
        on_generation(float(goodput.max()))
    return space.knobs(search.mean)
