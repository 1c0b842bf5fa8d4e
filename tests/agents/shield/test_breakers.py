"""Circuit breakers: known answers for the two example rules and for each promise."""

from dataclasses import replace

import numpy as np
import pytest
from breaker_fleet import BATCH_SLOTS, Fleet, kv, make_places, make_rule, make_state

from trimtab.agents.shield import breakers as breakers_module
from trimtab.agents.shield.alarm import Severity
from trimtab.agents.shield.breaker_file import default_breakers
from trimtab.agents.shield.breaker_rules import Effect, Recovery
from trimtab.agents.shield.breakers import Breakers, Phase
from trimtab.agents.shield.places import places_of
from trimtab.env.cluster_file import load_cluster
from trimtab.env.masks import Mask
from trimtab.env.state.feature import Node

QUARANTINED, MAINTENANCE = int(Mask.QUARANTINED), int(Mask.MAINTENANCE)


def test_gpu_memory_over_92_percent_for_3_s_degrades():
    rule = make_rule(
        metric="gpu.hbm_used_frac", threshold=0.92, for_s=3.0, effect=Effect.DEGRADE, amount=0.5,
        recovery=Recovery(threshold=0.88, for_s=5.0, cool_down_s=10.0),
    )  # fmt: skip
    fleet = Fleet(rule)
    high, fine = {"gpu__hbm_used_frac": [0.5, 0.95, 0.5, 0.5]}, {"gpu__hbm_used_frac": [0.5] * 4}
    fleet.see(**high)  # at 0 s
    assert not fleet.see_for(2.9, **high).limits.penalties.any()
    step = fleet.see_for(0.1, **high)  # 3.0 s
    assert list(step.limits.penalties) == [0.0, 0.5, 0.0, 0.0]
    assert not step.limits.masks.any()
    [alarm] = step.alarms
    assert (alarm.name, alarm.place, alarm.severity) == ("full", "gpu gpu-1", Severity.WARNING)
    assert (alarm.value, alarm.threshold, alarm.at_s) == (0.95, 0.92, 3.0)
    assert alarm.sentence == (
        "gpu gpu-1: gpu.hbm_used_frac is 95 %, above 92 % for 3 s; every replica on that GPU costs "
        "0.5 more in the score, and an alarm (warning) is raised"
    )
    assert fleet.see_for(9.9, **fine).limits.penalties[1] == 0.5  # cools down until 13.0 s
    assert fleet.see_for(0.1, **fine).limits.penalties[1] == 0.25  # tried at half
    assert fleet.see_for(5.0, **fine).limits.penalties[1] == 0.25  # quiet from 13.1 s
    step = fleet.see_for(0.1, **fine)
    assert step.limits.penalties[1] == 0.0
    [alarm] = step.alarms
    assert alarm.is_resolved
    assert alarm.sentence == ("gpu gpu-1: gpu.hbm_used_frac is 50 % again, not above 92 % for 3 s")
    assert len(fleet.alarms) == 2


def test_five_allocation_failures_in_a_row_put_under_maintenance_watch():
    rules = [rule for rule in default_breakers() if rule.name == "kv-allocation-failures"]
    fleet = Fleet(*rules)
    failing = {"replica__preemptions_per_s": [0.0, 0.0, 1.5, 0.0]}
    fine = {"replica__preemptions_per_s": [0.0] * 4}
    fleet.see_for(0.4, **failing)
    fleet.see_for(0.1, **fine)
    assert not fleet.see_for(0.4, **failing).limits.masks.any()  # four in a row again
    step = fleet.see_for(0.1, **failing)
    assert list(step.limits.masks) == [0, 0, MAINTENANCE, 0]
    [alarm] = step.alarms
    assert alarm.severity is Severity.CRITICAL
    assert "is under maintenance watch and gets no requests" in alarm.sentence
    assert fleet.see_for(14.9, **fine).limits.masks[2] == MAINTENANCE
    step = fleet.see_for(0.1, **fine)  # half open after 15 s
    assert list(step.limits.masks) == [0] * 4
    assert list(step.limits.max_outstanding) == [np.inf, np.inf, 3.0, np.inf]
    step = fleet.see_for(10.1, **fine)
    assert np.isinf(step.limits.max_outstanding).all()
    assert [alarm.is_resolved for alarm in fleet.alarms] == [False, True]


