"""The smallest set of rules that cannot hold together, named in plain words.

Every rule stands behind a literal of its own. CP-SAT names literals that suffice for a
contradiction; deletion shrinks them until each is needed. Whether a smaller conflict exists is then
settled by hitting sets: every conflict has at least one rule of each correction set (rules whose
removal leaves the others possible), so the fewest rules that hit all known correction sets are
either a conflict, and a smallest one, or give a further correction set.

Does not know: what the rules say.
Source: Ignatiev, Previti, Liffiton, Marques-Silva (2015), "Smallest MUS extraction with minimal
hitting set dualization".
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .solving import Deadline, SolveStatus, cp_sat, deadline_in, quiet_solver, status_of

# s for a correction set: any will do, a small one saves further solves
CORRECTION_S = 1.0


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule as people know it."""

    name: str
    """Short, and unique among the rules of a model."""
    sentence: str
    """What it asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleModel:
    """A CP-SAT model in which each rule holds only where its literal is true.

    What always holds (memory, numbers of GPUs) has no literal.
    """

    model: Any
    rules: tuple[NamedRule, ...]
    literals: tuple[Any, ...]
    """One per rule."""

    def __post_init__(self) -> None:
        if len(self.rules) != len(self.literals):
            counts = f"{len(self.literals)} for {len(self.rules)} rules"
            msg = f"literals must be one per rule, got {counts}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Rules that cannot hold together."""

    rules: tuple[NamedRule, ...]
    """None at all: what always holds is impossible by itself."""
    is_minimal: bool
    """All others hold together once any one of them is dropped."""
    is_smallest: bool
    """No conflict has fewer rules; this is proven."""
    num_solves: int
    wall_s: float

    def sentence(self) -> str:
        """Return the conflict in words."""
        if not self.rules:
            return "No answer exists even without any rule: there is too little room."
        if len(self.rules) == 1:
            return f"This rule cannot be kept: {self.rules[0].sentence}"
        listed = " ".join(f"({i}) {rule.sentence}" for i, rule in enumerate(self.rules, 1))
        count = f"These {len(self.rules)} rules cannot hold together"
        proof = " (no fewer rules contradict each other)" if self.is_smallest else ""
        last = "" if not self.is_minimal else " Dropping any one of them resolves this conflict."
        return f"{count}{proof}: {listed}{last}"


def smallest_conflict(
    rule_model: RuleModel, *, time_limit_s: float = 5.0, max_solves: int = 2000
) -> Conflict | None:
    """Return the fewest rules that cannot hold together; None if all can, or nothing is shown.

    Raises:
        MissingExtraError: OR-tools is not installed.
    """
    began_s = time.perf_counter()
    checker = _Checker(rule_model, deadline_in(time_limit_s), max_solves)
    everything = frozenset(range(len(rule_model.rules)))
    status, core = checker.core(everything)
    if status is not SolveStatus.INFEASIBLE:
        return None
    core, is_minimal = _shrink(checker, core)
    smallest, is_smallest = core, len(core) <= 1 and is_minimal
    if is_minimal and not is_smallest:
        smallest, is_smallest = _fewest(checker, core)
    return Conflict(
        rules=tuple(rule_model.rules[i] for i in sorted(smallest)),
        is_minimal=is_minimal,
        is_smallest=is_smallest,
        num_solves=checker.num_solves,
        wall_s=time.perf_counter() - began_s,
    )


class _Checker:
    """Asks CP-SAT whether some of the rules can hold together."""

    def __init__(self, rule_model: RuleModel, deadline: Deadline, max_solves: int) -> None:
        self._model = rule_model.model.clone()
        self._model.clear_objective()
        self._literals = [
            self._model.get_bool_var_from_proto_index(literal.index)
            for literal in rule_model.literals
        ]
        self._index_of = {literal.index: i for i, literal in enumerate(self._literals)}
        self._deadline = deadline
        self._max_solves = max_solves
        self.num_solves = 0

    @property
    def is_out_of_budget(self) -> bool:
        """Whether time or solves are used up."""
        return self._deadline.left_s() <= 0.0 or self.num_solves >= self._max_solves

    def _solve(
        self, rules: Iterable[int], limit_s: float = float("inf")
    ) -> tuple[SolveStatus, Any]:
        self.num_solves += 1
        self._model.clear_assumptions()
        self._model.add_assumptions([self._literals[i] for i in sorted(rules)])
        # One worker: with several, cores of assumptions are not given.
        solver = quiet_solver(max(1e-3, min(limit_s, self._deadline.left_s())))
        return status_of(solver.solve(self._model)), solver

    def core(self, rules: frozenset[int]) -> tuple[SolveStatus, frozenset[int]]:
        """Return whether the rules can hold together, and if not, some that already cannot."""
        if self.is_out_of_budget:
            return SolveStatus.UNKNOWN, frozenset()
        status, solver = self._solve(rules)
        if status is not SolveStatus.INFEASIBLE:
            return status, frozenset()
        named = solver.sufficient_assumptions_for_infeasibility()
        return status, frozenset(self._index_of[i] for i in named) & rules

    def correction(self, rules: frozenset[int]) -> frozenset[int] | None:
        """Return few other rules to drop so that these and the rest can hold together.

        None if that was not settled in time, or these alone cannot.
        """
        if self.is_out_of_budget:
            return None
        self._model.maximize(sum(self._literals))
        status, solver = self._solve(rules, CORRECTION_S)
        self._model.clear_objective()
        if status not in (SolveStatus.OPTIMAL, SolveStatus.FEASIBLE):
            return None
        values = solver.boolean_value
        return frozenset(i for i, literal in enumerate(self._literals) if not values(literal))


def _shrink(checker: _Checker, core: frozenset[int]) -> tuple[frozenset[int], bool]:
    """Drop rules of a conflict that it does not need; return it and whether each is needed."""
    needed: set[int] = set()
    while core - needed:
        rule = max(core - needed)
        status, smaller = checker.core(core - {rule})
        if status is SolveStatus.UNKNOWN:
            return core, False
        if status is SolveStatus.INFEASIBLE:
            core = smaller
        else:
            needed.add(rule)
    return core, True


def _fewest(checker: _Checker, core: frozenset[int]) -> tuple[frozenset[int], bool]:
    """Return a conflict with as few rules as possible, and whether no smaller one exists."""
    corrections: list[frozenset[int]] = []
    best = core
    while True:
        hitting = _hitting_set(corrections, checker)
        if hitting is None:
            return best, False
        if len(hitting) >= len(best):
            # Every conflict hits all correction sets, with at least so many rules.
            return best, True
        status, _ = checker.core(hitting)
        if status is SolveStatus.INFEASIBLE:
            return hitting, True
        correction = checker.correction(hitting)
        if correction is None:
            return best, False
        corrections.append(correction)


def _hitting_set(sets: Sequence[frozenset[int]], checker: _Checker) -> frozenset[int] | None:
    """Return the fewest rules that include one of each set; None if not found in time."""
    if not sets:
        return frozenset()
    if checker.is_out_of_budget:
        return None
    model = cp_sat().CpModel()
    chosen = {i: model.new_bool_var("") for i in sorted(frozenset().union(*sets))}
    for one in sets:
        model.add_bool_or([chosen[i] for i in sorted(one)])
    model.minimize(sum(chosen.values()))
    solver = quiet_solver(1.0)
    if status_of(solver.solve(model)) is not SolveStatus.OPTIMAL:
        return None
    return frozenset(i for i, literal in chosen.items() if solver.boolean_value(literal))
