"""Improves a request map by CP-SAT, part by part, until a deadline.

Each round frees some replicas: the requests on them and some that wait are placed anew, all others
stay. A problem that is small enough is solved whole, which may prove the answer optimal.

Does not know: how costs arise, or the bound.
Source: large neighbourhood search, Shaw (1998), "Using constraint programming and local search
methods to solve vehicle routing problems".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .map_kernel import BARRED, MapState, MapTable, place, remove, total_cost
from .solving import Deadline, SolveStatus, cp_sat, quiet_solver, status_of

IntArray = NDArray[np.int64]

# s that a round may take, so that one hard part does not use up the time of all
ROUND_S = 0.02
# s before the deadline at which no further round begins: building and setting up a small model
SETUP_S = 0.003
# Replicas that a round frees around a request.
NUM_FREED = 4


@dataclass(slots=True)
class SearchResult:
    """What the search did to the state it was given."""

    cost: int
    """Of the state, in integer units."""
    is_proven: bool = False
    """No map costs less."""
    num_rounds: int = 0
    """Models solved."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Requests that are placed anew, and the (request, replica, batch) columns to choose from."""

    requests: IntArray
    columns: IntArray  # [columns, 3]
    is_whole: bool


class MapSearch:
    """Large neighbourhood search over one problem."""

    def __init__(
        self,
        table: MapTable,
        prices: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
        *,
        max_columns: int,
        num_workers: int = 1,
        seed: int = 1,
    ) -> None:
        """Prepare a search whose models have at most about `max_columns` choices.

        Shapes: `prices` are those of `map_kernel.lower_bound`.
        """
        self._table = table
        self._max_columns = max_columns
        self._num_workers = num_workers
        self._random = np.random.default_rng(seed)
        kv_price, slot_price, token_price = prices
        fixed = kv_price * table.kv_tokens + slot_price  # [Q, R]
        tokens = token_price[None] * table.batch_tokens[:, :, None]  # [Q, R, K]
        self._priced = (table.costs + fixed[:, :, None] + tokens).min(axis=2)
        self._least = np.minimum(self._priced.min(axis=1), table.wait_costs)
        self._is_open = (table.costs < BARRED) & (table.costs < table.wait_costs[:, None, None])
        self.is_small = int(self._is_open.sum()) <= max_columns

    def improve(self, state: MapState, deadline: Deadline, lower_bound: int) -> SearchResult:
        """Improve `state` in place until the deadline, the bound, or a proof."""
        result = SearchResult(int(total_cost(self._table, state)))
        while result.cost > lower_bound and deadline.left_s() > SETUP_S:
            part = self._whole() if self.is_small else self._around(self._pick(state), state)
            result.num_rounds += 1
            limit_s = deadline.left_s() if part.is_whole else min(ROUND_S, deadline.left_s())
            status = self._solve(part, state, limit_s) if len(part.columns) else SolveStatus.OPTIMAL
            result.cost = int(total_cost(self._table, state))
            if part.is_whole:
                result.is_proven = status is SolveStatus.OPTIMAL
                break
        return result

    def _pick(self, state: MapState) -> int:
        """Return a request, the likelier the more it costs above the least that it could."""
        table, rows = self._table, np.arange(len(state.is_placed))
        placed = table.costs[rows, state.replica, state.batch]
        excess = np.where(state.is_placed, placed, table.wait_costs) - self._least
        # Every request has some chance: what it takes from others is not its own cost.
        weights = np.maximum(excess, 0.0) + 1.0 + 0.05 * max(0.0, float(excess.mean()))
        return int(self._random.choice(rows, p=weights / weights.sum()))

    def _whole(self) -> _Part:
        return _Part(np.arange(len(self._table.costs)), np.argwhere(self._is_open), True)

    def _around(self, request: int, state: MapState) -> _Part:
        """Free the replicas that suit a request best, and who is or could be there."""
        order = np.argsort(self._priced[request], kind="stable")
        suited = order[self._is_open[request].any(axis=1)[order]]
        freed = [int(r) for r in suited[:NUM_FREED]]
        if state.is_placed[request]:
            freed = list(dict.fromkeys([int(state.replica[request]), *freed]))[: NUM_FREED + 1]
        is_free = np.zeros(self._table.costs.shape[1], np.bool_)
        is_free[freed] = True
        staying = np.flatnonzero(state.is_placed & is_free[state.replica])
        waiting = np.flatnonzero(~state.is_placed & self._is_open[:, is_free].any(axis=(1, 2)))
        self._random.shuffle(waiting)
        others = np.concatenate((staying[staying != request], waiting[waiting != request]))
        self._random.shuffle(others)
        columns = self._open_columns(np.array([request, *others]), is_free)
        # Whole requests, as many as there is room for; the rest stays as it is.
        num_kept = int(np.searchsorted(np.cumsum([len(c) for c in columns]), self._max_columns))
        kept = max(1, num_kept)
        requests = np.array([request, *others])[:kept]
        return _Part(requests, np.concatenate(columns[:kept]), False)

    def _open_columns(self, requests: IntArray, is_free: NDArray[np.bool_]) -> list[IntArray]:
        columns = []
        for q in requests.tolist():
            own = np.argwhere(self._is_open[q] & is_free[:, None])
            columns.append(np.column_stack((np.full(len(own), q), own)))
        return columns

    def _solve(self, part: _Part, state: MapState, limit_s: float) -> SolveStatus:
        """Place a part's requests anew beside all others; keep what was if nothing is better."""
        was = [(q, state.replica[q], state.batch[q]) for q in part.requests if state.is_placed[q]]
        before = int(total_cost(self._table, state))
        for q, _, _ in was:
            remove(self._table, state, q)
        model = _model(self._table, state, part, was)
        solver = quiet_solver(limit_s, num_workers=self._num_workers)
        _set_for_small_models(solver.parameters)
        status = status_of(solver.solve(model))
        found: Sequence[tuple[int, int, int]] = was
        if status in (SolveStatus.OPTIMAL, SolveStatus.FEASIBLE):
            values = np.array(list(solver.response_proto.solution), np.bool_)[: len(part.columns)]
            found = [tuple(column) for column in part.columns[values].tolist()]
        for q, r, k in found:
            place(self._table, state, q, r, k)
        if int(total_cost(self._table, state)) > before:
            for q, _, _ in found:
                remove(self._table, state, q)
            for q, r, k in was:
                place(self._table, state, q, r, k)
        return status


