"""Moves of capacity: least ready replicas, moves a minute, dwell times, ranges of power caps."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents.shield.move_projection import (
    MoveLimits,
    Refusal,
    ReplicaCapacity,
    capacities,
    project_moves,
)
from trimtab.env.capacity import CapacityMove, MoveKind

AFTER = {
    MoveKind.START: "ready",
    MoveKind.WAKE: "ready",
    MoveKind.STOP: "stopped",
    MoveKind.SLEEP: "asleep",
}


def fleet(*states: str, zone: str = "z0"):
    return [ReplicaCapacity(place=("m", zone), state=state, gpu_limit_w=700.0) for state in states]


def ask(moves, replicas, history=(), *, now_s=0.0, **limits):
    asked = [
        CapacityMove(kind=MoveKind(kind), replica=replica, watts=watts)
        for kind, replica, watts in ((*move, None)[:3] for move in moves)
    ]
    return project_moves(asked, replicas, history, now_s=now_s, limits=MoveLimits(**limits))


def reasons(projection):
    return [(refused.reason, refused.amount) for refused in projection.refused]


def test_the_last_ready_replicas_of_a_place_stay():
    replicas = fleet("ready", "ready", "ready") + fleet("ready", zone="z1")
    projection = ask(
        [("stop", 0), ("sleep", 1), ("stop", 3)], replicas, least_ready={("m", "z0"): 2}
    )
    assert [move.replica for move in projection.allowed] == [0]
    # Places of which nothing is said keep one.
    assert reasons(projection) == [(Refusal.LEAST_READY, 1.0), (Refusal.LEAST_READY, 1.0)]
    assert ask([("stop", 3)], replicas, least_ready={("m", "z1"): 0}).allowed


def test_a_minute_has_so_many_moves():
    replicas = fleet(*["stopped"] * 4)
    first = ask([("start", 0), ("start", 1)], replicas, now_s=100.0, moves_per_min=2)
    assert len(first.allowed) == 2
    second = ask([("start", 2)], replicas, first.history, now_s=130.0, moves_per_min=2)
    assert reasons(second) == [(Refusal.TOO_MANY_MOVES, 30.0)]
    assert ask([("start", 2)], replicas, second.history, now_s=160.0, moves_per_min=2).allowed
    assert reasons(ask([("start", 2)], replicas, moves_per_min=0)) == [
        (Refusal.TOO_MANY_MOVES, math.inf)
    ]


def test_no_replica_goes_up_and_down_within_its_dwell_time():
    up = ask([("start", 0)], fleet("stopped", "ready"), now_s=10.0, dwell_s=90.0)
    replicas = fleet("ready", "ready")
    early = ask([("stop", 0)], replicas, up.history, now_s=60.0, dwell_s=90.0)
    assert reasons(early) == [(Refusal.DWELL, 40.0)]
    assert ask([("stop", 0)], replicas, early.history, now_s=100.0, dwell_s=90.0).allowed
    # Another replica has its own time.
    assert ask([("stop", 1)], replicas, up.history, now_s=60.0, dwell_s=90.0).allowed


def test_power_caps_stay_in_their_range_and_come_seldom():
    projection = ask(
        [("power_cap", 0, 50.0), ("power_cap", 1, 900.0), ("power_cap", 2, 400.0)],
        fleet("ready", "ready", "ready"),
        least_cap_frac=0.4,
    )
    assert [move.watts for move in projection.allowed] == [280.0, 700.0, 400.0]
    assert projection.clamped_w == {0: 230.0, 1: -200.0}
    again = ask([("power_cap", 0, 300.0)], fleet("ready"), projection.history, now_s=4.0)
    assert reasons(again) == [(Refusal.DWELL, 6.0)]
    assert reasons(ask([("power_cap", 0, math.nan)], fleet("ready"))) == [(Refusal.NOT_FINITE, 0)]


def test_what_cannot_be_done_is_refused_by_name():
    projection = ask(
        [("start", 9), ("start", 0), ("wake", 1), ("stop", 1), ("stop", 1)],
        fleet("ready", "stopped") + fleet("ready"),
    )
    assert [reason for reason, _ in reasons(projection)] == [
        Refusal.UNKNOWN_REPLICA,
        *[Refusal.WRONG_STATE] * 4,
    ]
    twice = ask([("stop", 0), ("stop", 0)], fleet("ready", "ready", "ready"))
    assert len(twice.allowed) == 1
    assert reasons(twice) == [(Refusal.WRONG_STATE, 0.0)]


def test_places_and_power_are_those_of_the_cluster(make_cluster):
    cluster = make_cluster(["H100-80G", "A100-80G"])
    known = capacities(cluster, ["ready", "asleep"])
    assert [replica.place for replica in known] == [("llama-3-8b", "z0")] * 2
    assert [replica.state for replica in known] == ["ready", "asleep"]
    assert [replica.gpu_limit_w for replica in known] == [
        cluster.gpu_of(replica).tdp_w for replica in cluster.replicas
    ]


@pytest.mark.parametrize("field", ["moves_per_min", "dwell_s", "cap_dwell_s"])
def test_limits_below_zero_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 0, got -1"):
        MoveLimits(**{field: -1})
    with pytest.raises(ValueError, match="least_cap_frac"):
        MoveLimits(least_cap_frac=0)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.sampled_from(["start", "wake", "stop", "sleep"]),
                  st.integers(0, 3)),
        max_size=60,
    )
)  # fmt: skip
def test_whatever_is_asked_a_place_is_served_and_no_replica_flaps(asked):
    states, history, now_s = ["ready"] * 4, (), 0.0
    made = []
    for gap_s, kind, replica in asked:
        now_s += gap_s
        projection = ask(
            [(kind, replica)], fleet(*states), history, now_s=now_s, moves_per_min=3, dwell_s=45.0
        )
        history = projection.history
        for move in projection.allowed:
            states[move.replica] = AFTER[move.kind]
            made.append((now_s, move.replica, move.kind in (MoveKind.START, MoveKind.WAKE)))
        assert states.count("ready") >= 1
    for at_s, replica, is_up in made:
        assert sum(at_s - 60 < other_s <= at_s for other_s, _, _ in made) <= 3
        assert not any(
            other == replica and up != is_up and at_s - 45 < other_s < at_s
            for other_s, other, up in made
        )