def test_an_observation_counts_once():
    fleet = Fleet(make_rule(for_s=0.0, consecutive=3))
    for tick in range(20):  # a page of 0 s, seen again and again
        fleet.now_s = 0.1 * tick
        fleet.see(age_s=0.1 * tick, **kv(0.99))
    assert fleet.phases == []
    fleet.see_for(0.1, **kv(0.99))
    fleet.see_for(0.1, **kv(0.99))
    assert fleet.phases == [Phase.OPEN]


@pytest.mark.parametrize(
    ("value", "age_s"),
    [(None, 0.0), (np.nan, 0.0), (np.inf, 0.0), (0.99, 5.1), (0.99, np.inf), (0.99, np.nan),
     (0.99, -1.0)],
)  # fmt: skip
def test_what_is_absent_or_old_opens_nothing(value, age_s):
    fleet = Fleet(make_rule(for_s=0.0))
    for tick in range(30):
        fleet.now_s = 0.1 * tick
        step = fleet.see(age_s=age_s, **kv(value))
        assert not step.limits.masks.any()
    assert fleet.alarms == []
    assert fleet.phases == []


@pytest.mark.parametrize(("value", "age_s"), [(None, 0.0), (np.nan, 0.0), (0.1, 5.1)])
def test_what_is_absent_or_old_closes_nothing(value, age_s):
    fleet = Fleet(make_rule(for_s=0.0))
    fleet.see(**kv(0.99))
    for tick in range(1, 600):
        fleet.now_s = 0.1 * tick
        step = fleet.see(age_s=age_s, **kv(value))
    assert fleet.phases == [Phase.HALF_OPEN]  # tried, as nothing may be known without traffic
    assert step.limits.max_outstanding[0] == 3.0
    fleet.see_for(2.1, **kv(0.1))
    assert fleet.phases == []


def test_between_the_thresholds_a_breaker_stays_as_it_is():
    fleet = Fleet(make_rule(for_s=0.0))
    fleet.see_for(10.0, **kv(0.85))
    assert fleet.phases == []
    fleet.see_for(0.1, **kv(0.95))
    fleet.see_for(60.0, **kv(0.85))
    assert fleet.phases == [Phase.HALF_OPEN]


def test_a_breach_half_open_opens_again_with_the_cool_down_doubled_up_to_eightfold():
    fleet = Fleet(make_rule(for_s=0.0))
    opened_at_s, was = [], None
    for tick in range(2000):
        fleet.now_s = 0.1 * tick
        fleet.see(**kv(0.99))
        [phase] = fleet.phases
        if phase is Phase.OPEN and was is not Phase.OPEN:
            opened_at_s.append(fleet.now_s)
        was = phase
    assert np.diff(opened_at_s) == pytest.approx([5.1, 10.1, 20.1, *[40.1] * 4])
    assert len(fleet.alarms) == 1


def test_a_breaker_that_opens_soon_after_it_closed_cools_down_longer():
    fleet = Fleet(make_rule(for_s=0.0))

    def cool_down_s() -> float:
        [state] = fleet.breakers.states()
        return state.cool_down_s

    fleet.see_for(0.1, **kv(0.99))
    assert cool_down_s() == 5.0
    fleet.see_for(8.0, **kv(0.1))
    assert fleet.phases == []
    fleet.see_for(0.1, **kv(0.99))
    assert cool_down_s() == 10.0
    fleet.see_for(60.0, **kv(0.1))
    fleet.see_for(0.1, **kv(0.99))
    assert cool_down_s() == 5.0


def test_without_probes_only_a_quiet_value_leads_out():
    recovery = Recovery(threshold=0.8, for_s=2.0, cool_down_s=5.0, probes=0)
    fleet = Fleet(make_rule(for_s=0.0, recovery=recovery))
    fleet.see_for(100.0, **kv(0.99))
    assert fleet.phases == [Phase.OPEN]
    step = fleet.see_for(0.1, **kv(0.1))
    assert fleet.phases == [Phase.HALF_OPEN]
    assert step.limits.masks[0] == QUARANTINED
    step = fleet.see_for(2.2, **kv(0.1))
    assert step.limits.masks[0] == 0


