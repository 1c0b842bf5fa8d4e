"""The lookahead in a simulation: keeps the gateways' mirrors, and chooses by them.

The mirrors hold what the gateway sent, the tokens that came back and when, and nothing of what
the replicas know beyond. Off, it costs one comparison where something happens to a request.

Does not know: how a placement is judged (`..lookahead`).
"""

import numpy as np

from ..compiled import compiled
from ..jump import iterations_until, jump_time_s
from ..lookahead.decide import CHOICE_DTYPE, best_choice, list_candidates, price_of, worth
from ..lookahead.lengths import (
    count_length,
    fill_residuals,
)
from ..lookahead.mirror import (
    NOBODY,
    clear_mirror,
    leave,
    place,
    see_first_token,
    write_row,
)
from ..lookahead.rollout import rollout
from ..lookahead.settings import (
    Judge,
)
from ..lookahead.situation import prepare
from ..value.features import NUM_FEATURES
from ..value.judging import judge, see_features
from .calls import called_as
from .layout import DECODING, FINISHED, NUM_PRIORITIES, SimulationArrays
from .memory import (
    actual_of,
    ahead_choices_of,
    ahead_jobs_of,
    ahead_linear_s_of,
    ahead_lists_of,
    ahead_run_of,
    bias_of,
    fleet_of,
    hits_of,
    knobs_of,
    labels_of,
    length_counts_of,
    lookahead_of,
    mirror_rows_of,
    mirrors_of,
    nominal_of,
    placements_of,
    replicas_of,
    requests_of,
    residuals_of,
    seen_choices_of,
    value_scratch_of,
    value_sums_of,
    value_weights_of,
    views_of,
)

_ROLLOUTS, _NETWORK = int(Judge.ROLLOUTS), int(Judge.NETWORK)


@compiled
def _write(sim, index, r, uncached_tokens, now_s):
    """Write a request behind the last row of a replica's mirror."""
    request = requests_of(sim)[index]
    g = request.gateway
    write_row(
        mirror_rows_of(sim, g, r)[mirrors_of(sim, g)[r].num_rows], index, request.query,
        request.weight, np.int64(1 + request.extra_sequences), request.arrival_s, uncached_tokens,
        now_s,
    )  # fmt: skip
    if lookahead_of(sim).sees_all != 0:
        row = mirror_rows_of(sim, g, r)[mirrors_of(sim, g)[r].num_rows]
        row.lengths[:] = request.output_tokens


@compiled
def mirror_placed(sim, index, r, uncached_tokens, now_s):
    """Note that a request was sent to a replica."""
    if lookahead_of(sim).num_candidates == 0:
        return
    g = requests_of(sim)[index].gateway
    _write(sim, index, r, uncached_tokens, now_s)
    place(mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r), now_s)


@compiled
def mirror_first_token(sim, index):
    """Note a request's first token."""
    if lookahead_of(sim).num_candidates == 0:
        return
    request = requests_of(sim)[index]
    g, r = request.gateway, request.replica
    see_first_token(mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r), index, request.first_token_s)


@compiled
def mirror_end(sim, index):
    """Note that a request has ended at its replica; answers that are whole tell their length."""
    if lookahead_of(sim).num_candidates == 0:
        return
    request = requests_of(sim)[index]
    g, r = request.gateway, request.replica
    leave(mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r), index)
    if request.status == FINISHED:
        k = min(request.query.priority, NUM_PRIORITIES - 1)
        count_length(length_counts_of(sim, g)[k], request.generated_tokens)
        if lookahead_of(sim).judge == _NETWORK or lookahead_of(sim).label_every > 0:
            fill_residuals(residuals_of(sim, g)[k], length_counts_of(sim, g)[k])


@compiled
def mirror_moved(sim, index, r):
    """Note that a request that has its first token goes on at another replica."""
    if lookahead_of(sim).num_candidates == 0:
        return
    request = requests_of(sim)[index]
    g = request.gateway
    leave(mirrors_of(sim, g)[request.replica], mirror_rows_of(sim, g, request.replica), index)
    _write(sim, index, r, request.query.input_tokens, request.ready_s)
    mirror, rows = mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r)
    rows[mirror.num_rows].first_token_s = request.first_token_s
    rows[mirror.num_rows].generated_tokens = request.generated_tokens
    place(mirror, rows, request.ready_s)


