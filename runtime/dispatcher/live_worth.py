"""Placing by worth in the live dispatcher: keeps the mirrors, and judges candidates by them.

Judging is the simulator's own (`env/lookahead`, `env/value`). A gateway does not count the tokens
of each answer while it streams; they are taken to come at the replica's pace.

Does not know: HTTP, or how a choice is counted (`live_kernel.py`).
"""

import numpy as np
from numba import types

from ...env.called import address_of, call_rs
from ...env.compiled import compiled
from ...env.lookahead.decide import best_choice, list_candidates, price_of
from ...env.lookahead.lengths import count_length, fill_residuals
from ...env.lookahead.mirror import (
    NOBODY,
    clear_mirror,
    leave,
    place,
    see_first_token,
    write_row,
)
from ...env.value.judging import judge
from ...env.value.pace import see_pace
from .live_arrays import CALLED, NUM_CLASSES
from .live_memory import (
    bias_of,
    choices_of,
    floats_of,
    hits_of,
    kept_choices_of,
    knobs_of,
    length_counts_of,
    linear_s_of,
    lookahead_of,
    mirror_of,
    nominal_of,
    query_of,
    request_of,
    residuals_of,
    rows_of,
    scratch_of,
    shadow_knobs_of,
    sums_of,
    views_of,
    weights_of,
)

RULING, ON_PAPER = 0, 1
"""By whose knobs candidates are judged, and places of what is found."""


def _catch_up(d, r, now_s):
    """Bring a mirror's streamed tokens up to now."""
    latency = nominal_of(d)[r], linear_s_of(d, r), np.exp(views_of(d)[r].iteration_log_ratio)
    see_pace(
        mirror_of(d, r), rows_of(d, r), sums_of(d), latency, floats_of(d, d.token_at_s_at)[r],
        now_s, knobs_of(d),
    )  # fmt: skip


@compiled
def _write(d, r, uncached_tokens, now_s):
    """Write the request in hand behind the last row of a replica's mirror."""
    request, row = request_of(d), rows_of(d, r)[mirror_of(d, r).num_rows]
    write_row(
        row, request.number, query_of(d), request.weight, 1, request.arrived_at_s,
        uncached_tokens, now_s,
    )  # fmt: skip


@compiled
def _judge(d, choice, knobs, now_s):
    """Fill what a candidate is worth, and its price."""
    r, query, v = choice.replica, query_of(d), views_of(d)[choice.replica]
    uncached_tokens = np.int64(query.input_tokens - hits_of(d)[r])
    catch_up(d, r, now_s)
    _write(d, r, uncached_tokens, now_s)
    judge(
        choice, weights_of(d), (scratch_of(d), sums_of(d)), mirror_of(d, r), rows_of(d, r),
        residuals_of(d), (v, nominal_of(d)[r], linear_s_of(d, r)), now_s, knobs,
    )  # fmt: skip
    choice.price = price_of(knobs, query, v, uncached_tokens)


def _look_ahead(d, who, now_s):
    """Judge the candidates of the request in hand; what comes of it stands in the record."""
    query, ahead, choices = query_of(d), lookahead_of(d), choices_of(d, who)
    knobs, bias = knobs_of(d), bias_of(d, query.group)
    if who == ON_PAPER:
        knobs, bias = shadow_knobs_of(d), floats_of(d, d.shadow_costs_at)
    count = list_candidates(
        views_of(d), nominal_of(d), query, hits_of(d), knobs, bias, now_s, choices
    )
    ahead.num_decisions += 1
    ahead.num_chosen = count
    ahead.is_found = count > 0
    ahead.is_worth = 0
    if count == 0:
        return
    for i in range(count):
        _judge(d, choices[i], knobs, now_s)
    best, is_worth = best_choice(choices[:count], knobs.cost_weight)
    ahead.chosen = choices[best].replica
    ahead.is_worth = is_worth


def _mirror_placed(d, r, now_s):
    """Note that the request in hand was sent to a replica."""
    catch_up(d, r, now_s)
    _write(d, r, np.int64(query_of(d).input_tokens - hits_of(d)[r]), now_s)
    place(mirror_of(d, r), rows_of(d, r), now_s)


def _mirror_first_token(d, r, now_s):
    """Note the first token of the request in hand, seen or believed."""
    catch_up(d, r, now_s)
    see_first_token(mirror_of(d, r), rows_of(d, r), request_of(d).number, now_s)


def _mirror_end(d, r, now_s):
    """Note that the request in hand has left; answers that are whole tell their length."""
    request = request_of(d)
    catch_up(d, r, now_s)
    leave(mirror_of(d, r), rows_of(d, r), request.number)
    if request.whole_tokens > 0:
        k = min(request.priority, NUM_CLASSES - 1)
        count_length(length_counts_of(d)[k], request.whole_tokens)
        fill_residuals(residuals_of(d)[k], length_counts_of(d)[k])


_CALLED = {
    "look_ahead": _look_ahead,
    "catch_up": _catch_up,
    "mirror_placed": _mirror_placed,
    "mirror_first_token": _mirror_first_token,
    "mirror_end": _mirror_end,
}


def connect(handle: np.ndarray) -> np.ndarray:
    """Compile what is called through its address, and return the handle with the addresses."""
    for name in CALLED:
        arguments = (types.int64, types.float64)
        handle[f"call_{name}"] = address_of(_CALLED[name], handle.dtype, arguments)
    return handle


@compiled
def catch_up(d, r, now_s):
    """Bring a mirror's streamed tokens up to now."""
    call_rs(d.call_catch_up, d, r, now_s)


@compiled
def look_ahead(d, who, now_s):
    """Judge the candidates of the request in hand, by the knobs that rule or those on paper.

    What was found stands in the lookahead's record, and that of each in `choices_of` the place.
    """
    call_rs(d.call_look_ahead, d, who, now_s)


@compiled
def mirror_placed(d, r, now_s):
    """Note that the request in hand was sent to a replica."""
    if lookahead_of(d).num_candidates > 0:
        call_rs(d.call_mirror_placed, d, r, now_s)


@compiled
def mirror_first_token(d, r, number, now_s):
    """Note a request's first token, seen or believed."""
    if lookahead_of(d).num_candidates > 0:
        request_of(d).number = number
        call_rs(d.call_mirror_first_token, d, r, now_s)


@compiled
def mirror_end(d, r, ended):
    """Note that a request has left its replica.

    `ended` is its number, its class, the tokens of a whole answer (0 for none), and the moment.
    """
    if lookahead_of(d).num_candidates > 0:
        request = request_of(d)
        request.number, request.priority, request.whole_tokens, now_s = ended
        call_rs(d.call_mirror_end, d, r, now_s)


@compiled
def keep_choices(d, slot, count):
    """Keep the candidates of the choice in hand with a decision; 0 where it went by cost."""
    kept, choices = kept_choices_of(d, slot), choices_of(d, RULING)
    for i in range(kept.size):
        kept[i].replica = NOBODY
    for i in range(count):
        kept[i] = choices[i]


@compiled
def forget_mirror(handle, replica):
    """Forget what was sent to a replica that went down."""
    d = handle[0]
    if lookahead_of(d).num_candidates > 0:
        clear_mirror(mirror_of(d, replica))
