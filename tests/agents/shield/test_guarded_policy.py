"""A policy behind its fallback: any misbehaviour is counted, logged and replaced."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from trimtab.agents.evaluation import run_policy
from trimtab.agents.heuristics import heuristic
from trimtab.agents.policy import ConstantPolicy, Policy
from trimtab.agents.shield.doubt import Doubt
from trimtab.agents.shield.fallback import Fallback, FallbackConfig
from trimtab.agents.shield.guarded_policy import GuardedPolicy
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.scenario import Part, Scenario
from trimtab.env.simulated_fleet import SimulatedFleet

BASE = ANALYTIC_SCORER_KNOBS
CONFIG = FallbackConfig(heuristic="predicted-ttft")


class Misbehaving:
    """Answers with whatever a function gives; raises if that raises."""

    name = "misbehaving"
    is_constant = False

    def __init__(self, answer, *, latency_s: float = 0.0) -> None:
        self._answer = answer
        self.latency_s = latency_s

    def begin(self):
        return BASE

    def act(self, state):
        return self._answer()


def guard(policy, **sources) -> GuardedPolicy:
    return GuardedPolicy(policy, Fallback(CONFIG, base=BASE, num_replicas=4), **sources)


def raw(values, bias=()):
    return lambda: SimpleNamespace(values=values, replica_bias=np.array(bias, float))


def dead():
    raise RuntimeError("no weights")  # noqa: EM101


MISBEHAVIOUR = {
    Doubt.ERROR: Misbehaving(dead),
    Doubt.ABSENT: Misbehaving(lambda: None),
    Doubt.NOT_FINITE: Misbehaving(raw(np.full(BASE.values.size, np.nan))),
    Doubt.WRONG_SHAPE: Misbehaving(lambda: "knobs"),
    Doubt.LATE: Misbehaving(lambda: BASE, latency_s=10.0),
}


@pytest.mark.parametrize("doubt", MISBEHAVIOUR)
def test_the_fallback_runs_the_fleet_instead(scenario, doubt, caplog):
    workload = scenario.workload(Part.TEST, 0)
    policy = guard(MISBEHAVIOUR[doubt])
    with caplog.at_level(logging.WARNING):
        fleet, track = run_policy(scenario, workload, policy, seed=0)
    fixed = ConstantPolicy(name="fixed", knobs=heuristic("predicted-ttft").knobs)
    # It is judged at once, before the first request.
    expected, _ = run_policy(scenario, workload, fixed, seed=0)
    assert fleet.requests["replica"].tolist() == expected.requests["replica"].tolist()
    num_windows = track.at_s.size - 1
    assert policy.fallback.counts_by_name()[str(doubt)] == num_windows
    assert policy.num_failures == (num_windows if doubt is Doubt.ERROR else 0)
    assert f"predicted-ttft rules (misbehaving: {doubt})" in caplog.text
    if doubt is Doubt.ERROR:
        assert "policy misbehaving raised RuntimeError: no weights" in caplog.text


def test_a_policy_within_its_limits_is_left_alone(scenario):
    workload = scenario.workload(Part.TEST, 0)
    moved = BASE.replace({"backlog": 1.3})
    policy = Misbehaving(lambda: moved)
    alone, _ = run_policy(scenario, workload, policy, seed=0)
    guarded, _ = run_policy(scenario, workload, guard(policy), seed=0)
    assert guarded.requests["replica"].tolist() == alone.requests["replica"].tolist()


def test_huge_knobs_are_brought_within_the_limits(scenario):
    workload = scenario.workload(Part.TEST, 0)
    policy = guard(Misbehaving(raw(np.full(BASE.values.size, 1e300), [1e300] * 4)))
    _, track = run_policy(scenario, workload, policy, seed=0)
    assert policy.verdict is not None
    assert policy.verdict.projection is not None
    assert policy.verdict.projection.is_overridden
    assert not policy.verdict.is_fallback
    assert track.values["shed_enabled"][-1] == 1.0
    assert track.values["backlog"][-1] == 4.0
    assert track.values["max_replica_bias"][-1] == 2.0


def test_it_begins_anew_and_hears_of_novelty(scenario):
    workload = scenario.workload(Part.TEST, 0)
    scores = iter([0.0, 5.0] + [0.0] * 100)
    policy = guard(Misbehaving(lambda: BASE), novelty=lambda state: next(scores))
    run_policy(scenario, workload, policy, seed=0)
    assert policy.fallback.counts == {Doubt.NOVEL: 1}
    assert policy.fallback.is_fallback
    assert isinstance(policy.begin(), Knobs)
    assert not policy.fallback.is_fallback
    assert not policy.fallback.counts


def run_with_shadow(scenario: Scenario, policy: Policy) -> tuple[SimulatedFleet, list[bool]]:
    """Run a policy with its shadow measured; return the fleet and who ruled each window."""
    workload = scenario.workload(Part.TEST, 2, load_frac=0.6)
    fleet = SimulatedFleet(scenario.cluster, workload, scenario.config)
    fallback = Fallback(FallbackConfig(), base=BASE, num_replicas=4)
    guarded = GuardedPolicy(policy, fallback, take_regret=fleet.take_regret)
    fleet.reset(seed=0, knobs=guarded.begin())
    rulers = []
    while fleet.now_s < workload.span_s:
        fleet.apply(guarded.act(fleet.state()))
        assert guarded.verdict is not None
        fleet.set_shadow(guarded.verdict.shadow, every=1)
        rulers.append(guarded.verdict.is_fallback)
        fleet.advance(0.5)
    fleet.drain()
    return fleet, rulers


def test_a_policy_that_does_harm_is_found_by_its_regret_and_kept_out(scenario):
    harmful = BASE.replace({"shed_interactive": 0.1, "shed_batch": 0.1})
    fleet, rulers = run_with_shadow(scenario, Misbehaving(lambda: harmful))
    trip = rulers.index(True)
    assert 1 <= trip <= 5
    assert all(rulers[trip:])
    policies = [ConstantPolicy(name="fixed", knobs=knobs) for knobs in (harmful, BASE)]
    alone, best = (
        run_policy(scenario, fleet.workload, policy, seed=0)[0].kpis().goodput_frac
        for policy in policies
    )
    assert fleet.kpis().goodput_frac > max(alone + 0.05, 0.9 * best)


def test_a_good_policy_rules_on(scenario):
    good = BASE.replace({"hit_weight": 0.6, "backlog": 1.1})
    _, rulers = run_with_shadow(scenario, Misbehaving(lambda: good))
    assert not any(rulers)
