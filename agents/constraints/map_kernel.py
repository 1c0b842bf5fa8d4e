"""Compiled parts of the request map: costs, greedy placement, relocation, and a lower bound.

A request that is placed has its first token in one of the next K iterations ("batches") of one
replica. Chunked prefill shares out a replica's tokens, so a choice of batches is possible exactly
if, up to every batch, the tokens of all requests whose prefill is done by then fit the budgets so
far. A request with more tokens than the window has takes all of it, and ends after it.

Does not know: where rules and numbers come from (`request_map.py`), or CP-SAT.
Source: subgradients of the Lagrangian dual with Polyak's step, Fisher (1981), "The Lagrangian
relaxation method for solving integer programming problems".
"""

from typing import Any, NamedTuple

import numpy as np

from ...env.compiled import compiled, inlined

# Costs are integers: this many to a weighted TTFT limit.
COST_SCALE = 1000
# Cost of what is not allowed; sums of real costs stay far below.
BARRED = 1 << 40
# What a TTFT limit's worth of time costs before the limit is reached: 1 after it.
EARLY_COST = 0.05
# Lateness beyond this many limits costs no more: it cannot be made good.
MAX_RATIO = 100.0
# What it costs to be left for a later window, on top of the time.
WAIT_COST = 1.0


class MapTable(NamedTuple):
    """A problem in numbers: Q requests, R replicas, K batches; T tenants.

    Shapes: `costs` int64 [Q, R, K] (BARRED where not allowed), `wait_costs` int64 [Q], `kv_tokens`
    and `batch_tokens` int64 [Q, R], `near` int64 [Q, R] the replicas in order of a request's least
    cost there and `least_costs` int64 [Q, R] in that order, `tenants` int64 [Q], `is_exclusive`
    bool [T]; of replicas `free_kv_tokens`, `free_slots` int64 [R], and `budgets` int64 [R, K] up
    to each batch.
    """

    costs: Any
    wait_costs: Any
    kv_tokens: Any
    batch_tokens: Any
    near: Any
    least_costs: Any
    tenants: Any
    is_exclusive: Any
    free_kv_tokens: Any
    free_slots: Any
    budgets: Any


class MapState(NamedTuple):
    """A map in the making.

    Shapes: `replica`, `batch` int64 [Q] with `is_placed` bool [Q]; what is left `kv_tokens`,
    `slots` int64 [R] and `budgets` int64 [R, K]; `num_placed` int64 [R] and `owner` int64 [R]: the
    exclusive tenant that has the replica, or the number of tenants for none.
    """

    replica: Any
    batch: Any
    is_placed: Any
    kv_tokens: Any
    slots: Any
    budgets: Any
    num_placed: Any
    owner: Any


def empty_state(table: MapTable) -> MapState:
    """Return a map of a table's requests that places none."""
    num_requests, num_replicas, _ = table.costs.shape
    return MapState(
        replica=np.zeros(num_requests, np.int64),
        batch=np.zeros(num_requests, np.int64),
        is_placed=np.zeros(num_requests, np.bool_),
        kv_tokens=table.free_kv_tokens.copy(),
        slots=table.free_slots.copy(),
        budgets=table.budgets.copy(),
        num_placed=np.zeros(num_replicas, np.int64),
        owner=np.full(num_replicas, len(table.is_exclusive), np.int64),
    )


