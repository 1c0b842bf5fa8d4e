"""One compiled call a request: match its prefix, choose, count, and keep what is to be explained.

The choice is the dispatch kernel's and the counts are the simulator's own (`env/gateway_counts`).

Does not know: HTTP, names, or where the rules come from.
"""

import numpy as np

from ...env.budget import give_back, has_budget, take_from_bucket
from ...env.compiled import compiled
from ...env.dispatch import (
    choose_replica,
    fill_terms,
    is_shed,
    predicted_ttft_s,
    refresh_decode_base,
    refresh_prefill_stretch,
    refresh_slow_factor,
    waiting_spread,
)
from ...env.gateway_counts import (
    ITERATION_RATIO_GAIN,
    PREFILL_FRAC_GAIN,
    count_dispatch,
    count_end,
    count_first_token,
    moved,
)
from ...env.lookahead.decide import refusal_of
from ...env.lookahead.settings import is_by_worth
from ...env.shadow import (
    add_difference,
    borrow_factors,
    give_back_factors,
    is_expected_to_meet,
    shadow_choice,
)
from ...env.shed_reason import ShedReason
from ...env.shortlist import can_use_shortlist, choose_candidate
from .live_arrays import NUM_CLASSES
from .live_memory import (
    bias_of,
    bucket_of,
    cursors_of,
    decision_of,
    floats_of,
    group_of,
    hits_of,
    judge_knobs_of,
    kept_bias_of,
    kept_hits_of,
    kept_terms_of,
    kept_views_of,
    knobs_of,
    lookahead_of,
    matched_of,
    nominal_of,
    query_of,
    random_of,
    request_of,
    shadow_knobs_of,
    shadow_of,
    shortlist_of,
    terms_of,
    views_of,
)
from .live_worth import (
    ON_PAPER,
    RULING,
    keep_choices,
    look_ahead,
    mirror_end,
    mirror_first_token,
    mirror_placed,
)
from .prefix_kernel import match, store
from .prefix_kernel import replicas_of as index_replicas_of

PLACED = 0
"""Status of a request that has a replica; else it is a `ShedReason`."""
_LATE, _NOBODY = int(ShedReason.LATE), int(ShedReason.NOBODY)
_BUDGET, _EMERGENCY = int(ShedReason.BUDGET), int(ShedReason.EMERGENCY)


@compiled
def _fill_query(d, group, priority, lengths, limits):
    """Fill the query of a request, with what its group says in place of its own limits."""
    query, rule = query_of(d), group_of(d, group)
    input_tokens, expected_tokens = lengths
    ttft_slo_s, tpot_slo_s = limits
    query.input_tokens = max(1, input_tokens)
    query.expected_output_tokens = expected_tokens
    query.priority = priority
    query.group = group
    query.ttft_slo_s = ttft_slo_s if np.isnan(rule.ttft_slo_s) else rule.ttft_slo_s
    query.tpot_slo_s = tpot_slo_s if np.isnan(rule.tpot_slo_s) else rule.tpot_slo_s
    if not np.isnan(rule.priority):
        query.priority = min(np.int64(rule.priority), NUM_CLASSES - 1)
    query.phase = 0


@compiled
def _emergency_cut(d, query):
    """Cut what is expected of a batch request's answer, and say whether it may spill."""
    cursors = cursors_of(d)
    if query.priority > 0:
        query.expected_output_tokens = min(query.expected_output_tokens, cursors.most_output_tokens)
    tokens = query.input_tokens + query.expected_output_tokens
    query.may_spill = np.int32(tokens <= cursors.spill_tokens)


