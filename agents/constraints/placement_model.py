"""The CP-SAT model of a placement: counts of replicas by shape and server, each rule by a literal.

Does not know: how long is looked, or what becomes of the answer (`placement_plan.py`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .conflicts import NamedRule, RuleModel
from .placement_facts import PlacementFacts
from .placement_rules import (
    ApartRule,
    ChangeRule,
    PlacementRule,
    PlanRule,
    ReservedRule,
    SpendRule,
    Spread,
)
from .solving import cp_sat

# Costs are integers: this many to a dollar.
COST_PER_USD = 1000

# A rule of its own, whose literal may be dropped: name, sentence, and constraints.
_Clause = tuple[str, str, Sequence[Any]]


@dataclass(slots=True)
class PlacementModel:
    """Variables by (index of shape, index of server), and everything that is said of them."""

    facts: PlacementFacts
    model: Any
    counts: dict[tuple[int, int], Any] = field(default_factory=dict)
    starts: dict[tuple[int, int], Any] = field(default_factory=dict)
    missing: dict[str, Any] = field(default_factory=dict)
    """Tokens a second that a model's forecast asks for in vain."""
    standing: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Replicas of today that have a shape and a server of the facts."""
    unplaced: int = 0
    """Replicas of today that have none: the plan stops them."""
    rules: list[NamedRule] = field(default_factory=list)
    literals: list[Any] = field(default_factory=list)

    def rule_model(self) -> RuleModel:
        """Return the model with its rules, for conflicts."""
        return RuleModel(model=self.model, rules=tuple(self.rules), literals=tuple(self.literals))

    def of_model(self, model: str, servers: Iterable[int] | None = None) -> list[Any]:
        """Return the counts of a model's replicas, on some servers or all."""
        wanted = None if servers is None else set(servers)
        return [
            count
            for (shape, server), count in self.counts.items()
            if self.facts.shapes[shape].model == model and (wanted is None or server in wanted)
        ]

    def groups(self, spread: Spread) -> Mapping[str, list[int]]:
        """Return indices of servers by zone, or each by itself."""
        found: dict[str, list[int]] = {}
        for index, server in enumerate(self.facts.servers):
            name = server.zone if spread is Spread.ZONES else server.name
            found.setdefault(name, []).append(index)
        return found


def placement_model(facts: PlacementFacts, rules: Sequence[PlanRule]) -> PlacementModel:
    """Return the model of a placement under rules.

    Raises:
        MissingExtraError: OR-tools is not installed.
    """
    built = PlacementModel(facts, cp_sat().CpModel())
    _add_counts(built)
    _add_demand(built)
    for rule in rules:
        for name, sentence, constraints in _clauses(built, rule):
            literal = built.model.new_bool_var("")
            for constraint in constraints:
                built.model.add(constraint).only_enforce_if(literal)
            built.rules.append(NamedRule(name, sentence))
            built.literals.append(literal)
    _add_objective(built)
    return built


def _add_counts(built: PlacementModel) -> None:
    """Let each server hold what its GPUs can."""
    facts, model = built.facts, built.model
    shape_of = {(s.model, s.gpu, s.num_gpus): i for i, s in enumerate(facts.shapes)}
    server_of = {server.name: i for i, server in enumerate(facts.servers)}
    for replica in facts.current:
        at = server_of.get(replica.server)
        gpu = "" if at is None else facts.servers[at].gpu
        what = shape_of.get((replica.model, gpu, replica.num_gpus))
        if what is None or at is None:
            built.unplaced += 1
        else:
            built.standing[what, at] += 1
    for j, server in enumerate(facts.servers):
        used = []
        for i, shape in enumerate(facts.shapes):
            most = server.num_gpus // shape.num_gpus if shape.gpu == server.gpu else 0
            if most == 0:
                continue
            count = model.new_int_var(0, most, "")
            built.counts[i, j] = count
            used.append(shape.num_gpus * count)
            start = model.new_int_var(0, most, "")
            model.add(start >= count - built.standing[i, j])
            built.starts[i, j] = start
        model.add(sum(used) <= server.num_gpus)


def _add_demand(built: PlacementModel) -> None:
    facts, model = built.facts, built.model
    for name, demand in facts.demand_tokens_per_s.items():
        wanted = max(0, round(demand))
        missing = model.new_int_var(0, wanted, "")
        served = sum(
            int(facts.shapes[i].tokens_per_s) * count
            for (i, _), count in built.counts.items()
            if facts.shapes[i].model == name
        )
        model.add(missing + served >= wanted)
        built.missing[name] = missing