@compiled
def mirror_forgotten(sim, g, r):
    """Forget what was sent to a replica that crashed."""
    if lookahead_of(sim).num_candidates > 0:
        clear_mirror(mirrors_of(sim, g)[r])


@compiled
def _streamed_iterations(replica, now_s):
    """Return the iterations of the jump in progress that have ended by now."""
    first_s, slope_s = replica.plan_first_s, replica.plan_slope_s
    span_s = now_s - replica.clock_s
    if replica.plan_iterations == 0 or span_s < first_s:
        return np.int64(0)
    part = iterations_until(first_s, slope_s, span_s, replica.plan_iterations)
    if jump_time_s(first_s, slope_s, part) > span_s:
        part -= 1
    return np.int64(part)


@compiled
def _see_streams(sim, g, r, now_s):
    """Bring a mirror's streamed tokens, and the moment of the last one, up to now."""
    replica, mirror, rows = replicas_of(sim)[r], mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r)
    part = _streamed_iterations(replica, now_s)
    is_streaming = False
    for i in range(mirror.num_rows):
        if np.isnan(rows[i].first_token_s):
            continue
        request = requests_of(sim)[rows[i].key]
        streamed = np.int64(request.generated_tokens)
        if request.status == DECODING:
            streamed += replica.decode_iteration + part - request.joined_iteration
            is_streaming = True
        rows[i].generated_tokens = streamed
    if is_streaming and replica.clock_s <= now_s:
        seen_s = replica.clock_s
        if part > 0:
            seen_s += jump_time_s(replica.plan_first_s, replica.plan_slope_s, part)
        mirror.stepped_at_s = max(mirror.stepped_at_s, seen_s)


@compiled
def _by_rollouts(sim, g, r, now_s):
    """Return what the request behind the last row of a mirror is worth, and the part of its own."""
    ahead, knobs = lookahead_of(sim), knobs_of(sim)
    coefficients = nominal_of(sim)[r]
    slow_factor = np.exp(views_of(sim, g)[r].iteration_log_ratio)
    if ahead.sees_all != 0:
        coefficients, slow_factor = actual_of(sim)[r], replicas_of(sim)[r].slow_factor
    return worth(
        ahead, mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r), length_counts_of(sim, g),
        (ahead_run_of(sim), ahead_jobs_of(sim), ahead_lists_of(sim)),
        (coefficients, ahead_linear_s_of(sim, r), slow_factor), now_s,
        (knobs.batch_tokens_scale, knobs.max_num_seqs_frac, knobs.slo_margin),
    )  # fmt: skip


@compiled
def _judge(sim, index, choice, now_s):
    """Fill what a candidate is worth."""
    request, ahead, knobs = requests_of(sim)[index], lookahead_of(sim), knobs_of(sim)
    g, r, query = request.gateway, choice.replica, request.query
    v = views_of(sim, g)[r]
    uncached_tokens = np.int64(query.input_tokens - hits_of(sim)[r])
    _see_streams(sim, g, r, now_s)
    _write(sim, index, r, uncached_tokens, now_s)
    if ahead.judge == _NETWORK:
        judge(
            choice, value_weights_of(sim), (value_scratch_of(sim), value_sums_of(sim)),
            mirrors_of(sim, g)[r], mirror_rows_of(sim, g, r), residuals_of(sim, g),
            (v, nominal_of(sim)[r], ahead_linear_s_of(sim, r)), now_s, knobs,
        )  # fmt: skip
    elif ahead.judge == _ROLLOUTS:
        choice.worth, choice.own = _by_rollouts(sim, g, r, now_s)
    else:
        choice.worth = 1.0 - choice.cost
    choice.price = price_of(knobs, query, v, uncached_tokens)