def _set_for_small_models(parameters: object) -> None:
    """Skip what takes longer than such a model's solution; the LP gives its bounds."""
    for name, value in (
        ("cp_model_presolve", False),
        ("cp_model_probing_level", 0),
        ("symmetry_level", 0),
        ("linearization_level", 2),
    ):
        setattr(parameters, name, value)


def _model(
    table: MapTable, state: MapState, part: _Part, hint: Sequence[tuple[int, int, int]]
) -> object:
    """Return the CP-SAT model of a part: a literal for each column, then one for each wait."""
    model = cp_sat().CpModel()
    proto = model.proto
    q, r, k = part.columns.T
    num_columns, num_requests = len(part.columns), len(part.requests)
    for _ in range(num_columns + num_requests):
        proto.variables.add().domain.extend([0, 1])
    for i, request in enumerate(part.requests.tolist()):
        own = np.flatnonzero(q == request).tolist()
        proto.constraints.add().exactly_one.literals.extend([*own, num_columns + i])
    for replica in np.unique(r).tolist():
        on = np.flatnonzero(r == replica)
        _at_most(proto, on, table.kv_tokens[q[on], replica], state.kv_tokens[replica])
        _at_most(proto, on, np.ones(len(on), np.int64), state.slots[replica])
        tokens = table.batch_tokens[q[on], replica]
        for batch in np.unique(k[on]).tolist():
            until = k[on] <= batch
            # A replica's tightest budget from this batch on: what is done by now stays done.
            left = state.budgets[replica, batch:].min()
            _at_most(proto, on[until], tokens[until], left)
        _keep_apart(proto, table, state, part, replica, on)
    objective = proto.objective
    objective.vars.extend(range(num_columns + num_requests))
    objective.coeffs.extend([*table.costs[q, r, k].tolist(), *table.wait_costs[part.requests]])
    _hint(proto, part, hint)
    return model


def _at_most(proto: object, on: IntArray, amounts: IntArray, limit: int) -> None:
    if amounts.sum() <= limit:
        return
    linear = proto.constraints.add().linear  # type: ignore[attr-defined]
    linear.vars.extend(on.tolist())
    linear.coeffs.extend(amounts.tolist())
    linear.domain.extend([min(0, int(limit)), int(limit)])


def _keep_apart(
    proto: object, table: MapTable, state: MapState, part: _Part, replica: int, on: IntArray
) -> None:
    """Let at most one exclusive tenant, or only others, have the replica."""
    tenants = table.tenants[part.columns[on, 0]]
    is_exclusive = table.is_exclusive[tenants]
    nobody = len(table.is_exclusive)
    holders = np.where(is_exclusive, tenants, nobody)
    present = np.unique(holders).tolist()
    fixed = int(state.owner[replica]) if state.num_placed[replica] else None
    if len(present) == 1 and fixed in (None, present[0]):
        return
    constraints, variables = proto.constraints, proto.variables  # type: ignore[attr-defined]
    literals = []
    for holder in present:
        has_it = len(variables)
        is_out = fixed is not None and holder != fixed
        variables.add().domain.extend([0, 0 if is_out else 1])
        literals.append(has_it)
        for column in on[holders == holder].tolist():
            implication = constraints.add()
            implication.enforcement_literal.append(column)
            implication.bool_and.literals.append(has_it)
    constraints.add().at_most_one.literals.extend(literals)


def _hint(proto: object, part: _Part, hint: Sequence[tuple[int, int, int]]) -> None:
    """Give the solver the map as it is."""
    chosen = {(int(q), int(r), int(k)) for q, r, k in hint}
    placed = {q for q, _, _ in chosen}
    columns = [int(tuple(column) in chosen) for column in part.columns.tolist()]
    waits = [int(q not in placed) for q in part.requests.tolist()]
    solution = proto.solution_hint  # type: ignore[attr-defined]
    solution.vars.extend(range(len(columns) + len(waits)))
    solution.values.extend(columns + waits)