def _spend(built: PlacementModel) -> Any:
    """Return the cost of the GPUs in use, in integer units an hour."""
    shapes, price = built.facts.shapes, built.facts.costs.usd_per_gpu_hour
    return sum(
        round(COST_PER_USD * price[shapes[i].gpu] * shapes[i].num_gpus) * count
        for (i, _), count in built.counts.items()
    )


def _add_objective(built: PlacementModel) -> None:
    costs = built.facts.costs
    missing_cost = max(1, round(COST_PER_USD * costs.usd_per_missing_token_per_s))
    start_cost = round(COST_PER_USD * costs.usd_per_start)
    stop_cost = round(COST_PER_USD * costs.usd_per_stop)
    total = _spend(built) + missing_cost * sum(built.missing.values())
    for key, start in built.starts.items():
        # Stops are what stood, with what started, less what stands.
        stops = built.standing[key] + start - built.counts[key]
        total += start_cost * start + stop_cost * stops
    built.model.minimize(total + stop_cost * built.unplaced)


def _clauses(built: PlacementModel, rule: PlanRule) -> Iterator[_Clause]:
    """Yield the parts of a rule that can be dropped one by one."""
    if isinstance(rule, PlacementRule):
        yield from _placement_clauses(built, rule)
    elif isinstance(rule, ApartRule):
        yield _apart_clause(built, rule)
    elif isinstance(rule, ReservedRule):
        yield _reserved_clause(built, rule)
    elif isinstance(rule, ChangeRule):
        limit = sum(built.starts.values()) <= rule.max_starts
        yield "max_starts", rule.sentence(), [limit]
    elif isinstance(rule, SpendRule):
        most = round(COST_PER_USD * rule.max_usd_per_hour)
        yield "max_usd_per_hour", rule.sentence(), [_spend(built) <= most]


def _placement_clauses(built: PlacementModel, rule: PlacementRule) -> Iterator[_Clause]:
    model, total = rule.model, sum(built.of_model(rule.model))
    if rule.min_replicas:
        text = f"Model '{model}' has at least {rule.min_replicas} replicas."
        yield f"{model}.min_replicas", text, [total >= rule.min_replicas]
    if rule.max_replicas is not None:
        text = f"Model '{model}' has at most {rule.max_replicas} replicas."
        yield f"{model}.max_replicas", text, [total <= rule.max_replicas]
    for key, allowed, attribute, where in (
        ("zones", rule.zones, "zone", "stays in zone"),
        ("servers", rule.servers, "name", "stays on server"),
    ):
        if allowed:
            outside = [
                index
                for index, server in enumerate(built.facts.servers)
                if getattr(server, attribute) not in allowed
            ]
            text = f"Model '{model}' {where} {' or '.join(map(repr, allowed))}."
            yield f"{model}.{key}", text, [sum(built.of_model(model, outside)) <= 0]
    if rule.spread is not None:
        text = f"Model '{model}' stands in at least two {rule.spread}."
        groups = built.groups(rule.spread).values()
        # Not all in one: outside each, there is at least one.
        apart = [total - sum(built.of_model(model, group)) >= 1 for group in groups]
        yield f"{model}.spread", text, apart


def _apart_clause(built: PlacementModel, rule: ApartRule) -> _Clause:
    constraints = []
    most = sum(server.num_gpus for server in built.facts.servers)
    first, second = rule.models
    for group in built.groups(rule.apart).values():
        is_first = built.model.new_bool_var("")
        constraints.append(sum(built.of_model(first, group)) <= most * is_first)
        constraints.append(sum(built.of_model(second, group)) <= most * (1 - is_first))
    return f"{first} apart from {second}", rule.sentence(), constraints


def _reserved_clause(built: PlacementModel, rule: ReservedRule) -> _Clause:
    servers = [i for i, server in enumerate(built.facts.servers) if server.name in rule.servers]
    others = {shape.model for shape in built.facts.shapes} - set(rule.models)
    foreign = sum(count for name in sorted(others) for count in built.of_model(name, servers))
    return f"pool {rule.pool}", rule.sentence(), [foreign <= 0]