@compiled
def _label(sim, index, choices, now_s):
    """Note the features of candidates that were judged, and their worth by rollouts."""
    request, ahead, labels = requests_of(sim)[index], lookahead_of(sim), labels_of(sim)
    g = request.gateway
    for i in range(choices.size):
        if ahead.num_labels >= labels.size:
            return
        r = choices[i].replica
        uncached_tokens = np.int64(request.query.input_tokens - hits_of(sim)[r])
        _see_streams(sim, g, r, now_s)
        _write(sim, index, r, uncached_tokens, now_s)
        see_features(
            (value_scratch_of(sim), value_sums_of(sim)), mirrors_of(sim, g)[r],
            mirror_rows_of(sim, g, r), residuals_of(sim, g),
            (views_of(sim, g)[r], nominal_of(sim)[r], ahead_linear_s_of(sim, r)), now_s,
            knobs_of(sim),
        )  # fmt: skip
        total, own = _by_rollouts(sim, g, r, now_s)
        label = labels[ahead.num_labels]
        label.features[:] = value_scratch_of(sim)[:NUM_FEATURES]
        label.own = own / request.weight
        label.others = (total - own) / request.weight
        label.request = index
        label.replica = r
        ahead.num_labels += 1


@compiled
def run_out(handle, r, sample, with_new, sees_streams):
    """Return the goodput of what the first gateway has at a replica, run to its end on paper.

    The lengths are those that the mirror's rows hold; `with_new` is 1 to count the row behind the
    last as well. What becomes of each stands in `ahead_jobs`. With `sees_streams`, tokens
    streamed by now are taken in first. The slow factor is the measured one.
    """
    sim = handle[0]
    mirror, rows, now_s = mirrors_of(sim, 0)[r], mirror_rows_of(sim, 0, r), fleet_of(sim).now_s
    if sees_streams:
        _see_streams(sim, 0, r, now_s)
    run, jobs, lists, knobs = (
        ahead_run_of(sim), ahead_jobs_of(sim), ahead_lists_of(sim), knobs_of(sim),
    )  # fmt: skip
    linear_s, slow_factor = (
        ahead_linear_s_of(sim, r),
        np.exp(views_of(sim, 0)[r].iteration_log_ratio),
    )
    limits = (knobs.batch_tokens_scale, knobs.max_num_seqs_frac, knobs.slo_margin)
    latency = (nominal_of(sim)[r], linear_s, slow_factor)
    prepare(run, mirror, rows, jobs, lists, latency, now_s, limits)
    run.is_whole = 1
    return rollout(run, rows, jobs, lists, nominal_of(sim)[r], linear_s, sample, with_new)


@compiled
def _keep_choices(sim, index, choices):
    """Keep what was found for the watched request; its placement was just counted."""
    fleet = fleet_of(sim)
    if index != fleet.watched_request or fleet.num_placements > placements_of(sim).size:
        return
    seen = seen_choices_of(sim, fleet.num_placements - 1)
    for i in range(seen.size):
        seen[i].replica = NOBODY
    for i in range(choices.size):
        seen[i] = choices[i]


@called_as("look_ahead")
def look_ahead(sim, index, now_s):
    """Judge the candidates of a request; what comes of it stands in the lookahead's record."""
    request, ahead = requests_of(sim)[index], lookahead_of(sim)
    g = request.gateway
    choices = ahead_choices_of(sim)[: ahead.num_candidates]
    count = list_candidates(
        views_of(sim, g), nominal_of(sim), request.query, hits_of(sim), knobs_of(sim),
        bias_of(sim, request.query.group), now_s, choices,
    )  # fmt: skip
    ahead.num_decisions += 1
    ahead.num_chosen = count
    ahead.is_found = count > 0
    ahead.is_worth = 0
    if count == 0:
        return
    for i in range(count):
        _judge(sim, index, choices[i], now_s)
    if ahead.label_every > 0 and ahead.num_decisions % ahead.label_every == 0:
        _label(sim, index, choices[:count], now_s)
    _keep_choices(sim, index, choices[:count])
    best, is_worth = best_choice(choices[:count], knobs_of(sim).cost_weight)
    ahead.chosen = choices[best].replica
    ahead.is_worth = is_worth


def candidates(arrays: SimulationArrays) -> list[dict[str, float]]:
    """Return the candidates of the last request that was looked at, the cheapest first."""
    chosen = arrays.ahead_choices[: int(arrays.lookahead["num_chosen"][0])]
    names = CHOICE_DTYPE.names or ()
    return [{name: float(choice[name]) for name in names} for choice in chosen]


__all__ = [
    "candidates",
    "look_ahead",
    "mirror_end",
    "mirror_first_token",
    "mirror_forgotten",
    "mirror_moved",
    "mirror_placed",
    "run_out",
]