@compiled
def _match(d, index, query, blocks, block_tokens):
    """Fill the prompt tokens that each replica has cached; return how many have some."""
    hits, matched = hits_of(d), matched_of(d)
    match(index, blocks, hits)
    # An engine reuses whole blocks, and computes at least one token.
    most = max(0, (query.input_tokens - 1) // block_tokens * block_tokens)
    num_matched = 0
    for r in range(hits.size):
        if hits[r] > 0:
            hits[r] = min(hits[r] * block_tokens, most)
            matched[num_matched] = r
            num_matched += 1
    return num_matched


@compiled
def _charge(d, query, now_s):
    """Return (whether the group's budget lets the request pass, tokens that were taken)."""
    group = group_of(d, query.group)
    if not has_budget(group):
        return True, 0.0
    tokens = query.input_tokens + query.expected_output_tokens
    if take_from_bucket(bucket_of(d, group.budget_group), group, tokens, now_s):
        return True, tokens
    if group.is_demoting == 0:
        return False, 0.0
    query.priority = NUM_CLASSES - 1
    return True, 0.0


@compiled
def _choose(d, query, num_matched, now_s):
    """Return (whether a replica can take the request, which one is cheapest)."""
    cursors, knobs = cursors_of(d), knobs_of(d)
    bias, hits = bias_of(d, query.group), hits_of(d)
    if cursors.num_candidates > 0 and can_use_shortlist(knobs):
        kind = query.model * NUM_CLASSES + min(query.priority, NUM_CLASSES - 1)
        is_found, r, cursors.walk = choose_candidate(
            views_of(d), nominal_of(d), query, hits, matched_of(d)[:num_matched], knobs, bias,
            now_s, shortlist_of(d, kind), (cursors.walk, cursors.num_candidates),
        )  # fmt: skip
        if is_found:
            return is_found, r
    return choose_replica(
        views_of(d), nominal_of(d), query, hits, knobs, bias, now_s, cursors.cursor,
        random_of(d.random_at), terms_of(d),
    )  # fmt: skip


@compiled
def _refusal(d, query, knobs, now_s):
    """Return why a request is not sent to where it is worth most; else `PLACED`."""
    ahead = lookahead_of(d)
    r = ahead.chosen
    uncached_tokens = query.input_tokens - hits_of(d)[r]
    ttft_s = predicted_ttft_s(views_of(d)[r], nominal_of(d)[r], knobs, uncached_tokens, now_s)
    return refusal_of(ahead.is_worth, ttft_s, query, knobs, cursors_of(d).shed_limits)


@compiled
def _decide(d, query, num_matched, is_first, now_s):
    """Return (status, the best replica, how many candidates were judged by their worth).

    A request that was placed before is not shed.
    """
    knobs, limit, ahead = knobs_of(d), cursors_of(d).shed_limits, lookahead_of(d)
    views, nominal, hits = views_of(d), nominal_of(d), hits_of(d)
    if is_by_worth(ahead, knobs):
        look_ahead(d, RULING, now_s)
        if ahead.is_found == 0:
            return _NOBODY, 0, 0
        status = _refusal(d, query, knobs, now_s) if is_first else PLACED
        return status, ahead.chosen, ahead.num_chosen
    is_found, r = _choose(d, query, num_matched, now_s)
    if not is_found:
        return _NOBODY, r, 0
    if is_first and is_shed(views, nominal, query, hits, knobs, now_s, r, limit):
        is_late = is_shed(views, nominal, query, hits, knobs, now_s, r, np.inf)
        return _LATE if is_late else _EMERGENCY, r, 0
    return PLACED, r, 0


@compiled
def _expected(d, query, now_s, is_placed, r):
    if not is_placed:
        return 0.0
    is_met = is_expected_to_meet(
        views_of(d), nominal_of(d), query, hits_of(d), judge_knobs_of(d), now_s, r
    )
    return 1.0 if is_met else 0.0


@compiled
def _choose_on_paper(d, query, knobs, now_s):
    """Return (whether the request would be placed by its worth under other knobs, where)."""
    factors, ahead = floats_of(d, d.shadow_factors_at), lookahead_of(d)
    borrow_factors(views_of(d), knobs, factors)
    look_ahead(d, ON_PAPER, now_s)
    is_placed = ahead.is_found != 0 and _refusal(d, query, knobs, now_s) == PLACED
    give_back_factors(views_of(d), factors)
    return is_placed, ahead.chosen


@compiled
def _compare(d, query, now_s, is_placed, replica):
    """Compare a choice that was just made, and is not counted yet, with the shadow's."""
    shadow = shadow_of(d)
    if shadow.every == 0:
        return
    shadow.num_seen += 1
    if shadow.num_seen % shadow.every != 0:
        return
    costs, own = floats_of(d, d.shadow_costs_at), bias_of(d, query.group)
    mine, others = floats_of(d, d.knob_bias_at), floats_of(d, d.shadow_bias_at)
    for r in range(costs.size):
        costs[r] = own[r] - mine[r] + others[r]
    knobs = shadow_knobs_of(d)
    if is_by_worth(lookahead_of(d), knobs):
        is_other_placed, other = _choose_on_paper(d, query, knobs, now_s)
    else:
        is_other_placed, other = shadow_choice(
            views_of(d), nominal_of(d), query, hits_of(d), knobs, costs, now_s, shadow.cursor,
            random_of(d.shadow_random_at), cursors_of(d).shed_limits,
            (terms_of(d), floats_of(d, d.shadow_factors_at)),
        )  # fmt: skip
    if is_other_placed:
        shadow.cursor = (other + 1) % costs.size
    difference = _expected(d, query, now_s, is_other_placed, other)
    difference -= _expected(d, query, now_s, is_placed, replica)
    add_difference(shadow, request_of(d).weight, difference)


@compiled
def _keep(d, query, now_s, status, choice, num_judged):
    """Keep a decision in full, if it is its turn; `num_judged` candidates went by worth."""
    cursors, number = cursors_of(d), request_of(d).number
    if cursors.keep_every == 0 or number % cursors.keep_every != 0:
        return
    slot, num, views = cursors.next_slot % d.num_kept, d.num_replicas, views_of(d)
    cursors.next_slot += 1
    decision = decision_of(d, slot)
    decision.number = number
    decision.at_s = now_s
    decision.query = query
    decision.choice = choice
    decision.status = status
    hits, bias, knobs = hits_of(d), bias_of(d, query.group), knobs_of(d)
    decision.hit_tokens = hits[choice]
    kept_views, kept_hits = kept_views_of(d, slot), kept_hits_of(d, slot)
    kept_bias, kept_terms = kept_bias_of(d, slot), kept_terms_of(d, slot)
    keep_choices(d, slot, num_judged)
    scale = (cursors.cursor, num, *waiting_spread(views, query, bias))
    # Noise is not drawn anew, which would change what is drawn next.
    random_weight = knobs.random_weight
    knobs.random_weight = 0.0
    for r in range(num):
        kept_views[r] = views[r]
        kept_hits[r] = hits[r]
        kept_bias[r] = bias[r]
        fill_terms(
            views, nominal_of(d), query, hits, knobs, bias, now_s, r, scale,
            random_of(d.random_at), kept_terms[r],
        )  # fmt: skip
    knobs.random_weight = random_weight


@compiled
def place(
    handle, index_handle, blocks, block_tokens, model, group, priority, lengths, limits,
    session_hash, request, is_first, now_s
):  # fmt: skip
    """Choose a replica for a request and count it there.

    Return (status, replica, hit tokens, predicted TTFT in s, the same for a replica that is not
    slow, expected output tokens, priority). The status is `PLACED` or a `ShedReason`.

    Shapes: `blocks` uint64 [n]; `lengths` are prompt and expected output tokens, `limits` those of
    TTFT and TPOT in s; `request` is the decision's number, the request's weight, and when it came.
    `is_first` is false where it is placed again: it is not charged, shed or compared another time.
    """
    d, index = handle[0], index_handle[0]
    _fill_query(d, group, priority, lengths, limits)
    query, knobs, cursors = query_of(d), knobs_of(d), cursors_of(d)
    query.model = model
    query.session_hash = np.uint64(session_hash)
    kept = request_of(d)
    kept.number, kept.weight, kept.arrived_at_s = request
    _emergency_cut(d, query)
    is_paid, paid_tokens = _charge(d, query, now_s) if is_first else (True, 0.0)
    if not is_paid:
        return _BUDGET, 0, 0, 0.0, 0.0, query.expected_output_tokens, query.priority
    num_matched = _match(d, index, query, blocks, block_tokens)
    views, hits, nominal = views_of(d), hits_of(d), nominal_of(d)
    status, r, num_judged = _decide(d, query, num_matched, is_first, now_s)
    if is_first:
        _compare(d, query, now_s, status == PLACED, r)
    _keep(d, query, now_s, status, r, num_judged)
    uncached_tokens = query.input_tokens - hits[r]
    ttft_s = predicted_ttft_s(views[r], nominal[r], knobs, uncached_tokens, now_s)
    if status == PLACED:
        cursors.cursor = (r + 1) % d.num_replicas
        count_dispatch(views[r], query, uncached_tokens, now_s)
        mirror_placed(d, r, now_s)
        if index_replicas_of(index)[r].is_exact == 0:
            store(index, r, blocks)
    elif paid_tokens > 0.0:
        rule = group_of(d, query.group)
        give_back(bucket_of(d, rule.budget_group), rule, paid_tokens)
    nominal_s = ttft_s / views[r].slow_factor
    return status, r, hits[r], ttft_s, nominal_s, query.expected_output_tokens, query.priority


@compiled
def note_first_token(handle, replica, number, uncached_tokens, observed_s, predicted_s, now_s):
    """Note a request's first token at its replica; `number` is that of the decision."""
    d = handle[0]
    v = views_of(d)[replica]
    count_first_token(v, uncached_tokens, observed_s, predicted_s, now_s)
    refresh_slow_factor(views_of(d), knobs_of(d), replica)
    mirror_first_token(d, replica, number, now_s)


@compiled
def note_prefilled(handle, replica, number, uncached_tokens, now_s):
    """Note that a request is believed to have its prefill behind it, as nothing is seen of it."""
    d = handle[0]
    v = views_of(d)[replica]
    v.pending_tokens = max(0.0, v.pending_tokens - uncached_tokens)
    v.progress_at_s = now_s
    mirror_first_token(d, replica, number, now_s)


@compiled
def note_end(handle, replica, input_tokens, expected_tokens, uncached_tokens, had_token, ended):
    """Note that a request left its replica; `ended` is as in `mirror_end`."""
    d = handle[0]
    query = query_of(d)
    query.input_tokens = max(1, input_tokens)
    query.expected_output_tokens = expected_tokens
    v = views_of(d)[replica]
    # A replica that was forgotten meanwhile has nothing to be taken off.
    if v.outstanding_requests > 0:
        count_end(v, query, uncached_tokens, had_token)
    mirror_end(d, replica, ended)


@compiled
def note_page(handle, replica, page, now_s):
    """Take what a replica's metrics page says; NaN keeps what was known.

    `page` holds running and waiting requests, share of KV in use, cached tokens over KV capacity,
    the logarithm of measured over nominal iteration time, and the share of time on prefill.
    """
    d = handle[0]
    views = views_of(d)
    v = views[replica]
    running, waiting, kv_usage, cached, iteration_log_ratio, prefill_frac = page
    if not np.isnan(running):
        if running != v.running_requests or v.decode_base_s == 0.0:
            refresh_decode_base(views, nominal_of(d), replica, running)
        v.running_requests = running
    if not np.isnan(waiting):
        v.waiting_requests = waiting
    if not np.isnan(kv_usage):
        v.kv_usage_frac = kv_usage
    if not np.isnan(cached):
        v.cached_frac = cached
    if not np.isnan(iteration_log_ratio):
        ratio = moved(v.iteration_log_ratio, ITERATION_RATIO_GAIN, iteration_log_ratio)
        v.iteration_log_ratio = ratio
        refresh_slow_factor(views, knobs_of(d), replica)
    if not np.isnan(prefill_frac):
        v.prefill_frac = moved(v.prefill_frac, PREFILL_FRAC_GAIN, min(prefill_frac, 1.0))
        refresh_prefill_stretch(views, replica)
    v.scraped_at_s = now_s


@compiled
def refresh(handle):
    """Recompute what depends on the knobs and the nominal times."""
    d = handle[0]
    for r in range(d.num_replicas):
        refresh_slow_factor(views_of(d), knobs_of(d), r)
        refresh_prefill_stretch(views_of(d), r)
        refresh_decode_base(views_of(d), nominal_of(d), r, views_of(d)[r].running_requests)
