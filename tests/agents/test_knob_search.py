"""The search for knobs: its coordinates are the knobs', it finds an optimum, and repeats."""

import numpy as np
import pytest

from trimtab.agents.heuristics import ANALYTIC_SCORER
from trimtab.agents.knob_search import KnobSpace, SearchBudget, knobs_to_tune, search_knobs
from trimtab.env.knobs import KNOB_SPECS, SCORER_KNOBS, VALUE_KNOBS, WORTH_KNOBS

BASE = ANALYTIC_SCORER.knobs
SPECS = {spec.name: spec for spec in KNOB_SPECS}


def test_the_origin_is_the_base_and_bounds_are_those_of_the_knobs():
    space = KnobSpace(BASE, SCORER_KNOBS)
    np.testing.assert_allclose(space.knobs(np.zeros(14)).values, BASE.values, rtol=1e-12)
    for side, end in enumerate(("low", "high")):
        knobs = space.knobs(space.bounds[:, side])
        for name in SCORER_KNOBS:
            assert knobs[name] == pytest.approx(getattr(SPECS[name], end))
        beyond = space.knobs(space.bounds[:, side] + (2 * side - 1) * 9.0)
        assert all(beyond[name] == getattr(SPECS[name], end) for name in SCORER_KNOBS)


def closeness(candidates):
    """Best where two knobs are at known values."""
    return np.array(
        [
            -((np.log(k["backlog"] / 2.0)) ** 2) - (k["externality_batch"] + 1.0) ** 2
            for k in candidates
        ]
    )


def test_a_known_optimum_is_found_again_and_again_and_nothing_else_moves():
    names = ("backlog", "externality_batch")
    budget = SearchBudget(num_generations=40, population=8)
    found = search_knobs(BASE, names, closeness, budget)
    assert found["backlog"] == pytest.approx(2.0, rel=0.05)
    assert found["externality_batch"] == pytest.approx(-1.0, abs=0.05)
    assert {n for n in found.as_dict() if found[n] != BASE[n]} == set(names)
    again = search_knobs(BASE, names, closeness, budget)
    np.testing.assert_array_equal(found.values, again.values)


def test_what_is_tuned_depends_on_how_requests_are_placed():
    assert knobs_to_tune(BASE) == SCORER_KNOBS
    by_worth = knobs_to_tune(BASE.replace({"value_weight": 1.0}))
    assert set(WORTH_KNOBS) | set(VALUE_KNOBS) <= set(by_worth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 3}, "population must be at least 4, got 3"),
        ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
    ],
)
def test_budgets_that_are_too_small_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SearchBudget(**change)
