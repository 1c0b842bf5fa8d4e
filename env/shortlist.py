"""Choosing among a few candidates, for fleets too large to score whole.

The candidates of a request are the replicas that were cheapest for its kind of late, those that
hold most of its prompt, and the next few of a walk that visits every replica in turn. All are
scored anew. As the walk comes round much sooner than a replica's state changes, the cheapest of
the fleet is nearly always among them. The simulator and the live gateway call this very code.

Does not know: which fleets are too large.
Source: load balancing with memory (Shah and Prabhakar 2002; Mitzenmacher, Prabhakar and Shah 2002).
"""

import numpy as np

from .compiled import compiled
from .dispatch import can_take, has_heuristic_terms, request_limits, scorer_cost

# Replicas remembered from one request of a kind to the next.
SHORTLIST_SIZE = 16
# Replicas taken at most for what they hold of the prompt.
MAX_HOLDERS = 16

# A replica and what it cost, or, for a holder, the prefill time that its hits are worth.
CANDIDATE_DTYPE = np.dtype([("replica", np.int64), ("cost", np.float64)])

# Step of the walk. A prime: it visits all replicas, whatever their number, and mixes the kinds.
_STRIDE = 2654435761
_NOBODY = -1


@compiled
def can_use_shortlist(knobs):
    """Whether a choice is the analytic scorer's alone.

    Other rules (next in turn, hash, queue shares, gates) mean all replicas, or draw their own.
    """
    return (
        knobs.scorer_weight != 0.0
        and knobs.num_choices == 0.0
        and knobs.hit_threshold_frac == 0.0
        and not has_heuristic_terms(knobs)
    )


@compiled
def _lowest(candidates):
    place = 0
    for i in range(1, candidates.size):
        if candidates[i].cost < candidates[place].cost:
            place = i
    return place


@compiled
def _highest(candidates):
    place = 0
    for i in range(1, candidates.size):
        if candidates[i].cost > candidates[place].cost:
            place = i
    return place


@compiled
def _fill_holders(view, hit_tokens, matched, holders):
    """Fill `holders` with the replicas whose hits, less their backlog, save most prefill time."""
    if matched.size <= holders.size:
        for i in range(matched.size):
            holders[i].replica = matched[i]
        return
    for i in range(holders.size):
        holders[i].cost = -np.inf
    place = 0
    for i in range(matched.size):
        r = matched[i]
        worth_s = (hit_tokens[r] - view[r].pending_tokens) * view[r].prefill_token_s
        if worth_s > holders[place].cost:
            holders[place].replica = r
            holders[place].cost = worth_s
            place = _lowest(holders)


@compiled
def _is_listed(shortlist, replica):
    place = 0
    while place < shortlist.size and shortlist[place].replica != replica:
        place += 1
    return place < shortlist.size


@compiled
def choose_candidate(
    view,
    nominal,
    query,
    hit_tokens,
    matched,
    knobs,
    bias,
    now_s,
    shortlist,
    walk,
):
    """Return (whether a candidate can take the request, which is cheapest, where the walk stands).

    `walk` holds where the walk stands and how many steps it takes; `shortlist` is that of the
    request's kind and is kept from call to call. Ties go to the lowest index.

    Shapes: `view`, `nominal`, `hit_tokens`, `bias` [R]; `matched` [replicas with hits];
    `shortlist` CANDIDATE_DTYPE [SHORTLIST_SIZE + MAX_HOLDERS], its end is scratch.
    """
    num_replicas, limits = view.size, request_limits(query)
    place, num_steps = walk
    stride = _STRIDE % num_replicas
    kept, holders = shortlist[:SHORTLIST_SIZE], shortlist[SHORTLIST_SIZE:]
    _fill_holders(view, hit_tokens, matched, holders)
    num_kept = SHORTLIST_SIZE
    num_holders = min(matched.size, MAX_HOLDERS)
    is_found, best, best_cost, last = False, 0, np.inf, 0
    for i in range(num_kept + num_steps + num_holders):
        if i < num_kept:
            r = kept[i].replica
        elif i < num_kept + num_steps:
            place += stride
            if place >= num_replicas:
                place -= num_replicas
            r = place
        else:
            r = holders[i - num_kept - num_steps].replica
        cost = np.inf
        if r != _NOBODY and can_take(view, query, bias, r):
            uncached_tokens = query.input_tokens - hit_tokens[r]
            cost = bias[r] + scorer_cost(
                view[r], nominal[r], query, limits, knobs, uncached_tokens, now_s
            )
            if cost < best_cost or (cost == best_cost and r < best):
                is_found, best, best_cost = True, r, cost
        if i < num_kept:
            kept[i].cost = cost
            if i + 1 == num_kept:
                last = _highest(kept)
        elif i < num_kept + num_steps and cost < kept[last].cost and not _is_listed(kept, r):
            kept[last].replica = r
            kept[last].cost = cost
            last = _highest(kept)
    return is_found, best, place
