"""Tuning: a scheduler's knobs fitted to a scenario by CMA-ES in the simulator.

Starts from a known vector, or from the best of a library of them; trains on workloads of the
training part, and keeps the old vector unless a new one is better on the validation part. The test
part is never touched.

Does not know: the learned policy.
Source: CMA-ES (Hansen), package `cmaes`; warm start and validation because cold or unvalidated
runs ended below their start in the project's prototype study.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..env.knobs import Knobs
from ..env.scenario import Part, Scenario
from ..env.simulated_fleet import run_workload
from ..env.simulator.workload import Workload
from ..env.state.feature import FloatArray
from .halving import try_vectors
from .knob_search import Progress, SearchBudget, knobs_to_tune, search_knobs


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """Budget of a tuning run."""

    num_generations: int = 40
    """Generations of the search."""
    population: int = 14
    """Candidates in a generation."""
    num_workloads: int = 24
    """Training workloads to draw from."""
    workloads_per_generation: int = 6
    """Training workloads that all candidates of a generation meet."""
    num_validation_workloads: int = 16
    """Validation workloads that decide between the old and the new vector."""
    step_size: float = 0.3
    """Initial standard deviation, in residual scales of the knobs."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_generations", "num_workloads", "workloads_per_generation"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.population < 4:
            msg = f"population must be at least 4, got {self.population}"
            raise ValueError(msg)

    @property
    def budget(self) -> SearchBudget:
        """How long the search goes on."""
        return SearchBudget(
            num_generations=self.num_generations,
            population=self.population,
            step_size=self.step_size,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningResult:
    """Outcome of a tuning run."""

    knobs: Knobs
    """The vector to use: the new one, or the old one if that was better."""
    is_improved: bool
    base_goodput: float
    """Mean goodput share of the old vector on the validation workloads."""
    tuned_goodput: float
    """The same of the vector that the search ended with."""
    num_evaluations: int
    library_goodput: float | None = None
    """The same of the library's best; None where no library was tried, or the old vector was."""


class _Judge:
    """Runs candidates on workloads, several at a time."""

    def __init__(self, scenario: Scenario, pool: ThreadPoolExecutor) -> None:
        self._scenario = scenario
        self._pool = pool

    def _goodput(self, knobs: Knobs, workload: Workload, seed: int) -> float:
        fleet = run_workload(
            self._scenario.cluster, workload, knobs, config=self._scenario.config, seed=seed
        )
        return fleet.kpis().goodput_frac

    def goodput(
        self, candidates: Sequence[Knobs], workloads: Sequence[tuple[int, Workload]]
    ) -> FloatArray:
        """Return the goodput share of each candidate on each workload; [candidates, workloads]."""
        futures = [
            [self._pool.submit(self._goodput, knobs, w, seed) for seed, w in workloads]
            for knobs in candidates
        ]
        return np.array([[future.result() for future in row] for row in futures])


def _workloads(scenario: Scenario, part: Part, count: int) -> list[tuple[int, Workload]]:
    return [(i, scenario.workload(part, i)) for i in range(count)]


def tune(
    scenario: Scenario,
    base: Knobs,
    config: TuningConfig | None = None,
    *,
    library: Sequence[Knobs] = (),
    on_round: Progress = lambda goodput: None,
    on_generation: Progress = lambda goodput: None,
) -> TuningResult:
    """Return knobs fitted to a scenario, starting from `base` or a better vector of `library`.

    `on_round` is called after each round in which the library is tried.
    """
    config = config or TuningConfig()
    rng = np.random.default_rng(config.seed)
    training = _workloads(scenario, Part.TRAIN, config.num_workloads)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        judge = _Judge(scenario, pool)

        def goodput(candidates: Sequence[Knobs]) -> FloatArray:
            chosen = rng.choice(len(training), config.workloads_per_generation, replace=False)
            rows = judge.goodput(candidates, [training[i] for i in chosen])
            return np.asarray(rows.mean(axis=1))

        def goodput_on(candidates: Sequence[Knobs], numbers: Sequence[int]) -> FloatArray:
            return judge.goodput(candidates, [training[i % len(training)] for i in numbers])

        known = [base, *library]
        best = try_vectors(known, goodput_on, on_round=on_round)[0] if library else 0
        names = knobs_to_tune(base)
        tuned = search_knobs(
            known[best], names, goodput, config.budget, on_generation=on_generation
        )
        found = [base, tuned] if best == 0 else [base, known[best], tuned]
        validation = _workloads(scenario, Part.VALIDATION, config.num_validation_workloads)
        validated = judge.goodput(found, validation).mean(axis=1)
    winner = int(validated.argmax())
    return TuningResult(
        knobs=found[winner],
        is_improved=winner > 0,
        base_goodput=float(validated[0]),
        tuned_goodput=float(validated[-1]),
        num_evaluations=config.num_generations * config.population,
        library_goodput=None if best == 0 else float(validated[1]),
    )
