"""Tuning over episodes of sites: one vector that is good at many fleets, or the vector of one site.

CMA-ES over named knobs. Every generation meets the same few episodes, drawn anew for the next. The
mean of the search is kept only if it is better than the start on validation episodes.

Does not know: how sites are drawn, or which scheduler the knobs steer: it is told.
Source: CMA-ES (Hansen), package `cmaes`; warm start and validation as in `tuning.py`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from cmaes import CMA

from ..env.knobs import KNOB_SPECS, SCORER_KNOBS, Knobs
from ..env.sites import Episode
from ..env.state.feature import FloatArray
from .contest import Contender, play
from .tuning import Progress, TuningResult

SchedulerMaker = Callable[[Knobs], Contender]
"""Makes the scheduler that is tuned from its knobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTuningConfig:
    """Budget of a search.

    Raises:
        ValueError: a number is too small.
    """

    num_generations: int = 60
    population: int = 16
    """Candidates in a generation."""
    episodes_per_generation: int = 16
    """Episodes that all candidates of a generation meet."""
    step_size: float = 0.4
    """Initial standard deviation, in twice the residual scales of the knobs."""
    names: tuple[str, ...] = SCORER_KNOBS
    """Knobs that are searched."""
    seed: int = 0
    num_workers: int = 1
    """Threads that play."""

    def __post_init__(self) -> None:
        for name in ("num_generations", "episodes_per_generation", "num_workers"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.population < 4:
            msg = f"population must be at least 4, got {self.population}"
            raise ValueError(msg)


class KnobSpace:
    """Coordinates of some knobs: logarithms where the low bound is above 0, in search steps."""

    def __init__(self, base: Knobs, names: Sequence[str]) -> None:
        by_name = {spec.name: spec for spec in KNOB_SPECS}
        self._base = base
        self._specs = [by_name[name] for name in names]
        values = np.array([base[name] for name in names])
        self._is_log = np.array([spec.is_log for spec in self._specs])
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
        """Return the knobs at a point of the search; the origin is the base."""
        moved = self._start + self._scale * point
        values = np.where(self._is_log, np.exp(np.where(self._is_log, moved, 0.0)), moved)
        clipped = {
            spec.name: float(np.clip(value, spec.low, spec.high))
            for spec, value in zip(self._specs, values, strict=True)
        }
        return self._base.replace(clipped)


def mean_goodput(
    make: SchedulerMaker,
    candidates: Sequence[Knobs],
    episodes: Sequence[Episode],
    pool: ThreadPoolExecutor,
) -> FloatArray:
    """Return the goodput of each candidate on each episode, [candidates, episodes]."""
    rows = [
        [pool.submit(play, episode, make(knobs)) for episode in episodes] for knobs in candidates
    ]
    return np.array([[future.result().goodput_frac for future in row] for row in rows])


def tune_on_sites(
    make: SchedulerMaker,
    base: Knobs,
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    config: SiteTuningConfig | None = None,
    *,
    on_generation: Progress = lambda goodput: None,
) -> TuningResult:
    """Return knobs fitted to episodes; `base` itself unless they are better on the validation ones.

    Raises:
        ValueError: there is no episode to train or to validate on.
    """
    config = config or SiteTuningConfig()
    if not episodes or not validation:
        msg = f"need episodes to train and validate on, got {len(episodes)} and {len(validation)}"
        raise ValueError(msg)
    rng = np.random.default_rng(config.seed)
    space = KnobSpace(base, config.names)
    search = CMA(
        mean=np.zeros(len(config.names)),
        sigma=config.step_size,
        bounds=space.bounds,
        seed=config.seed,
        population_size=config.population,
    )
    num_chosen = min(config.episodes_per_generation, len(episodes))
    with ThreadPoolExecutor(max_workers=config.num_workers) as pool:
        for _ in range(config.num_generations):
            chosen = [episodes[i] for i in rng.choice(len(episodes), num_chosen, replace=False)]
            points = [search.ask() for _ in range(config.population)]
            candidates = [space.knobs(point) for point in points]
            goodput = mean_goodput(make, candidates, chosen, pool).mean(axis=1)
            search.tell(list(zip(points, -goodput, strict=True)))
            on_generation(float(goodput.max()))
        tuned = space.knobs(search.mean)
        old, new = mean_goodput(make, [base, tuned], validation, pool).mean(axis=1)
    is_improved = bool(new > old)
    return TuningResult(
        knobs=tuned if is_improved else base,
        is_improved=is_improved,
        base_goodput=float(old),
        tuned_goodput=float(new),
        num_evaluations=config.num_generations * config.population,
    )


def scorer(knobs: Knobs) -> Contender:
    """Return the analytic scorer as a scheduler to tune."""
    return Contender(name="scorer", knobs=knobs)
