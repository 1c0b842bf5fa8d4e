"""Request maps: rules hold, tiny ones are the best there is, and the clock is kept."""

import itertools
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psutil import Process

from trimtab.agents.constraints.map_inputs import (
    MapRules,
    QueuedRequests,
    ReplicaRoom,
    map_rules,
    map_table,
)
from trimtab.agents.constraints.map_kernel import (
    BARRED,
    COST_SCALE,
    can_place,
    empty_state,
    place,
    total_cost,
)
from trimtab.agents.constraints.request_map import (
    MapConfig,
    RequestMap,
    Unplaced,
    map_requests,
    warm_up,
)
from trimtab.agents.constraints.solving import SolveStatus
from trimtab.env.masks import Mask
from trimtab.env.restrictions import unrestricted
from trimtab.traces.errors import MissingExtraError

pytest.importorskip("ortools")

Case = tuple[QueuedRequests, ReplicaRoom, MapRules]


def make_requests(num: int, num_replicas: int, **changes: object) -> QueuedRequests:
    arrays: dict[str, object] = {
        "groups": np.zeros(num, np.int64),
        "tenants": np.zeros(num, np.int64),
        "input_tokens": np.full(num, 100),
        "hit_tokens": np.zeros((num, num_replicas), np.int64),
        "expected_output_tokens": np.full(num, 50.0),
        "ttft_slo_s": np.full(num, 0.5),
        "waited_s": np.zeros(num),
        "weights": np.ones(num),
        "priorities": np.zeros(num, np.int64),
    }
    return QueuedRequests(**{**arrays, **changes})  # type: ignore[arg-type]


def make_room(num: int, **changes: object) -> ReplicaRoom:
    arrays: dict[str, object] = {
        "free_kv_tokens": np.full(num, 10_000),
        "free_slots": np.full(num, 10),
        "batch_tokens": np.full(num, 100),
        "backlog_s": np.zeros(num),
        "prefill_token_s": np.full(num, 1e-3),
        "iteration_s": np.full(num, 0.0),
    }
    return ReplicaRoom(**{**arrays, **changes})  # type: ignore[arg-type]


def make_rules(num_replicas: int, num_groups: int = 1, **changes: object) -> MapRules:
    arrays: dict[str, object] = {
        "masks": np.zeros((num_groups, num_replicas), np.uint16),
        "penalties": np.zeros((num_groups, num_replicas)),
        "is_exclusive": np.zeros(num_groups, np.bool_),
        "occupied": np.zeros((num_groups, num_replicas), np.bool_),
        "deficits_frac": np.zeros(num_groups),
    }
    return MapRules(**{**arrays, **changes})  # type: ignore[arg-type]


def make_case(seed: int, num: int, num_replicas: int, num_tenants: int = 3) -> Case:
    """A random case in which room is scarce."""
    random = np.random.default_rng(seed)
    tenants = random.integers(0, num_tenants, num)
    inputs = random.integers(20, 300, num)
    hits = random.uniform(0, 0.9, (num, num_replicas)) * (random.random((num, num_replicas)) < 0.3)
    requests = make_requests(
        num,
        num_replicas,
        groups=tenants,
        tenants=tenants,
        input_tokens=inputs,
        hit_tokens=(hits * inputs[:, None]).astype(np.int64),
        expected_output_tokens=random.uniform(10, 200, num),
        ttft_slo_s=random.choice([0.1, 0.3, 1.0], num),
        waited_s=random.exponential(0.1, num),
        weights=random.choice([1.0, 2.0], num),
        priorities=random.integers(0, 2, num),
    )
    room = make_room(
        num_replicas,
        free_kv_tokens=random.integers(100, 1200, num_replicas),
        free_slots=random.integers(0, 5, num_replicas),
        batch_tokens=random.integers(0, 250, num_replicas),
        backlog_s=random.exponential(0.05, num_replicas),
        iteration_s=random.uniform(0.005, 0.02, num_replicas),
    )
    shape = (num_tenants, num_replicas)
    rules = make_rules(
        num_replicas,
        num_tenants,
        masks=np.where(random.random(shape) < 0.2, int(Mask.TENANT), 0).astype(np.uint16),
        penalties=random.choice([0.0, 0.5], shape),
        is_exclusive=random.random(num_tenants) < 0.3,
        occupied=random.random(shape) < 0.1,
        deficits_frac=random.choice([0.0, 0.5], num_tenants),
    )
    return requests, room, rules


