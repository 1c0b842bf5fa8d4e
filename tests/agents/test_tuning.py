"""Tuning: better than a bad start, never worse than a good one on validation, repeatable."""

import numpy as np
import pytest

from trimtab.agents.heuristics import ANALYTIC_SCORER
from trimtab.agents.tuning import TuningConfig, tune
from trimtab.env.knobs import KNOB_SPECS, TUNABLE_KNOBS

QUICK = TuningConfig(
    num_generations=4,
    population=6,
    num_workloads=3,
    workloads_per_generation=2,
    num_validation_workloads=3,
)
# Sends everything where TPOT is best and sheds whatever would wait at all.
BAD = ANALYTIC_SCORER.knobs.replace({"shed_interactive": 0.1, "shed_batch": 0.1, "backlog": 0.05})


def test_a_bad_start_is_improved(scenario):
    seen = []
    result = tune(scenario, BAD, QUICK, on_generation=seen.append)
    assert result.is_improved
    assert result.tuned_goodput > result.base_goodput + 0.01
    assert result.knobs["shed_interactive"] != BAD["shed_interactive"]
    assert len(seen) == QUICK.num_generations
    assert result.num_evaluations == 24


def test_the_old_vector_is_kept_if_the_new_one_is_not_better(scenario, monkeypatch):
    verdicts = iter([[0.9, 0.8]])

    def judge(self, candidates, workloads):
        if len(candidates) == 2:  # the final comparison of the old and the new vector
            return np.array([next(verdicts)]).T
        return np.zeros((len(candidates), len(workloads)))

    monkeypatch.setattr("trimtab.agents.tuning._Judge.goodput", judge)
    result = tune(scenario, ANALYTIC_SCORER.knobs, QUICK)
    assert not result.is_improved
    assert result.knobs is ANALYTIC_SCORER.knobs
    assert (result.base_goodput, result.tuned_goodput) == (0.9, 0.8)


def test_same_seed_same_knobs_within_bounds(scenario):
    first, second = (tune(scenario, BAD, QUICK) for _ in range(2))
    assert np.array_equal(first.knobs.values, second.knobs.values)
    for spec in KNOB_SPECS:
        assert spec.low <= first.knobs[spec.name] <= spec.high


def test_only_tunable_knobs_move(scenario):
    result = tune(scenario, BAD, QUICK)
    moved = {n for n in result.knobs.as_dict() if result.knobs[n] != BAD[n]}
    assert moved
    assert moved <= set(TUNABLE_KNOBS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 3}, "population must be at least 4, got 3"),
        ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        TuningConfig(**change)
