"""Policies that do harm, behind the shield and without it: an audit of every run."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.agents.shield.adversaries import ADVERSARIES, Adversary
from trimtab.agents.shield.audit import (
    InForce,
    Setting,
    audit_knobs,
    audit_memory,
    audit_placement,
)
from trimtab.agents.shield.breaker_file import default_breakers
from trimtab.agents.shield.fallback import Fallback, FallbackConfig
from trimtab.agents.shield.guarded_policy import GuardedPolicy
from trimtab.agents.shield.projection import KnobLimits
from trimtab.agents.shield.shield import ShieldConfig
from trimtab.agents.shield.simulated_shield import SimulatedShield
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, HIGH_VALUES, KNOBS_DTYPE, LOW_VALUES
from trimtab.env.masks import Mask
from trimtab.env.restrictions import Restrictions, open_groups
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults.script import Drill, ScriptedTrouble
from trimtab.env.simulator.setup import FleetConfig

BASE = ANALYTIC_SCORER_KNOBS
WINDOW_S, SPAN_S = 2.0, 10.0
TENANTS = ("bank", "shop")
FALLBACK = FallbackConfig(window_s=WINDOW_S, recovery_windows=2, max_recovery_windows=4)


class Recorder(SimulatedShield):
    """A shield that writes down which masks were in force when."""

    def begin(self, fleet, knobs):
        self.history = []
        return super().begin(fleet, knobs)

    def set_limits(self, fleet):
        super().set_limits(fleet)
        self.history.append(InForce(fleet.now_s, self.shield.limits.masks))


@st.composite
def scenarios(draw):
    num_replicas = draw(st.integers(2, 6))
    rows = st.lists(
        st.sampled_from([0, 0, Mask.TENANT, Mask.REGION, Mask.ADAPTER]),
        min_size=num_replicas,
        max_size=num_replicas,
    )
    drills = st.tuples(
        st.sampled_from([Drill.CRASH, Drill.STALL, Drill.KV_LOSS, Drill.PAGE_LOST, Drill.DIE]),
        st.integers(0, num_replicas - 1),
        st.floats(0.5, SPAN_S),
    )
    return {
        "gpus": draw(
            st.lists(
                st.sampled_from(["H100-80G", "A100-80G", "L40S-48G"]),
                min_size=num_replicas,
                max_size=num_replicas,
            )
        ),
        "masks": [draw(rows) for _ in range(len(TENANTS) + 1)],
        "script": draw(st.lists(drills, max_size=3)),
        "rate_rps": draw(st.sampled_from([2.0, 8.0, 30.0])),
        "seed": draw(st.integers(0, 10_000)),
        "kv_pages": draw(st.sampled_from([None, 400])),
    }


def restrictions_of(masks) -> Restrictions:
    array = np.array(masks, np.uint16)
    return Restrictions(
        names=(*TENANTS, "others"),
        masks=array,
        penalties=np.zeros(array.shape),
        groups=open_groups(len(array)),
        table=np.arange(len(array))[:, None],
        tenants={name: i for i, name in enumerate(TENANTS)},
    )


def workload_of(scenario, make_workload):
    rng = np.random.default_rng(scenario["seed"])
    num = max(4, int(scenario["rate_rps"] * SPAN_S))
    return make_workload(
        np.sort(rng.uniform(0, SPAN_S, num)),
        rng.integers(10, 1500, num),
        rng.integers(1, 120, num),
        tenant=[str(name) for name in rng.choice([*TENANTS, "visitor"], num)],
        priority=rng.integers(0, 2, num).astype(np.int8),
    )


def make_fleet(scenario, makers, *, has_shield):
    make_cluster, make_workload = makers
    restrictions = restrictions_of(scenario["masks"])
    script = tuple(
        ScriptedTrouble(at_s=at_s, drill=drill, replica=r, value=0.9 if drill != Drill.STALL else 3)
        for drill, r, at_s in scenario["script"]
    )
    config = FleetConfig(script=script, restrictions=restrictions if has_shield else None)
    guard = Recorder(ShieldConfig(breakers=default_breakers())) if has_shield else None
    cluster = make_cluster(scenario["gpus"], kv_pages=scenario["kv_pages"])
    workload = workload_of(scenario, make_workload)
    return SimulatedFleet(cluster, workload, config, guard=guard), guard, restrictions


def play_shielded(scenario, makers, kind):
    """Return what an audit finds in a run behind the shield."""
    fleet, guard, restrictions = make_fleet(scenario, makers, has_shield=True)
    num_replicas = len(fleet.cluster.replicas)
    fallback = Fallback(FALLBACK, base=BASE, num_replicas=num_replicas)
    policy = GuardedPolicy(
        Adversary(kind, scenario["seed"]), fallback, take_regret=fleet.take_regret
    )
    knobs = policy.begin()
    fleet.reset(seed=scenario["seed"], knobs=knobs)
    log = []
    while fleet.now_s < SPAN_S:
        knobs = fleet.apply(policy.act(fleet.state()))
        fleet.set_shadow(policy.verdict.shadow, every=2)
        log.append(Setting(fleet.now_s, knobs.values, knobs.replica_bias))
        fleet.advance(WINDOW_S)
    fleet.drain()
    found = audit_placement(fleet, restrictions, guard.history) + audit_memory(fleet)
    return found + audit_knobs(log, BASE, KnobLimits(), fallback.knobs), policy


def play_bare(scenario, makers, kind):
    """Return what an audit finds without the shield: what is asked for is set unchecked."""
    fleet, _, restrictions = make_fleet(scenario, makers, has_shield=False)
    adversary = Adversary(kind, scenario["seed"])
    fleet.reset(seed=scenario["seed"], knobs=adversary.begin())
    log = []
    while fleet.now_s < SPAN_S:
        demand = adversary.demand(len(fleet.cluster.replicas))
        log.append(Setting(fleet.now_s, demand.values, demand.replica_bias))
        if np.isfinite(demand.values).all() and demand.values.size == LOW_VALUES.size:
            values = np.clip(demand.values, LOW_VALUES, HIGH_VALUES)
            fleet.arrays.knobs[:] = values.view(KNOBS_DTYPE)
        fleet.advance(WINDOW_S)
    fleet.drain()
    found = audit_placement(fleet, restrictions, [])
    if log[0].values.size != LOW_VALUES.size:
        return [*found, "a setting of the wrong shape"]
    return found + audit_knobs(log, BASE, KnobLimits(), BASE)


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def hold(scenario, kind, makers):
    found, _ = play_shielded(scenario, makers, kind)
    assert found == []


@settings(max_examples=30, suppress_health_check=QUIET)
@given(scenario=scenarios(), kind=st.sampled_from(list(ADVERSARIES)))
def test_no_adversary_gets_past_the_shield(make_cluster, make_workload, scenario, kind):
    hold(scenario, kind, (make_cluster, make_workload))


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=QUIET)
@given(scenario=scenarios(), kind=st.sampled_from(list(ADVERSARIES)))
def test_a_thousand_times(make_cluster, make_workload, scenario, kind):
    hold(scenario, kind, (make_cluster, make_workload))


PLAIN = {
    "gpus": ["H100-80G", "A100-80G", "L40S-48G"],
    "masks": [[0, Mask.TENANT, Mask.TENANT], [Mask.TENANT, 0, 0], [Mask.REGION, 0, Mask.TENANT]],
    "script": [],
    "rate_rps": 30.0,
    "seed": 1,
    "kv_pages": None,
}


@pytest.mark.parametrize("kind", sorted(set(ADVERSARIES) - {"raising"}))
def test_without_the_shield_the_same_runs_do_violate(make_cluster, make_workload, kind):
    makers = (make_cluster, make_workload)
    found = play_bare(PLAIN, makers, kind)
    assert any("went to replica" in text for text in found)
    if kind not in ("late", "worst", "frozen"):
        assert any("was set" in text or "moved faster" in text or "wrong" in text for text in found)
    assert play_shielded(PLAIN, makers, kind)[0] == []


def test_without_the_shield_a_policy_that_raises_stops_the_fleet():
    with pytest.raises(RuntimeError, match="has died"):
        Adversary("raising").demand(3)


@pytest.mark.parametrize("kind", ["nan", "late", "wrong-shape", "raising"])
def test_what_is_plainly_wrong_never_rules_for_a_single_window(make_cluster, make_workload, kind):
    _, policy = play_shielded(PLAIN, (make_cluster, make_workload), kind)
    counts = policy.fallback.counts_by_name()
    assert sum(counts.values()) >= SPAN_S / WINDOW_S
    assert policy.verdict.is_fallback


def test_an_audit_finds_what_is_wrong(make_cluster, make_workload):
    limits = KnobLimits()
    fine = Setting(0.0, BASE.values, np.zeros(3))
    assert audit_knobs([fine, replace(fine, at_s=2.0)], BASE, limits, BASE) == []
    wild = BASE.values.copy()
    wild[0] = 1e9
    found = audit_knobs([Setting(0.0, wild, np.full(3, 9.0))], BASE, limits, BASE)
    assert any("random_weight was set to" in text for text in found)
    assert any("random_weight is not for a policy to move" in text for text in found)
    assert any("bias" in text for text in found)
    quick = BASE.replace({"backlog": 4.0}).values
    slow = BASE.replace({"backlog": 1.1}).values
    pair = [Setting(0.0, slow, np.zeros(3)), Setting(0.1, quick, np.zeros(3))]
    assert audit_knobs(pair, BASE, limits, BASE) == ["backlog moved faster than it may"]


def test_a_queue_that_stands_still_is_barred_from_its_tick_to_its_end(make_cluster, make_workload):
    scenario = {
        **PLAIN,
        "gpus": ["H100-80G"] * 5,
        "masks": [[Mask.TENANT, 0, 0, Mask.REGION, Mask.TENANT], [0] * 5, [0] * 5],
        "script": [(Drill.CRASH, 2, 3.1901521990755035), (Drill.STALL, 1, 1.0)],
        "seed": 156,
    }
    hold(scenario, "random", (make_cluster, make_workload))
