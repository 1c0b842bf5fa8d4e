"""Which models' replicas stand on which servers: demand, memory and rules, with few moves.

Does not know: how a replica is started or stopped (`env/capacity.py`), or who makes the forecast.
GPUs of a server are taken as equals: which of them a replica has does not change what it serves.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...env.cluster import ReplicaSpec
from .conflicts import Conflict, smallest_conflict
from .placement_facts import PlacementFacts
from .placement_model import COST_PER_USD, PlacementModel, placement_model
from .placement_rules import PlanRule
from .solving import SolveStatus, gap_frac, quiet_solver, status_of

# s for a plan that is fixed already: only its cost is computed
STANDING_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Replicas of one model on one server."""

    model: str
    server: str
    gpu_indices: tuple[tuple[int, ...], ...]
    """GPUs of each replica, counted from 0."""
    num_starts: int
    """Of them, those that do not stand today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """The answer to a placement."""

    status: SolveStatus
    placed: tuple[Placed, ...] = ()
    """Empty without an answer."""
    num_starts: int = 0
    num_stops: int = 0
    missing_tokens_per_s: Mapping[str, float] = field(default_factory=dict)
    """What each model's forecast asks for beyond what stands."""
    objective_usd: float = float("inf")
    """Cost of an hour: GPUs, missing capacity, starts and stops."""
    bound_usd: float = float("-inf")
    """No plan costs less."""
    conflict: Conflict | None = None
    """If no plan keeps all rules: the fewest of them that contradict each other."""
    wall_s: float

    @property
    def gap_frac(self) -> float:
        """How far the cost may be above the least, as a share of it; 1 without an answer."""
        has_answer = self.status in (SolveStatus.OPTIMAL, SolveStatus.FEASIBLE)
        return gap_frac(self.objective_usd, self.bound_usd) if has_answer else 1.0

    @property
    def is_optimal(self) -> bool:
        """No plan costs less."""
        return self.status is SolveStatus.OPTIMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """How long is looked.

    Raises:
        ValueError: a limit is not above 0.
    """

    time_limit_s: float = 2.0
    """For a plan, model building included."""
    conflict_time_limit_s: float = 5.0
    """For the smallest conflict, if there is no plan."""
    num_workers: int = 1
    """Threads of CP-SAT."""

    def __post_init__(self) -> None:
        for name in ("time_limit_s", "conflict_time_limit_s", "num_workers"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be above 0, got {getattr(self, name)}"
                raise ValueError(msg)


def plan_placement(
    facts: PlacementFacts, rules: Sequence[PlanRule] = (), config: PlanConfig | None = None
) -> PlacementPlan:
    """Return the cheapest plan that is found in time and keeps all rules.

    Raises:
        MissingExtraError: OR-tools is not installed.
    """
    config = config or PlanConfig()
    began_s = time.perf_counter()
    built = placement_model(facts, rules)
    ruled = _ruled(built)
    solver = quiet_solver(
        max(1e-3, config.time_limit_s - (time.perf_counter() - began_s)),
        num_workers=config.num_workers,
    )
    status = status_of(solver.solve(ruled))
    if status in (SolveStatus.OPTIMAL, SolveStatus.FEASIBLE):
        bound_usd = solver.best_objective_bound / COST_PER_USD
        return _plan(built, solver, status=status, bound_usd=bound_usd, began_s=began_s)
    if status is SolveStatus.UNKNOWN:
        return _as_it_stands(built, ruled, began_s)
    conflict = smallest_conflict(built.rule_model(), time_limit_s=config.conflict_time_limit_s)
    return PlacementPlan(status=status, conflict=conflict, wall_s=time.perf_counter() - began_s)


def _ruled(built: PlacementModel) -> Any:
    """Return a model in which all rules hold, with today's placement as the hint."""
    ruled = built.model.clone()
    for literal in built.literals:
        ruled.add(ruled.get_bool_var_from_proto_index(literal.index) == 1)
    for key, count in built.counts.items():
        ruled.add_hint(ruled.get_int_var_from_proto_index(count.index), built.standing[key])
        start = built.starts[key]
        ruled.add_hint(ruled.get_int_var_from_proto_index(start.index), 0)
    return ruled


def _as_it_stands(built: PlacementModel, ruled: Any, began_s: float) -> PlacementPlan:
    """Return today's placement if it keeps all rules: nothing else was found in time."""
    fixed = ruled.clone()
    for key, count in built.counts.items():
        fixed.add(fixed.get_int_var_from_proto_index(count.index) == built.standing[key])
    solver = quiet_solver(STANDING_S)
    if status_of(solver.solve(fixed)) not in (SolveStatus.OPTIMAL, SolveStatus.FEASIBLE):
        return PlacementPlan(status=SolveStatus.UNKNOWN, wall_s=time.perf_counter() - began_s)
    # No cost is below 0, which is all that is known of other plans.
    return _plan(built, solver, status=SolveStatus.FEASIBLE, bound_usd=0.0, began_s=began_s)


def _plan(
    built: PlacementModel, solver: Any, *, status: SolveStatus, bound_usd: float, began_s: float
) -> PlacementPlan:
    counts = {key: int(solver.value(count)) for key, count in built.counts.items()}
    standing = built.standing
    starts = sum(max(0, number - standing[key]) for key, number in counts.items())
    stops = sum(max(0, number - counts.get(key, 0)) for key, number in standing.items())
    return PlacementPlan(
        status=status,
        placed=tuple(_placed(built, counts)),
        num_starts=starts,
        num_stops=stops + built.unplaced,
        missing_tokens_per_s={
            name: float(solver.value(missing)) for name, missing in built.missing.items()
        },
        objective_usd=solver.objective_value / COST_PER_USD,
        bound_usd=bound_usd,
        wall_s=time.perf_counter() - began_s,
    )


def _placed(built: PlacementModel, counts: Mapping[tuple[int, int], int]) -> list[Placed]:
    """Give replicas their GPUs: those that stand keep theirs, if the others still fit."""
    shapes, servers = built.facts.shapes, built.facts.servers
    placed = []
    for j, server in enumerate(servers):
        here = {i: number for (i, at), number in counts.items() if at == j and number}
        groups = _gpu_groups(built, j, here)
        placed += [
            Placed(
                model=shapes[i].model,
                server=server.name,
                gpu_indices=tuple(groups[i]),
                num_starts=max(0, number - built.standing[i, j]),
            )
            for i, number in here.items()
        ]
    return placed


def _gpu_groups(
    built: PlacementModel, server: int, here: Mapping[int, int]
) -> dict[int, list[tuple[int, ...]]]:
    """Return the GPUs of each replica by shape: kept ones first, then free ones, large first."""
    shapes, spec = built.facts.shapes, built.facts.servers[server]
    groups: dict[int, list[tuple[int, ...]]] = {i: [] for i in here}
    free = set(range(spec.num_gpus))
    for replica in built.facts.current:
        for i in _kept(shapes, replica, here) if replica.server == spec.name else ():
            if len(groups[i]) < here[i] and free.issuperset(replica.gpu_indices):
                groups[i].append(replica.gpu_indices)
                free -= set(replica.gpu_indices)
    for i in sorted(here, key=lambda i: -shapes[i].num_gpus):
        while len(groups[i]) < here[i]:
            taken = tuple(sorted(free)[: shapes[i].num_gpus])
            groups[i].append(taken)
            free -= set(taken)
    return groups


def _kept(shapes: Sequence[Any], replica: ReplicaSpec, here: Mapping[int, int]) -> list[int]:
    wanted = (replica.model, replica.num_gpus)
    return [i for i in here if (shapes[i].model, shapes[i].num_gpus) == wanted]
