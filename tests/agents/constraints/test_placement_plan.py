"""Placements: known answers, brute force on tiny fleets, rules, and named conflicts."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents.constraints.placement_facts import (
    PlacementCosts,
    PlacementFacts,
    ReplicaShape,
    shapes_that_fit,
)
from trimtab.agents.constraints.placement_plan import PlacementPlan, PlanConfig, plan_placement
from trimtab.agents.constraints.placement_rules import (
    ApartRule,
    ChangeRule,
    PlacementRule,
    PlanRule,
    ReservedRule,
    SpendRule,
    Spread,
)
from trimtab.agents.constraints.solving import SolveStatus
from trimtab.env.cluster import ReplicaSpec, ServerSpec

pytest.importorskip("ortools")

SMALL, LARGE = "llama-3-8b", "llama-3-70b"


def make_servers(num: int, num_gpus: int = 2, gpu: str = "H100-80G") -> tuple[ServerSpec, ...]:
    """Servers s0, s1, ... by turns in zones east and west."""
    return tuple(
        ServerSpec(name=f"s{i}", zone=("east", "west")[i % 2], gpu=gpu, num_gpus=num_gpus)
        for i in range(num)
    )


def make_facts(
    servers: tuple[ServerSpec, ...], demand: dict[str, float], *current: ReplicaSpec
) -> PlacementFacts:
    """A small model on one GPU at 1000 tokens/s, a large one on two at 500; 2 USD a GPU-hour."""
    return PlacementFacts(
        servers=servers,
        shapes=(
            ReplicaShape(model=SMALL, gpu="H100-80G", num_gpus=1, tokens_per_s=1000.0),
            ReplicaShape(model=LARGE, gpu="H100-80G", num_gpus=2, tokens_per_s=500.0),
        ),
        demand_tokens_per_s=demand,
        current=current,
        costs=PlacementCosts(usd_per_gpu_hour={"H100-80G": 2.0}),
    )


def replica(model: str, server: str, *gpus: int) -> ReplicaSpec:
    return ReplicaSpec(name=f"{model}-{server}", server=server, model=model, gpu_indices=gpus)


def numbers(plan: PlacementPlan) -> Counter[tuple[str, str]]:
    return Counter(
        {(placed.model, placed.server): len(placed.gpu_indices) for placed in plan.placed}
    )


def conflict_names(plan: PlacementPlan) -> set[str]:
    assert plan.status is SolveStatus.INFEASIBLE
    assert plan.conflict is not None
    assert plan.conflict.is_minimal
    assert plan.conflict.is_smallest
    return {rule.name for rule in plan.conflict.rules}


def test_demand_decides_how_many_stand() -> None:
    plan = plan_placement(make_facts(make_servers(2), {SMALL: 1500.0, LARGE: 480.0}))
    assert plan.is_optimal
    assert sum(n for (model, _), n in numbers(plan).items() if model == SMALL) == 2
    assert sum(n for (model, _), n in numbers(plan).items() if model == LARGE) == 1
    # four GPUs at 2 USD and three starts at 0.5
    assert plan.objective_usd == pytest.approx(9.5)
    assert plan.bound_usd == pytest.approx(9.5)
    assert plan.gap_frac == 0.0
    assert plan.num_starts == 3
    assert plan.missing_tokens_per_s == {SMALL: 0.0, LARGE: 0.0}


def test_what_stands_stays_with_its_gpus() -> None:
    current = (replica(SMALL, "s1", 1), replica(LARGE, "s2", 0, 1))
    plan = plan_placement(make_facts(make_servers(4), {SMALL: 1900.0, LARGE: 0.0}, *current))
    assert plan.num_starts == 1
    assert plan.num_stops == 1
    (kept,) = [placed for placed in plan.placed if placed.server == "s1"]
    assert (1,) in kept.gpu_indices


def test_without_time_today_s_placement_is_kept_if_it_keeps_the_rules() -> None:
    current = tuple(replica(SMALL, f"s{i}", 0) for i in range(40))
    facts = make_facts(make_servers(60), {SMALL: 40_000.0, LARGE: 9_000.0}, *current)
    no_time = PlanConfig(time_limit_s=1e-6)
    plan = plan_placement(facts, [PlacementRule(model=SMALL, min_replicas=30)], no_time)
    # a plan that is better may be found all the same
    assert plan.objective_usd <= 40 * 2.0 + 0.01 * 9_000.0
    assert 0.0 <= plan.bound_usd <= plan.objective_usd
    plan = plan_placement(facts, [PlacementRule(model=SMALL, min_replicas=41)], no_time)
    assert plan.status is not SolveStatus.INFEASIBLE


def test_demand_beyond_the_gpus_is_reported_as_missing() -> None:
    plan = plan_placement(make_facts(make_servers(1), {SMALL: 5000.0}))
    assert numbers(plan) == {(SMALL, "s0"): 2}
    assert plan.missing_tokens_per_s == {SMALL: 3000.0}


def test_capacity_that_costs_more_than_it_is_worth_is_left() -> None:
    # a replica for 100 tokens/s costs 2.5 USD, going without them 1 USD
    plan = plan_placement(make_facts(make_servers(1), {SMALL: 100.0}))
    assert plan.placed == ()
    assert plan.missing_tokens_per_s == {SMALL: 100.0}
    assert plan.objective_usd == pytest.approx(1.0)
    assert plan.is_optimal


@pytest.mark.parametrize("spread", list(Spread))
def test_spread_and_places(spread: Spread) -> None:
    rule = PlacementRule(model=SMALL, min_replicas=2, spread=spread)
    plan = plan_placement(make_facts(make_servers(3), {}), [rule])
    zones = {server.name: server.zone for server in make_servers(3)}
    servers = {server for _, server in numbers(plan)}
    assert len(servers) == 2
    assert spread is Spread.SERVERS or len({zones[name] for name in servers}) == 2
    west = PlacementRule(model=SMALL, min_replicas=2, zones=("west",))
    assert numbers(plan_placement(make_facts(make_servers(3), {}), [west])) == {(SMALL, "s1"): 2}
    there = PlacementRule(model=SMALL, min_replicas=1, servers=("s2",))
    assert numbers(plan_placement(make_facts(make_servers(3), {}), [there])) == {(SMALL, "s2"): 1}


def test_models_apart_and_servers_reserved() -> None:
    rules: list[PlanRule] = [
        PlacementRule(model=SMALL, min_replicas=2, max_replicas=2),
        PlacementRule(model=LARGE, min_replicas=1),
        ApartRule(models=(SMALL, LARGE), apart=Spread.ZONES),
        ReservedRule(pool="vip", servers=("s0", "s2"), models=(LARGE,)),
    ]
    plan = plan_placement(make_facts(make_servers(4), {}), rules)
    zones = {server.name: server.zone for server in make_servers(4)}
    for model, server in numbers(plan):
        assert zones[server] == ("west" if model == SMALL else "east")


def test_rules_that_clash_are_named() -> None:
    rules: list[PlanRule] = [
        PlacementRule(model=SMALL, min_replicas=3, zones=("east",)),
        PlacementRule(model=LARGE, min_replicas=1),
        ReservedRule(pool="vip", servers=("s0",), models=(LARGE,)),
        ChangeRule(max_starts=50),
        SpendRule(max_usd_per_hour=500.0),
    ]
    # east has s0 with two GPUs, and s2 with two
    plan = plan_placement(make_facts(make_servers(3), {}), rules)
    expected = {f"{SMALL}.min_replicas", f"{SMALL}.zones", "pool vip"}
    assert conflict_names(plan) == expected
    assert plan.conflict is not None
    text = plan.conflict.sentence()
    assert f"Model '{SMALL}' stays in zone 'east'." in text
    assert f"Pool 'vip' (servers 's0') is exclusive to model '{LARGE}'." in text


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (ChangeRule(max_starts=1), "max_starts"),
        (SpendRule(max_usd_per_hour=3.0), "max_usd_per_hour"),
    ],
)
def test_limits_clash_with_what_is_asked_for(rule: PlanRule, name: str) -> None:
    asked = PlacementRule(model=SMALL, min_replicas=2)
    plan = plan_placement(make_facts(make_servers(3), {}), [asked, rule])
    assert conflict_names(plan) == {name, f"{SMALL}.min_replicas"}


def test_more_than_all_gpus_hold_is_a_conflict_of_one() -> None:
    asked = PlacementRule(model=LARGE, min_replicas=4)
    plan = plan_placement(make_facts(make_servers(3), {}), [asked])
    assert conflict_names(plan) == {f"{LARGE}.min_replicas"}
    assert plan.conflict is not None
    assert plan.conflict.sentence().startswith("This rule cannot be kept")
    assert plan.gap_frac == 1.0


@settings(max_examples=30)
@given(
    st.integers(1, 2),
    st.tuples(st.integers(0, 3000), st.integers(0, 1500)),
    st.integers(0, 2),
    st.integers(0, 4),
)
def test_tiny_plans_are_the_cheapest_of_all(
    num_servers: int, demand: tuple[int, int], least: int, max_starts: int
) -> None:
    facts = make_facts(
        make_servers(num_servers),
        {SMALL: float(demand[0]), LARGE: float(demand[1])},
        replica(SMALL, "s0", 0),
    )
    rules = [PlacementRule(model=SMALL, min_replicas=least), ChangeRule(max_starts=max_starts)]
    best = None
    one_server = [(2, 0), (1, 0), (0, 0), (0, 1)]
    for counts in itertools.product(one_server, repeat=num_servers):
        small, large = (sum(c[i] for c in counts) for i in (0, 1))
        starts = small + large - (counts[0][0] > 0)
        if small < least or starts > max_starts:
            continue
        short = max(0, demand[0] - 1000 * small) + max(0, demand[1] - 500 * large)
        stops = counts[0][0] == 0
        cost = 2.0 * (small + 2 * large) + 0.01 * short + 0.5 * starts + 0.05 * stops
        best = cost if best is None else min(best, cost)
    plan = plan_placement(facts, rules, PlanConfig(time_limit_s=10.0))
    if best is None:
        assert plan.conflict is not None
    else:
        assert plan.is_optimal
        assert plan.objective_usd == pytest.approx(best)
    for placed in plan.placed:
        assert len(set(itertools.chain(*placed.gpu_indices))) <= 2


def test_only_shapes_whose_memory_suffices_are_offered() -> None:
    servers = (
        *make_servers(1, num_gpus=8),
        ServerSpec(name="x", zone="x", gpu="L40S-48G", num_gpus=8),
    )
    templates = [replica("llama-3-8b", "", 0), replica("llama-3-70b", "", 0)]
    templates.append(replica("llama-3-70b", "", 0, 1, 2, 3))
    rates = {(t.model, gpu, t.num_gpus): 1.0 for t in templates for gpu in ("H100-80G", "L40S-48G")}
    found = shapes_that_fit(templates, servers, rates, min_kv_tokens=200_000)
    assert {(s.model, s.gpu, s.num_gpus) for s in found} == {
        ("llama-3-8b", "H100-80G", 1),
        ("llama-3-70b", "H100-80G", 4),
    }


def test_faults_of_the_facts_are_named() -> None:
    with pytest.raises(ValueError, match="llama-3-8x"):
        shapes_that_fit([replica("llama-3-8x", "", 0)], make_servers(1), {}, min_kv_tokens=1)
    costs = PlacementCosts(usd_per_gpu_hour={})
    shape = ReplicaShape(model=SMALL, gpu="H100-80G", num_gpus=1, tokens_per_s=1.0)
    with pytest.raises(ValueError, match="price GPU 'H100-80G', got prices of none"):
        PlacementFacts(servers=(), shapes=(shape,), demand_tokens_per_s={}, costs=costs)
    shared = ReplicaSpec(name="a", server="s", model=SMALL, gpu_indices=(0,), gpu_frac=0.5)
    with pytest.raises(ValueError, match=r"replica .a. has gpu_frac 0\.5"):
        make_facts((), {}, shared)
    with pytest.raises(ValueError, match="model 'x' has a forecast but no shape"):
        PlacementFacts(servers=(), shapes=(), demand_tokens_per_s={"x": 1.0}, costs=costs)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ReplicaShape(model=SMALL, gpu="H100-80G", num_gpus=0, tokens_per_s=1.0)
    with pytest.raises(ValueError, match="usd_per_start must be at least 0, got -1"):
        PlacementCosts(usd_per_gpu_hour={}, usd_per_start=-1.0)
    with pytest.raises(ValueError, match=f"got '{SMALL}' twice"):
        ApartRule(models=(SMALL, SMALL))
    with pytest.raises(ValueError, match="pool 'vip' must name servers"):
        ReservedRule(pool="vip", servers=(), models=(SMALL,))
    with pytest.raises(ValueError, match="max_starts must be at least 0, got -1"):
        ChangeRule(max_starts=-1)
    with pytest.raises(ValueError, match="max_usd_per_hour must be at least 0, got -1"):
        SpendRule(max_usd_per_hour=-1.0)
    with pytest.raises(ValueError, match="time_limit_s must be above 0, got 0"):
        PlanConfig(time_limit_s=0.0)