@compiled
def fill_costs(requests, replicas, rules, costs, wait_costs):
    """Fill `costs` [Q, R, K] and `wait_costs` [Q]; see `map_inputs.map_table` for the arguments.

    A request's first token is taken to come at the end of its batch, with all batches full: the
    prediction is never early.
    """
    groups, uncached, ttft_slo_s, waited_s, worths = requests
    budget, backlog_s, prefill_token_s, iteration_s = replicas
    penalties, is_barred = rules
    num_requests, num_replicas, num_batches = costs.shape
    for q in range(num_requests):
        soonest = np.inf
        for r in range(num_replicas):
            costs[q, r, :] = BARRED
            if is_barred[q, r]:
                continue
            full_s = iteration_s[r] + budget[r] * prefill_token_s[r]
            least = -(-uncached[q, r] // budget[r])
            penalty = penalties[groups[q], r]
            for k in range(num_batches):
                if min(least, num_batches) <= k + 1:
                    ready_s = waited_s[q] + backlog_s[r] + max(k + 1, least) * full_s
                    ratio = min(ready_s / ttft_slo_s[q], MAX_RATIO)
                    one = EARLY_COST * ratio + max(0.0, ratio - 1.0) + penalty
                    costs[q, r, k] = round(COST_SCALE * worths[q] * one)
            later_s = waited_s[q] + backlog_s[r] + (num_batches + max(least, 1)) * full_s
            ratio = min(later_s / ttft_slo_s[q], MAX_RATIO)
            soonest = min(soonest, EARLY_COST * ratio + max(0.0, ratio - 1.0) + penalty)
        if soonest == np.inf:
            soonest = 0.0
        wait_costs[q] = round(COST_SCALE * worths[q] * (soonest + WAIT_COST))


@inlined
def _may_share(table, state, q, r):
    if state.num_placed[r] == 0:
        return True
    nobody = len(table.is_exclusive)
    if table.is_exclusive[table.tenants[q]]:
        return state.owner[r] == table.tenants[q]
    return state.owner[r] == nobody


@compiled
def can_place(table, state, q, r, k):
    """Whether a request may be placed there beside what is placed."""
    if table.costs[q, r, k] >= BARRED or state.slots[r] < 1:
        return False
    if table.kv_tokens[q, r] > state.kv_tokens[r] or not _may_share(table, state, q, r):
        return False
    needed = table.batch_tokens[q, r]
    for later in range(k, state.budgets.shape[1]):  # noqa: SIM110 - numba has no generators here
        if state.budgets[r, later] < needed:
            return False
    return True


@compiled
def place(table, state, q, r, k):
    """Place a request."""
    state.replica[q], state.batch[q], state.is_placed[q] = r, k, True
    state.kv_tokens[r] -= table.kv_tokens[q, r]
    state.slots[r] -= 1
    for later in range(k, state.budgets.shape[1]):
        state.budgets[r, later] -= table.batch_tokens[q, r]
    state.num_placed[r] += 1
    if table.is_exclusive[table.tenants[q]]:
        state.owner[r] = table.tenants[q]


@compiled
def remove(table, state, q):
    """Take a request that is placed back into the queue."""
    r, k = state.replica[q], state.batch[q]
    state.replica[q], state.batch[q], state.is_placed[q] = 0, 0, False
    state.kv_tokens[r] += table.kv_tokens[q, r]
    state.slots[r] += 1
    for later in range(k, state.budgets.shape[1]):
        state.budgets[r, later] += table.batch_tokens[q, r]
    state.num_placed[r] -= 1
    if state.num_placed[r] == 0:
        state.owner[r] = len(table.is_exclusive)


@compiled
def total_cost(table, state):
    """Return the cost of a map, in integer units."""
    total = 0
    for q in range(len(state.is_placed)):
        if state.is_placed[q]:
            total += table.costs[q, state.replica[q], state.batch[q]]
        else:
            total += table.wait_costs[q]
    return total


@compiled
def _best_place(table, state, prices, q):
    """Return the cheapest (replica, batch) for a request at these prices, and its priced cost."""
    kv_price, slot_price, token_price = prices
    best, best_r, best_k = np.inf, 0, 0
    num_replicas, num_batches = state.budgets.shape
    for i in range(num_replicas):
        # Prices are not below 0: whatever follows costs at least as much.
        if table.least_costs[q, i] >= min(best, BARRED):
            break
        r = table.near[q, i]
        fixed = kv_price[r] * table.kv_tokens[q, r] + slot_price[r]
        for k in range(num_batches):
            cost = table.costs[q, r, k]
            if cost >= BARRED:
                continue
            priced = cost + fixed + token_price[r, k] * table.batch_tokens[q, r]
            if priced < best and can_place(table, state, q, r, k):
                best, best_r, best_k = priced, r, k
    return best, best_r, best_k


@compiled
def place_in_order(table, state, prices, order):
    """Place requests one by one where each is cheapest at the prices, if waiting costs no less."""
    for q in order:
        best, r, k = _best_place(table, state, prices, q)
        if best < np.inf and table.costs[q, r, k] <= table.wait_costs[q]:
            place(table, state, q, r, k)


@compiled
def place_as_before(table, state, replicas, had_place):
    """Place requests on the replicas of an earlier map, in the first batch that has room."""
    for q in range(len(replicas)):
        if not had_place[q]:
            continue
        for k in range(state.budgets.shape[1]):
            if can_place(table, state, q, replicas[q], k):
                if table.costs[q, replicas[q], k] <= table.wait_costs[q]:
                    place(table, state, q, replicas[q], k)
                break


@compiled
def relocate(table, state, prices, num_passes):
    """Move single requests to cheaper places until a pass finds none."""
    for _ in range(num_passes):
        num_moves = 0
        for q in range(len(state.is_placed)):
            cost = table.wait_costs[q]
            was_placed, old_r, old_k = state.is_placed[q], state.replica[q], state.batch[q]
            if was_placed:
                cost = table.costs[q, old_r, old_k]
                remove(table, state, q)
            best, r, k = _best_place(table, state, prices, q)
            if best < cost:
                place(table, state, q, r, k)
                num_moves += 1
            elif was_placed:
                place(table, state, q, old_r, old_k)
        if num_moves == 0:
            break


@compiled
def _dual_value(table, prices, loads):
    """Return the least total of priced costs, each request on its own; add up `loads`."""
    kv_price, slot_price, token_price = prices
    kv_load, slot_load, token_load = loads
    kv_load[:], slot_load[:], token_load[:] = 0.0, 0.0, 0.0
    total = 0.0
    num_requests, num_replicas, num_batches = table.costs.shape
    for q in range(num_requests):
        best, best_r, best_k = float(table.wait_costs[q]), num_replicas, 0
        for i in range(num_replicas):
            if table.least_costs[q, i] >= best:
                break
            r = table.near[q, i]
            fixed = kv_price[r] * table.kv_tokens[q, r] + slot_price[r]
            tokens = table.batch_tokens[q, r]
            for k in range(num_batches):
                priced = table.costs[q, r, k] + fixed + token_price[r, k] * tokens
                if priced < best:
                    best, best_r, best_k = priced, r, k
        total += best
        if best_r < num_replicas:
            kv_load[best_r] += table.kv_tokens[q, best_r]
            slot_load[best_r] += 1.0
            for later in range(best_k, num_batches):
                token_load[best_r, later] += table.batch_tokens[q, best_r]
    return total


@compiled
def lower_bound(table, best_cost, num_steps):
    """Return a cost that no map is below, and the prices of KV, slots and tokens that show it.

    `best_cost` is the cost of a map that is known. Shapes of the prices: [R], [R], [R, K]; a
    request whose prefill is done by batch k pays the last for each of its tokens.
    """
    num_replicas, num_batches = table.budgets.shape
    limits = np.ones((num_replicas, num_batches + 2))
    for r in range(num_replicas):
        limits[r, 0] = max(1, table.free_kv_tokens[r])
        limits[r, 1] = max(1, table.free_slots[r])
        for k in range(num_batches):
            limits[r, 2 + k] = max(1, table.budgets[r, k])
    duals, best_duals = np.zeros(limits.shape), np.zeros(limits.shape)
    loads = (np.zeros(num_replicas), np.zeros(num_replicas), np.zeros((num_replicas, num_batches)))
    slope, best, step, num_worse = np.zeros(limits.shape), -np.inf, 1.0, 0
    for _ in range(num_steps):
        value = _dual_value(table, _prices(duals, limits), loads) - duals.sum()
        if value > best:
            best, num_worse = value, 0
            best_duals[:] = duals
        else:
            num_worse += 1
            if num_worse >= 4:
                step, num_worse = 0.5 * step, 0
        slope[:, 0], slope[:, 1], slope[:, 2:] = loads[0], loads[1], loads[2]
        slope[:] = slope / limits - 1.0
        # A price of 0 does not fall.
        slope[:] = np.where((duals <= 0.0) & (slope < 0.0), 0.0, slope)
        length = (slope * slope).sum()
        if length == 0.0 or value >= best_cost:
            break
        duals = np.maximum(0.0, duals + step * (best_cost - value) / length * slope)
    return best, _prices(best_duals, limits)


@compiled
def _prices(duals, limits):
    """Return what a token of KV, a slot, and a token done by each batch cost."""
    unit = duals / limits
    tokens = unit[:, 2:].copy()
    for k in range(tokens.shape[1] - 2, -1, -1):
        tokens[:, k] += tokens[:, k + 1]
    return unit[:, 0].copy(), unit[:, 1].copy(), tokens


@compiled
def eject(table, state, prices, order, num_near):
    """Put requests of `order` in another's stead where both together then cost less.

    Each tries its `num_near` cheapest replicas. Returns the number of exchanges.
    """
    num_exchanges = 0
    members = np.empty(len(state.is_placed), np.int64)
    for q in order:
        for r in table.near[q, :num_near]:
            num_members = 0
            for p in range(len(members)):
                if p != q and state.is_placed[p] and state.replica[p] == r:
                    members[num_members] = p
                    num_members += 1
            for i in range(num_members):
                if _exchange(table, state, prices, q, members[i]):
                    num_exchanges += 1
                    break
    return num_exchanges


@compiled
def _exchange(table, state, prices, q, p):
    """Give `q` the replica of `p`, and `p` its best other place, if that costs less together."""
    r, k = state.replica[p], state.batch[p]
    q_was_placed, q_r, q_k = state.is_placed[q], state.replica[q], state.batch[q]
    q_cost = table.costs[q, q_r, q_k] if q_was_placed else table.wait_costs[q]
    before = q_cost + table.costs[p, r, k]
    remove(table, state, p)
    if q_was_placed:
        remove(table, state, q)
    for new_k in range(state.budgets.shape[1]):
        if not can_place(table, state, q, r, new_k):
            continue
        place(table, state, q, r, new_k)
        cost = table.costs[q, r, new_k]
        best, p_r, p_k = _best_place(table, state, prices, p)
        if cost + min(best, table.wait_costs[p]) < before:
            if best < table.wait_costs[p]:
                place(table, state, p, p_r, p_k)
            return True
        remove(table, state, q)
        break
    place(table, state, p, r, k)
    if q_was_placed:
        place(table, state, q, q_r, q_k)
    return False