def check_rules(case: Case, found: RequestMap, num_batches: int) -> None:
    """Assert every hard rule, from the inputs alone."""
    requests, room, rules = case
    uncached = np.maximum(requests.input_tokens[:, None] - requests.hit_tokens, 1)
    for r in range(len(room.free_slots)):
        here = np.flatnonzero(found.is_placed & (found.replica == r))
        if not len(here):
            continue
        assert (rules.masks[requests.groups[here], r] == 0).all()
        assert len(here) <= room.free_slots[r]
        kv = uncached[here, r] + np.ceil(requests.expected_output_tokens[here])
        assert kv.sum() <= room.free_kv_tokens[r]
        window = num_batches * room.batch_tokens[r]
        for k in range(num_batches):
            done = here[found.batch[here] <= k]
            used = np.minimum(uncached[done, r], window).sum()
            assert used <= (k + 1) * room.batch_tokens[r]
        present = set(requests.tenants[here]) | set(np.flatnonzero(rules.occupied[:, r]))
        mine = set(requests.tenants[here])
        assert len(present) == 1 or not any(rules.is_exclusive[t] for t in mine)
        assert not any(rules.is_exclusive[t] for t in present - mine) or len(present) == 1
        for k in range(num_batches):
            positions = found.position[here[found.batch[here] == k]]
            assert sorted(positions) == list(range(len(positions)))
    assert set(found.reasons) == set(np.flatnonzero(~found.is_placed))


def brute_force(case: Case, num_batches: int) -> float:
    """Cost of the best of all maps."""
    table = map_table(*case, num_batches)
    open_places = [
        [None, *(tuple(place) for place in np.argwhere(one < BARRED))] for one in table.costs
    ]
    best = float("inf")
    for choice in itertools.product(*open_places):
        state = empty_state(table)
        for q, where in enumerate(choice):
            if where is None:
                continue
            if not can_place(table, state, q, *where):
                break
            place(table, state, q, *where)
        else:
            best = min(best, total_cost(table, state))
    return best / COST_SCALE


def test_requests_beyond_a_batch_go_to_the_next_or_to_the_neighbour() -> None:
    # a full iteration takes 0.1 s: one request of 100 tokens fits in each
    found = map_requests(make_requests(4, 2), make_room(2), make_rules(2))
    assert found.is_placed.all()
    assert found.is_optimal
    assert sorted(zip(found.replica, found.batch, strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # on time all of them: a twentieth of the time's share of the limit, 0.1 and 0.2 of 0.5 s
    assert found.objective == pytest.approx(0.05 * (0.2 + 0.2 + 0.4 + 0.4))
    assert found.gap_frac == 0.0


def test_who_has_less_time_goes_first() -> None:
    requests = make_requests(2, 1, ttft_slo_s=np.array([1.0, 0.1]))
    found = map_requests(requests, make_room(1), make_rules(1))
    assert found.batch.tolist() == [1, 0]


def test_a_cached_prompt_goes_where_it_is_cached() -> None:
    hits = np.array([[0, 0, 90]])
    room = make_room(3, batch_tokens=np.full(3, 20))
    found = map_requests(make_requests(1, 3, hit_tokens=hits), room, make_rules(3))
    assert found.replica.tolist() == [2]
    assert found.batch.tolist() == [0]


def test_a_prompt_longer_than_the_window_takes_all_of_it() -> None:
    requests = make_requests(2, 1, input_tokens=np.array([1000, 50]))
    found = map_requests(requests, make_room(1), make_rules(1), MapConfig(num_batches=3))
    assert found.is_placed.sum() == 1
    assert found.reasons in ({0: Unplaced.NO_ROOM}, {1: Unplaced.NO_ROOM}, {0: Unplaced.LATER})


def test_a_deficit_decides_who_waits() -> None:
    requests = make_requests(2, 1, tenants=np.array([0, 1]), groups=np.array([0, 1]))
    room = make_room(1, free_slots=np.array([1]))
    for lucky in (0, 1):
        deficits = np.zeros(2)
        deficits[lucky] = 0.5
        found = map_requests(requests, room, make_rules(1, 2, deficits_frac=deficits))
        assert found.is_placed.tolist() == [lucky == 0, lucky == 1]
        assert found.reasons == {1 - lucky: Unplaced.NO_ROOM}


def test_an_exclusive_tenant_shares_no_replica() -> None:
    tenants = np.array([0, 1, 1])
    requests = make_requests(3, 2, tenants=tenants, groups=tenants)
    rules = make_rules(2, 2, is_exclusive=np.array([True, False]))
    found = map_requests(requests, make_room(2), rules)
    assert found.is_placed.all()
    assert found.replica[0] != found.replica[1] == found.replica[2]
    there = replace(rules, occupied=np.array([[False, False], [True, True]]))
    found = map_requests(requests, make_room(2), there)
    assert found.is_placed.tolist() == [False, True, True]


def test_reasons_of_those_that_stay() -> None:
    requests = make_requests(
        3, 1, groups=np.array([0, 1, 1]), input_tokens=np.array([10, 20_000, 10])
    )
    masks = np.array([[int(Mask.REGION)], [0]], np.uint16)
    rules = make_rules(1, 2, masks=masks)
    found = map_requests(requests, make_room(1, backlog_s=np.zeros(1)), rules)
    assert found.reasons == {0: Unplaced.BARRED, 1: Unplaced.TOO_LARGE}


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 2))
def test_tiny_maps_are_the_best_of_all(seed: int, num: int, num_replicas: int) -> None:
    case = make_case(seed, num, num_replicas)
    found = map_requests(*case, MapConfig(time_limit_s=5.0, num_batches=2))
    assert found.status is SolveStatus.OPTIMAL
    assert found.objective == pytest.approx(brute_force(case, 2))
    assert found.bound == found.objective
    check_rules(case, found, 2)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 8))
