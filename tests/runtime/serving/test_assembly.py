"""What a server is put together from, and who may place by worth in it."""

from pathlib import Path

import pytest

from trimtab.agents.constraints.policy_file import read_policy
from trimtab.agents.heuristics import MARGINAL_VALUE, UNIVERSAL_SCORER
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.runtime.serving.assembly import Rules, can_place_by_worth, steering_of
from trimtab.runtime.serving.config import ServeConfig
from trimtab.runtime.serving.seat import PolicyFacts


def steering(scheduler: str, *, base: Knobs | None = None, rules: Rules | None = None):
    policy = None if base is None else PolicyFacts(source="p", name="p", base=base)
    return steering_of(
        ServeConfig(fleet_path=Path("fleet.yaml"), scheduler=scheduler), rules, policy
    )


def test_a_scheduler_that_places_by_worth_is_served():
    served = steering("marginal-value")
    assert served.scheduler_name == "marginal-value"
    assert served.limits.bounded(served.scheduler)["value_weight"] == 1.0
    assert can_place_by_worth(served)


def test_so_is_the_first_policy_beside_a_scheduler_that_does_not():
    assert can_place_by_worth(steering("universal-scorer", base=MARGINAL_VALUE.knobs))


@pytest.mark.parametrize("base", [None, ANALYTIC_SCORER_KNOBS])
def test_where_nobody_does_nobody_may(base):
    served = steering("universal-scorer", base=base)
    assert not can_place_by_worth(served)
    assert served.limits.bounded(MARGINAL_VALUE.knobs)["value_weight"] == 0.0
    assert served.limits.bounded(UNIVERSAL_SCORER.knobs).values.tolist() == (
        UNIVERSAL_SCORER.knobs.values.tolist()
    )


def test_rules_may_forbid_it(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("limits: [{knob: value_weight, high: 0.0}]\n")
    served = steering("marginal-value", rules=Rules(read_policy(path), compiled=None))
    assert not can_place_by_worth(served)