def test_no_more_than_the_share_is_barred_and_the_rest_alarms():
    fleet = Fleet(make_rule(for_s=0.0, severity=Severity.NONE))
    step = fleet.see_for(0.1, **kv(0.99, 0.99, 0.99))
    assert list(step.limits.masks) == [QUARANTINED, QUARANTINED, 0, 0]
    [alarm] = step.alarms
    assert (alarm.place, alarm.severity) == ("replica replica-2", Severity.WARNING)
    assert alarm.sentence.endswith(
        "; nothing is barred, as more than 50% of a model's replicas would be"
    )
    assert [state.is_barring for state in fleet.breakers.states()] == [True, True, False]
    # As soon as one has recovered, the next is barred, without another alarm.
    for _ in range(300):
        step = fleet.see_for(0.1, **kv(0.1, 0.99, 0.99))
        num_limited = (step.limits.masks != 0) | np.isfinite(step.limits.max_outstanding)
        assert num_limited.sum() <= 2
    assert list(step.limits.masks) == [0, QUARANTINED, QUARANTINED, 0]
    assert len(fleet.alarms) == 1
    fleet.see_for(300.0, **kv(0.1))
    assert [alarm.is_resolved for alarm in fleet.alarms] == [False, True]


def test_the_share_is_of_the_replicas_of_each_model():
    fleet = Fleet(make_rule(for_s=0.0), places=make_places(num_models=2))  # 0 and 2, 1 and 3
    step = fleet.see_for(0.1, **kv(0.99, 0.99, 0.99))
    assert list(step.limits.masks) == [QUARANTINED, QUARANTINED, 0, 0]


def test_rules_share_the_room_and_each_keeps_its_own_share():
    wide = make_rule(for_s=0.0, max_open_frac=0.5)
    narrow = make_rule(
        name="narrow", metric="replica.late_frac", for_s=0.0, max_open_frac=0.25,
        effect=Effect.MAINTENANCE,
    )  # fmt: skip
    fleet = Fleet(wide, narrow)
    step = fleet.see_for(0.1, **kv(0.99, 0.99), replica__late_frac=[1.0] * 4)
    assert list(step.limits.masks) == [QUARANTINED, QUARANTINED, 0, 0]
    assert sum("nothing is barred" in alarm.sentence for alarm in fleet.alarms) == 4


@pytest.mark.parametrize(
    ("metric", "reading", "expected"),
    [
        ("server.cpu_frac", [0.0, 0.99], [0, 0, 1, 1]),
        ("link.out_frac", [0.99, 0.0], [1, 1, 0, 0]),
        ("gpu.sm_activity_frac", [0.0, 0.0, 0.99, 0.0], [0, 0, 1, 0]),
        ("zone.sm_activity_frac", [0.99], [0, 0, 0, 0]),  # all would be more than half
    ],
)
def test_a_rule_bars_the_replicas_at_its_place(metric, reading, expected):
    fleet = Fleet(make_rule(metric=metric, for_s=0.0))
    step = fleet.see_for(0.1, **{metric.replace(".", "__"): reading})
    assert list(step.limits.masks != 0) == expected
    assert len(step.alarms) == 1


def test_a_degraded_share_of_the_batch_slots_comes_back_by_halves():
    rule = make_rule(
        metric="server.cpu_frac", for_s=0.0, effect=Effect.DEGRADE, amount=0.0,
        outstanding_frac=0.2,
    )  # fmt: skip
    fleet = Fleet(rule)
    step = fleet.see_for(0.1, server__cpu_frac=[0.99, 0.0])
    most = step.limits.max_outstanding
    assert most == pytest.approx([0.2 * BATCH_SLOTS] * 2 + [np.inf] * 2)
    step = fleet.see_for(5.1, server__cpu_frac=[0.0, 0.0])
    most = step.limits.max_outstanding
    assert most == pytest.approx([0.6 * BATCH_SLOTS] * 2 + [np.inf] * 2)