def test_rules_hold_and_greedy_is_never_better(seed: int, num: int, num_replicas: int) -> None:
    case = make_case(seed, num, num_replicas)
    found = map_requests(*case, MapConfig(time_limit_s=0.03, max_columns=40))
    check_rules(case, found, 4)
    assert found.bound <= found.objective <= found.greedy_objective
    assert 0.0 <= found.gap_frac <= 1.0


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_no_bound_is_above_the_best(seed: int) -> None:
    case = make_case(seed, 4, 2)
    quick = map_requests(*case, MapConfig(time_limit_s=1e-6, num_batches=2))
    assert quick.bound <= brute_force(case, 2) + 1e-9


def test_a_previous_map_is_where_the_search_begins() -> None:
    case = make_case(5, 40, 8)
    first = map_requests(*case, MapConfig(time_limit_s=0.3))
    again = map_requests(*case, MapConfig(time_limit_s=1e-6), previous=first)
    assert again.greedy_objective <= first.greedy_objective
    with pytest.raises(ValueError, match="a map of the same 1 requests, got one of 40"):
        map_requests(make_requests(1, 1), make_room(1), make_rules(1), previous=first)


def test_the_answer_is_there_at_the_deadline() -> None:
    warm_up()
    found = map_requests(*make_case(1, 256, 64), MapConfig(time_limit_s=0.1))
    # Other processes may take the core in between; `benchmarks/request_map.py` times it.
    assert found.first_feasible_s <= found.wall_s < 3.0


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_thread_and_no_output_is_left_behind(
    num_workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    warm_up()
    before = Process().num_threads()
    config = MapConfig(time_limit_s=0.1, num_workers=num_workers)
    assert map_requests(*make_case(3, 60, 12), config).num_rounds > 0
    # The kernel lists a thread for a moment after its end.
    for _ in range(200):
        if Process().num_threads() <= before:
            break
        time.sleep(0.01)
    assert Process().num_threads() <= before
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_compiled_rules_and_limits_become_map_rules() -> None:
    rules = map_rules(unrestricted(3), num_tenants=2)
    assert rules.masks.shape == (1, 3)
    assert rules.occupied.shape == (2, 3)


def test_faults_of_the_input_are_named() -> None:
    with pytest.raises(ValueError, match="ttft_slo_s must be above 0, got 0"):
        make_requests(1, 1, ttft_slo_s=np.zeros(1))
    with pytest.raises(ValueError, match="waited_s must have 2 rows"):
        make_requests(2, 1, waited_s=np.zeros(3))
    with pytest.raises(ValueError, match=r"free_kv_tokens must have shape \(1,\), got \(2,\)"):
        map_requests(make_requests(1, 1), make_room(2), make_rules(1))
    with pytest.raises(ValueError, match="groups must be from 0 to 0, got 1 to 1"):
        map_requests(make_requests(1, 1, groups=np.ones(1, int)), make_room(1), make_rules(1))
    with pytest.raises(ValueError, match="time_limit_s must be above 0, got 0"):
        MapConfig(time_limit_s=0.0)
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        MapConfig(num_batches=0)


def test_without_or_tools_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[solver\]'"):
        warm_up()
