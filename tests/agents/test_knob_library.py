"""The library: halving finds the best, the file that ships is whole, and holds gains only."""

import json

import numpy as np
import pytest

from trimtab.agents.halving import try_vectors
from trimtab.agents.heuristics import ANALYTIC_SCORER
from trimtab.agents.knob_library import (
    LibraryConfig,
    LibraryVector,
    knob_library,
    library_text,
    make_library,
)
from trimtab.agents.knob_search import SearchBudget
from trimtab.agents.tuning import TuningConfig, tune
from trimtab.agents.universal import universal_scorer
from trimtab.env.knobs import KNOB_SPECS, SCORER_KNOBS

QUICK = LibraryConfig(
    budget=SearchBudget(num_generations=2, population=6, step_size=0.4),
    num_episodes=2,
    episodes_per_generation=1,
    num_validation=2,
)
BAD = ANALYTIC_SCORER.knobs.replace({"shed_interactive": 0.1, "shed_batch": 0.1, "backlog": 4.0})
CROWD = [ANALYTIC_SCORER.knobs.replace({"backlog": 0.1 + 0.05 * i}) for i in range(40)]
PLANTED = 23


def test_halving_finds_a_planted_best_and_plays_little():
    rng, played, rounds = np.random.default_rng(0), [], []

    def judge(candidates, numbers):
        played.extend((knobs["backlog"], number) for knobs in candidates for number in numbers)
        is_planted = [[knobs["backlog"] == CROWD[PLANTED]["backlog"]] for knobs in candidates]
        # Workloads differ by more than candidates do; all candidates meet the same ones.
        hardness = np.array([0.3 * (number % 3) for number in numbers])
        noise = 0.02 * rng.standard_normal((len(candidates), len(numbers)))
        return 0.9 + 0.1 * np.array(is_planted) - hardness + noise

    best, goodput = try_vectors(CROWD, judge, rounds=(2, 3, 4), on_round=rounds.append)
    assert best == PLANTED
    assert 0.6 < goodput < 0.8
    assert len(played) == len(set(played)) == 40 * 2 + 14 * 3 + 5 * 4
    assert len(rounds) == 3
    assert rounds[-1] == goodput


def test_of_equals_the_first_wins():
    def judge(candidates, numbers):
        return np.full((len(candidates), len(numbers)), 0.5)

    assert try_vectors(CROWD, judge) == (0, 0.5)


@pytest.mark.parametrize(("candidates", "rounds"), [([], (2,)), (CROWD, ())])
def test_nothing_to_try_is_refused(candidates, rounds):
    with pytest.raises(ValueError, match=f"got {len(candidates)} and {len(rounds)}"):
        try_vectors(candidates, lambda knobs, numbers: np.zeros((0, 0)), rounds=rounds)


def test_the_library_that_ships_is_in_bounds_and_better_where_it_was_tuned():
    vectors = knob_library()
    assert len(vectors) >= 10
    assert len({one.site for one in vectors}) == len(vectors)
    specs = {spec.name: spec for spec in KNOB_SPECS}
    for one in vectors:
        assert one.site.startswith("train/")
        assert one.found_goodput >= one.start_goodput
        assert set(one.knobs) == set(SCORER_KNOBS)
        assert all(specs[n].low <= value <= specs[n].high for n, value in one.knobs.items())
        assert one.on(universal_scorer())["shed_enabled"] == universal_scorer()["shed_enabled"]


def test_a_site_gives_a_vector_where_it_is_better_and_the_file_holds_it():
    (made,) = make_library(BAD, [0], None, QUICK)
    assert made is not None
    assert made.site == "train/0"
    assert made.found_goodput > made.start_goodput
    content = json.loads(library_text([made], seed=0, cpu_s=3))
    assert (content["seed"], content["cpu_s"]) == (0, 3)
    assert LibraryVector(**content["vectors"][0]) == made


def test_a_site_gives_nothing_where_nothing_is_better(monkeypatch):
    def goodput_of(candidates, chosen, pool):
        return -np.arange(len(candidates), dtype=float)[:, None]

    monkeypatch.setattr("trimtab.agents.site_tuning.goodput_of", goodput_of)
    assert list(make_library(BAD, [0], None, QUICK)) == [None]


def test_tuning_starts_from_the_best_of_a_library(scenario):
    quick = TuningConfig(
        num_generations=1,
        population=4,
        num_workloads=3,
        workloads_per_generation=1,
        num_validation_workloads=3,
    )
    rounds = []
    library = [BAD, ANALYTIC_SCORER.knobs]
    result = tune(scenario, BAD, quick, library=library, on_round=rounds.append)
    assert len(rounds) == 3
    assert result.library_goodput is not None
    assert result.is_improved
    assert result.library_goodput > result.base_goodput + 0.01
    same = tune(scenario, ANALYTIC_SCORER.knobs, quick, library=[BAD])
    assert same.library_goodput is None