def test_a_replica_on_several_gpus_is_degraded_once_and_by_each_rule():
    cluster = load_cluster("mixed-models")
    places = places_of(cluster)
    at = places.replicas_at[Node.GPU]
    wide = int(np.argmax(np.bincount(at.replicas)))
    gpus = [i for i in range(len(places.names[Node.GPU]))
            if wide in at.replicas[at.first[i] : at.first[i + 1]]]  # fmt: skip
    assert len(gpus) > 1
    reading = [0.99 if i in gpus else 0.1 for i in range(len(places.names[Node.GPU]))]
    degrading = {"for_s": 0.0, "effect": Effect.DEGRADE, "recovery": Recovery(threshold=0.8)}
    memory = make_rule(metric="gpu.hbm_used_frac", amount=0.5, **degrading)
    heat = make_rule(name="heat", metric="gpu.thermal_throttle_frac", amount=0.25, **degrading)
    fleet = Fleet(memory, heat, places=places)
    step = fleet.see_for(0.1, gpu__hbm_used_frac=reading, gpu__thermal_throttle_frac=reading)
    assert step.limits.penalties[wide] == 0.75
    assert np.count_nonzero(step.limits.penalties) == 1


def test_an_alarm_rule_tells_and_leaves_the_replicas_alone():
    rule = make_rule(metric="tenant.late_frac", for_s=0.0, effect=Effect.ALARM)
    fleet = Fleet(rule)
    step = fleet.see_for(0.1, tenant__late_frac=[0.99])
    assert [alarm.place for alarm in step.alarms] == ["tenant tenant-0"]
    assert not step.limits.masks.any()
    assert not step.limits.penalties.any()
    assert np.isinf(step.limits.max_outstanding).all()
    fleet.see_for(8.0, tenant__late_frac=[0.1])
    assert [alarm.is_resolved for alarm in fleet.alarms] == [False, True]


def test_breakers_of_rules_that_stay_survive_other_rules():
    stays, goes = make_rule(for_s=0.0), make_rule(name="goes", for_s=0.0, effect=Effect.MAINTENANCE)
    fleet = Fleet(goes, stays)
    fleet.see_for(0.1, **kv(0.99))
    comes = make_rule(name="comes", metric="gpu.sm_activity_frac")
    fleet.breakers.replace_rules([comes, stays], fleet.now_s)
    assert [state.rule for state in fleet.breakers.states()] == [stays]
    step = fleet.see_for(0.1, **kv(0.99))
    assert list(step.limits.masks) == [QUARANTINED, 0, 0, 0]
    [alarm] = step.alarms
    assert (alarm.name, alarm.is_resolved, alarm.value) == ("goes", True, None)
    assert alarm.sentence == "replica replica-0: rule 'goes' is gone, and its breaker with it"
    fleet.breakers.replace_rules([replace(stays, threshold=0.95)], fleet.now_s)
    step = fleet.see_for(0.1, **kv(0.94))
    assert not step.limits.masks.any()
    assert [alarm.name for alarm in step.alarms] == ["full"]
    assert fleet.breakers.num_open() == {"full": 0}


def test_a_mass_failure_hands_out_its_alarms_bit_by_bit(monkeypatch):
    monkeypatch.setattr(breakers_module, "MAX_ALARMS", 3)
    places = make_places(num_replicas=8)
    fleet = Fleet(make_rule(for_s=0.0), places=places)
    numbers = [len(fleet.see_for(0.1, replica__kv_usage_frac=[0.99] * 8).alarms) for _ in range(5)]
    assert numbers == [3, 3, 2, 0, 0]
    assert len({alarm.place for alarm in fleet.alarms}) == 8
    assert fleet.breakers.num_open() == {"full": 8}


def test_a_clock_that_goes_back_stands_still():
    fleet = Fleet(make_rule(for_s=0.0))
    fleet.now_s = 1e6
    fleet.see(**kv(0.99))
    fleet.now_s = 0.0  # the simulation began anew
    fleet.see_for(4.9, **kv(0.1))
    assert fleet.phases == [Phase.OPEN]
    fleet.see_for(2.4, **kv(0.1))
    assert fleet.phases == []


def test_a_clock_that_says_nothing_does_nothing():
    fleet = Fleet(make_rule(for_s=0.0))
    fleet.now_s = np.nan
    assert not fleet.see(**kv(0.99)).limits.masks.any()
    fleet.now_s = 5.0
    assert fleet.see(**kv(0.99)).limits.masks[0] == QUARANTINED


def test_a_state_of_another_fleet_is_refused():
    breakers = Breakers([make_rule()], make_places(num_replicas=4))
    state = make_state(make_places(num_replicas=6), 0.0, {})
    with pytest.raises(ValueError, match="state has 6 replica nodes, the breakers' places have 4"):
        breakers.step(state)
