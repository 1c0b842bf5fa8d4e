"""A map of what is queued to replicas: who goes where, in which of the next batches, and when.

Hard: masks, KV memory, sequence slots, token budgets of batches, exclusive tenants. Soft: predicted
TTFT against its limit, worth, penalties, and a tenant's deficit. The answer is the best that was
found by the deadline, with a cost that no map is below.

Does not know: the gateway's state (`env/dispatch.py`), the rules' texts, or how a map is acted on.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from .map_inputs import (
    BoolArray,
    FloatArray,
    IntArray,
    MapRules,
    QueuedRequests,
    ReplicaRoom,
    map_table,
)
from .map_kernel import (
    BARRED,
    COST_SCALE,
    MapState,
    MapTable,
    eject,
    empty_state,
    lower_bound,
    place_as_before,
    place_in_order,
    relocate,
    total_cost,
)
from .map_search import MapSearch, SearchResult
from .solving import Deadline, SolveStatus, cp_sat, deadline_in, gap_frac, quiet_solver

# Passes over all requests after a greedy placement; most maps settle in two or three.
NUM_RELOCATIONS = 4
# Share of the time that exchanges of two requests may take before CP-SAT begins.
EXCHANGE_FRAC = 0.6
# Replicas tried for each request in an exchange, and requests between looks at the clock.
NUM_NEAR = 12
NUM_AT_ONCE = 16
# Choices that the lower bound may look at per second of the time limit; it looks at about six times
# as many in a second, measured on one core of a Xeon.
BOUND_CHOICES_PER_S = 1e8

_Prices = tuple[FloatArray, FloatArray, FloatArray]


class Unplaced(StrEnum):
    """Why a request stays in the queue."""

    BARRED = "barred"  # rules bar every replica
    TOO_LARGE = "too_large"  # no replica that it may use has KV memory, slots or tokens for it
    NO_ROOM = "no_room"  # others take what there is
    LATER = "later"  # a later window is predicted to serve it sooner than this one's places


@dataclass(frozen=True, slots=True, kw_only=True)
class MapConfig:
    """How long and how hard to look."""

    time_limit_s: float = 0.05
    """From the call to the answer."""
    num_batches: int = 4
    """Iterations that the window looks ahead."""
    max_columns: int = 120
    """Choices of one CP-SAT model; a problem with no more is solved whole."""
    max_bound_steps: int = 400
    """Most steps of the lower bound; large problems have fewer, so that they are in time."""
    num_workers: int = 1
    """Threads of CP-SAT."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            msg = f"time_limit_s must be above 0, got {self.time_limit_s}"
            raise ValueError(msg)
        for name in ("num_batches", "max_columns", "max_bound_steps", "num_workers"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestMap:
    """Where what is queued goes.

    Shapes: [Q]. Where `is_placed` is false, `replica`, `batch` and `position` mean nothing.
    """

    is_placed: BoolArray
    replica: IntArray
    batch: IntArray
    """Iteration of the replica, from 0, by whose end its prefill is done."""
    position: IntArray
    """Place in the order of that batch, from 0."""
    reasons: dict[int, Unplaced] = field(repr=False)
    """Why the others stay in the queue, by request."""
    objective: float
    """Cost: weighted lateness in TTFT limits, penalties, and waits."""
    greedy_objective: float
    """Cost of the greedy map that the search began with."""
    bound: float
    """No map costs less."""
    status: SolveStatus
    wall_s: float
    first_feasible_s: float
    """Time until the greedy map was there."""
    num_rounds: int
    """CP-SAT models solved."""

    @property
    def gap_frac(self) -> float:
        """How far the cost may be above the least, as a share of it."""
        return gap_frac(self.objective, self.bound)

    @property
    def is_optimal(self) -> bool:
        """No map costs less."""
        return self.status is SolveStatus.OPTIMAL


def map_requests(
    requests: QueuedRequests,
    room: ReplicaRoom,
    rules: MapRules,
    config: MapConfig | None = None,
    *,
    previous: RequestMap | None = None,
) -> RequestMap:
    """Return the best map that is found in time; `previous` is of the same requests.

    Raises:
        MissingExtraError: OR-tools is not installed.
        ValueError: shapes do not agree.
    """
    config = config or MapConfig()
    began_s = time.perf_counter()
    deadline = deadline_in(config.time_limit_s)
    table = map_table(requests, room, rules, config.num_batches)
    state = _in_order(table, requests, _free(table))
    if previous is not None:
        state = _cheaper(table, state, _as_before(table, previous))
    greedy_cost = int(total_cost(table, state))
    first_feasible_s = time.perf_counter() - began_s
    least, prices = lower_bound(table, float(greedy_cost), _num_steps(table, config))
    state = _cheaper(table, state, _in_order(table, requests, prices))
    _exchange_until(table, state, began_s + EXCHANGE_FRAC * config.time_limit_s)
    # Costs are whole numbers; sums of prices carry rounding errors.
    bound = int(np.ceil(least - 1e-6 * max(1.0, abs(least))))
    result = _search(table, state, prices, config, deadline=deadline, bound=bound)
    bound = result.cost if result.is_proven else min(bound, result.cost)
    return RequestMap(
        is_placed=state.is_placed,
        replica=state.replica,
        batch=state.batch,
        position=_positions(requests, state),
        reasons=_reasons(table, state, rules.masks[requests.groups]),
        objective=result.cost / COST_SCALE,
        greedy_objective=greedy_cost / COST_SCALE,
        bound=bound / COST_SCALE,
        status=SolveStatus.OPTIMAL if bound == result.cost else SolveStatus.FEASIBLE,
        wall_s=time.perf_counter() - began_s,
        first_feasible_s=first_feasible_s,
        num_rounds=result.num_rounds,
    )


def warm_up() -> None:
    """Compile and import what a map needs, so that the first one is in time.

    Raises:
        MissingExtraError: OR-tools is not installed.
    """
    few, one = np.ones(2, np.int64), np.ones(1)
    requests = QueuedRequests(
        groups=few * 0,
        tenants=few * 0,
        input_tokens=few,
        hit_tokens=np.zeros((2, 1), np.int64),
        expected_output_tokens=np.ones(2),
        ttft_slo_s=np.ones(2),
        waited_s=np.zeros(2),
        weights=np.ones(2),
        priorities=few * 0,
    )
    room = ReplicaRoom(
        free_kv_tokens=few[:1] * 9,
        free_slots=few[:1],
        batch_tokens=few[:1] * 9,
        backlog_s=one,
        prefill_token_s=one,
        iteration_s=one,
    )
    rules = MapRules(
        masks=np.zeros((1, 1), np.uint16),
        penalties=np.zeros((1, 1)),
        is_exclusive=np.zeros(1, np.bool_),
        occupied=np.zeros((1, 1), np.bool_),
        deficits_frac=np.zeros(1),
    )
    quiet_solver(1.0).solve(cp_sat().CpModel())
    before = map_requests(requests, room, rules, MapConfig(time_limit_s=1.0))
    map_requests(requests, room, rules, MapConfig(time_limit_s=1.0), previous=before)


def _search(
    table: MapTable,
    state: MapState,
    prices: _Prices,
    config: MapConfig,
    *,
    deadline: Deadline,
    bound: int,
) -> SearchResult:
    search = MapSearch(
        table,
        prices,
        max_columns=config.max_columns,
        num_workers=config.num_workers,
        seed=config.seed,
    )
    return search.improve(state, deadline, bound)


def _num_steps(table: MapTable, config: MapConfig) -> int:
    """Return the steps of the bound: by size and time limit, not by the clock, to be repeatable."""
    affordable = BOUND_CHOICES_PER_S * config.time_limit_s / max(1, table.costs.size)
    return max(1, min(config.max_bound_steps, int(affordable)))


def _exchange_until(table: MapTable, state: MapState, until_s: float) -> None:
    """Exchange requests in pairs, dearest first, until nothing is gained or time is up."""
    prices = _free(table)
    least = np.minimum(table.least_costs.min(axis=1), table.wait_costs)
    rows = np.arange(len(least))
    num_exchanges = 1
    while num_exchanges and time.perf_counter() < until_s:
        placed = table.costs[rows, state.replica, state.batch]
        excess = np.where(state.is_placed, placed, table.wait_costs) - least
        order = np.argsort(-excess, kind="stable")
        order = order[excess[order] > 0]
        num_exchanges = 0
        for start in range(0, len(order), NUM_AT_ONCE):
            if time.perf_counter() >= until_s:
                break
            num_exchanges += eject(
                table, state, prices, order[start : start + NUM_AT_ONCE], NUM_NEAR
            )
        relocate(table, state, prices, NUM_RELOCATIONS)


def _free(table: MapTable) -> _Prices:
    num_replicas, num_batches = table.budgets.shape
    return np.zeros(num_replicas), np.zeros(num_replicas), np.zeros((num_replicas, num_batches))


def _in_order(table: MapTable, requests: QueuedRequests, prices: _Prices) -> MapState:
    """Return a map made one by one at these prices, in order of priority and slack, then mended."""
    state = empty_state(table)
    place_in_order(table, state, prices, _order(requests))
    relocate(table, state, _free(table), NUM_RELOCATIONS)
    return state


def _as_before(table: MapTable, previous: RequestMap) -> MapState:
    if previous.replica.shape != table.wait_costs.shape:
        msg = (
            f"previous must be a map of the same {len(table.wait_costs)} requests, "
            f"got one of {len(previous.replica)}"
        )
        raise ValueError(msg)
    state = empty_state(table)
    place_as_before(table, state, previous.replica, previous.is_placed)
    relocate(table, state, _free(table), NUM_RELOCATIONS)
    return state


def _cheaper(table: MapTable, first: MapState, second: MapState) -> MapState:
    return first if total_cost(table, first) <= total_cost(table, second) else second


def _order(requests: QueuedRequests) -> IntArray:
    """Return requests by priority, then by the time that they have left."""
    slack_s = requests.ttft_slo_s - requests.waited_s
    return np.lexsort((slack_s, requests.priorities))


def _positions(requests: QueuedRequests, state: MapState) -> IntArray:
    """Return each request's place in its batch; its time does not hang on it, those late do."""
    order = _order(requests)
    order = order[state.is_placed[order]]
    # Stable: the order within a batch is kept.
    sorted_by_batch = order[np.lexsort((state.batch[order], state.replica[order]))]
    keys = state.replica[sorted_by_batch] * (state.budgets.shape[1] + 1)
    keys += state.batch[sorted_by_batch]
    is_first = np.ones(len(keys), np.bool_)
    is_first[1:] = keys[1:] != keys[:-1]
    index = np.arange(len(keys))
    starts = np.maximum.accumulate(np.where(is_first, index, 0)) if len(keys) else index
    position = np.zeros(len(requests), np.int64)
    position[sorted_by_batch] = index - starts
    return position


def _reasons(table: MapTable, state: MapState, masks: NDArray[np.uint16]) -> dict[int, Unplaced]:
    reasons = {}
    for q in np.flatnonzero(~state.is_placed).tolist():
        allowed = table.costs[q] < BARRED
        if not allowed.any():
            reasons[q] = Unplaced.BARRED if (masks[q] != 0).all() else Unplaced.TOO_LARGE
        elif table.costs[q][allowed].min() > table.wait_costs[q]:
            reasons[q] = Unplaced.LATER
        else:
            reasons[q] = Unplaced.NO_ROOM
    return reasons
