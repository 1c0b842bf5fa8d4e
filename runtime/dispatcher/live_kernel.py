"""One compiled call a request: match its prefix, choose, count, and keep what is to be explained.

The choice is the dispatch kernel's and the counts are the simulator's own (`env/gateway_counts`).

Does not know: HTTP, names, or where the rules come from.
"""

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ...env.budget import BUCKET_DTYPE, give_back, has_budget, take_from_bucket
from ...env.compiled import compiled
from ...env.dispatch import (
    NUM_TERMS,
    QUERY_DTYPE,
    VIEW_DTYPE,
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
from ...env.knobs import KNOBS_DTYPE
from ...env.latency import LATENCY_DTYPE
from ...env.pointers import pointer
from ...env.restrictions import GROUP_DTYPE
from ...env.shadow import add_difference, is_expected_to_meet, shadow_choice
from ...env.shed_reason import ShedReason
from ...env.shortlist import (
    CANDIDATE_DTYPE,
    MAX_HOLDERS,
    SHORTLIST_SIZE,
    can_use_shortlist,
    choose_candidate,
)
from .live_arrays import CURSOR_DTYPE, DECISION_DTYPE, NUM_CLASSES, SHADOW_SUM_DTYPE
from .prefix_kernel import match, store
from .prefix_kernel import replicas_of as index_replicas_of

PLACED = 0
"""Status of a request that has a replica; else it is a `ShedReason`."""
_LATE, _NOBODY = int(ShedReason.LATE), int(ShedReason.NOBODY)
_BUDGET, _EMERGENCY = int(ShedReason.BUDGET), int(ShedReason.EMERGENCY)


@compiled
def _cursors_of(d):
    return carray(pointer(d.cursors_at), (1,), CURSOR_DTYPE)[0]


@compiled
def _query_of(d):
    return carray(pointer(d.query_at), (1,), QUERY_DTYPE)[0]


@compiled
def _views_of(d):
    return carray(pointer(d.views_at), (d.num_replicas,), VIEW_DTYPE)


@compiled
def _nominal_of(d):
    return carray(pointer(d.nominal_at), (d.num_replicas,), LATENCY_DTYPE)


@compiled
def _knobs_of(d):
    return carray(pointer(d.knobs_at), (1,), KNOBS_DTYPE)[0]


@compiled
def _bias_of(d, group):
    rows = carray(pointer(d.bias_at), (d.num_groups, d.num_replicas), np.float64)
    return rows[group]


@compiled
def _group_of(d, group):
    return carray(pointer(d.groups_at), (d.num_groups,), GROUP_DTYPE)[group]


@compiled
def _bucket_of(d, group):
    return carray(pointer(d.buckets_at), (d.num_groups,), BUCKET_DTYPE)[group]


@compiled
def _hits_of(d):
    return carray(pointer(d.hits_at), (d.num_replicas,), np.int64)


@compiled
def _floats_of(d, at):
    return carray(pointer(at), (d.num_replicas,), np.float64)


@compiled
def _terms_of(d):
    return carray(pointer(d.terms_at), (NUM_TERMS,), np.float64)


@compiled
def _random_of(at):
    return carray(pointer(at), (1,), np.uint64)


@compiled
def _fill_query(d, group, priority, lengths, limits):
    """Fill the query of a request, with what its group says in place of its own limits."""
    query, rule = _query_of(d), _group_of(d, group)
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
    cursors = _cursors_of(d)
    if query.priority > 0:
        query.expected_output_tokens = min(query.expected_output_tokens, cursors.most_output_tokens)
    tokens = query.input_tokens + query.expected_output_tokens
    query.may_spill = np.int32(tokens <= cursors.spill_tokens)


@compiled
def _match(d, index, query, blocks, block_tokens):
    """Fill the prompt tokens that each replica has cached; return how many have some."""
    hits = _hits_of(d)
    matched = carray(pointer(d.matched_at), (d.num_replicas,), np.int64)
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
    group = _group_of(d, query.group)
    if not has_budget(group):
        return True, 0.0
    tokens = query.input_tokens + query.expected_output_tokens
    if take_from_bucket(_bucket_of(d, group.budget_group), group, tokens, now_s):
        return True, tokens
    if group.is_demoting == 0:
        return False, 0.0
    query.priority = NUM_CLASSES - 1
    return True, 0.0


@compiled
def _choose(d, query, num_matched, now_s):
    """Return (whether a replica can take the request, which one is cheapest)."""
    cursors, knobs = _cursors_of(d), _knobs_of(d)
    bias, hits = _bias_of(d, query.group), _hits_of(d)
    if cursors.num_candidates > 0 and can_use_shortlist(knobs):
        matched = carray(pointer(d.matched_at), (d.num_replicas,), np.int64)
        lists = carray(
            pointer(d.shortlists_at),
            (d.num_shortlists, SHORTLIST_SIZE + MAX_HOLDERS),
            CANDIDATE_DTYPE,
        )
        kind = query.model * NUM_CLASSES + min(query.priority, NUM_CLASSES - 1)
        is_found, r, cursors.walk = choose_candidate(
            _views_of(d), _nominal_of(d), query, hits, matched[:num_matched], knobs, bias, now_s,
            lists[kind], (cursors.walk, cursors.num_candidates),
        )  # fmt: skip
        if is_found:
            return is_found, r
    return choose_replica(
        _views_of(d), _nominal_of(d), query, hits, knobs, bias, now_s, cursors.cursor,
        _random_of(d.random_at), _terms_of(d),
    )  # fmt: skip


@compiled
def _expected(d, query, now_s, is_placed, r):
    if not is_placed:
        return 0.0
    judge = carray(pointer(d.judge_at), (1,), KNOBS_DTYPE)[0]
    is_met = is_expected_to_meet(_views_of(d), _nominal_of(d), query, _hits_of(d), judge, now_s, r)
    return 1.0 if is_met else 0.0


@compiled
def _compare(d, query, weight, now_s, is_placed, replica):
    """Compare a choice that was just made, and is not counted yet, with the shadow's."""
    shadow = carray(pointer(d.shadow_at), (1,), SHADOW_SUM_DTYPE)[0]
    if shadow.every == 0:
        return
    shadow.num_seen += 1
    if shadow.num_seen % shadow.every != 0:
        return
    costs, own = _floats_of(d, d.shadow_costs_at), _bias_of(d, query.group)
    mine, others = _floats_of(d, d.knob_bias_at), _floats_of(d, d.shadow_bias_at)
    for r in range(costs.size):
        costs[r] = own[r] - mine[r] + others[r]
    knobs = carray(pointer(d.shadow_knobs_at), (1,), KNOBS_DTYPE)[0]
    is_other_placed, other = shadow_choice(
        _views_of(d), _nominal_of(d), query, _hits_of(d), knobs, costs, now_s, shadow.cursor,
        _random_of(d.shadow_random_at), _cursors_of(d).shed_limits,
        (_terms_of(d), _floats_of(d, d.shadow_factors_at)),
    )  # fmt: skip
    if is_other_placed:
        shadow.cursor = (other + 1) % costs.size
    difference = _expected(d, query, now_s, is_other_placed, other)
    difference -= _expected(d, query, now_s, is_placed, replica)
    add_difference(shadow, weight, difference)


@compiled
def _keep(d, query, now_s, status, choice):
    """Keep a decision in full, if it is its turn."""
    cursors = _cursors_of(d)
    cursors.num_decided += 1
    if cursors.keep_every == 0 or cursors.num_decided % cursors.keep_every != 0:
        return
    slot, num, views = cursors.next_slot % d.num_kept, d.num_replicas, _views_of(d)
    cursors.next_slot += 1
    decision = carray(pointer(d.decisions_at), (d.num_kept,), DECISION_DTYPE)[slot]
    decision.number = cursors.num_decided
    decision.at_s = now_s
    decision.query = query
    decision.choice = choice
    decision.status = status
    hits, bias, knobs = _hits_of(d), _bias_of(d, query.group), _knobs_of(d)
    decision.hit_tokens = hits[choice]
    kept_views = carray(pointer(d.kept_views_at), (d.num_kept, num), VIEW_DTYPE)[slot]
    kept_hits = carray(pointer(d.kept_hits_at), (d.num_kept, num), np.int64)[slot]
    kept_bias = carray(pointer(d.kept_bias_at), (d.num_kept, num), np.float64)[slot]
    kept_terms = carray(pointer(d.kept_terms_at), (d.num_kept, num, NUM_TERMS), np.float64)[slot]
    scale = (cursors.cursor, num, *waiting_spread(views, query, bias))
    # Noise is not drawn anew, which would change what is drawn next.
    random_weight = knobs.random_weight
    knobs.random_weight = 0.0
    for r in range(num):
        kept_views[r] = views[r]
        kept_hits[r] = hits[r]
        kept_bias[r] = bias[r]
        fill_terms(
            views, _nominal_of(d), query, hits, knobs, bias, now_s, r, scale,
            _random_of(d.random_at), kept_terms[r],
        )  # fmt: skip
    knobs.random_weight = random_weight


@compiled
def place(
    handle, index_handle, blocks, block_tokens, model, group, priority, lengths, limits,
    session_hash, weight, is_first, now_s
):  # fmt: skip
    """Choose a replica for a request and count it there.

    Return (status, replica, hit tokens, predicted TTFT in s, the same for a replica that is not
    slow, expected output tokens, priority). The status is `PLACED` or a `ShedReason`.

    Shapes: `blocks` uint64 [n]; `lengths` are prompt and expected output tokens, `limits` those of
    TTFT and TPOT in s. `is_first` is false where a request is placed again: it is not charged,
    shed or compared another time.
    """
    d, index = handle[0], index_handle[0]
    _fill_query(d, group, priority, lengths, limits)
    query, knobs, cursors = _query_of(d), _knobs_of(d), _cursors_of(d)
    query.model = model
    query.session_hash = np.uint64(session_hash)
    _emergency_cut(d, query)
    is_paid, paid_tokens = _charge(d, query, now_s) if is_first else (True, 0.0)
    if not is_paid:
        return _BUDGET, 0, 0, 0.0, 0.0, query.expected_output_tokens, query.priority
    num_matched = _match(d, index, query, blocks, block_tokens)
    is_found, r = _choose(d, query, num_matched, now_s)
    views, hits, nominal = _views_of(d), _hits_of(d), _nominal_of(d)
    status = PLACED if is_found else _NOBODY
    limit = cursors.shed_limits
    if is_found and is_first and is_shed(views, nominal, query, hits, knobs, now_s, r, limit):
        is_late = is_shed(views, nominal, query, hits, knobs, now_s, r, np.inf)
        status = _LATE if is_late else _EMERGENCY
    if is_first:
        _compare(d, query, weight, now_s, status == PLACED, r)
    _keep(d, query, now_s, status, r)
    uncached_tokens = query.input_tokens - hits[r]
    ttft_s = predicted_ttft_s(views[r], nominal[r], knobs, uncached_tokens, now_s)
    if status == PLACED:
        cursors.cursor = (r + 1) % d.num_replicas
        count_dispatch(views[r], query, uncached_tokens, now_s)
        if index_replicas_of(index)[r].is_exact == 0:
            store(index, r, blocks)
    elif paid_tokens > 0.0:
        rule = _group_of(d, query.group)
        give_back(_bucket_of(d, rule.budget_group), rule, paid_tokens)
    nominal_s = ttft_s / views[r].slow_factor
    return status, r, hits[r], ttft_s, nominal_s, query.expected_output_tokens, query.priority


@compiled
def note_first_token(handle, replica, uncached_tokens, observed_s, predicted_s, now_s):
    """Note a request's first token at its replica."""
    d = handle[0]
    v = _views_of(d)[replica]
    count_first_token(v, uncached_tokens, observed_s, predicted_s, now_s)
    refresh_slow_factor(_views_of(d), _knobs_of(d), replica)


@compiled
def note_prefilled(handle, replica, uncached_tokens, now_s):
    """Note that a request is believed to have its prefill behind it, as nothing is seen of it."""
    v = _views_of(handle[0])[replica]
    v.pending_tokens = max(0.0, v.pending_tokens - uncached_tokens)
    v.progress_at_s = now_s


@compiled
def note_end(handle, replica, input_tokens, expected_tokens, uncached_tokens, had_token):
    """Note that a request left its replica."""
    d = handle[0]
    query = _query_of(d)
    query.input_tokens = max(1, input_tokens)
    query.expected_output_tokens = expected_tokens
    v = _views_of(d)[replica]
    # A replica that was forgotten meanwhile has nothing to be taken off.
    if v.outstanding_requests > 0:
        count_end(v, query, uncached_tokens, had_token)


@compiled
def note_page(handle, replica, page, now_s):
    """Take what a replica's metrics page says; NaN keeps what was known.

    `page` holds running and waiting requests, share of KV in use, cached tokens over KV capacity,
    the logarithm of measured over nominal iteration time, and the share of time on prefill.
    """
    d = handle[0]
    views = _views_of(d)
    v = views[replica]
    running, waiting, kv_usage, cached, iteration_log_ratio, prefill_frac = page
    if not np.isnan(running):
        if running != v.running_requests or v.decode_base_s == 0.0:
            refresh_decode_base(views, _nominal_of(d), replica, running)
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
        refresh_slow_factor(views, _knobs_of(d), replica)
    if not np.isnan(prefill_frac):
        v.prefill_frac = moved(v.prefill_frac, PREFILL_FRAC_GAIN, min(prefill_frac, 1.0))
        refresh_prefill_stretch(views, replica)
    v.scraped_at_s = now_s


@compiled
def refresh(handle):
    """Recompute what depends on the knobs and the nominal times."""
    d = handle[0]
    for r in range(d.num_replicas):
        refresh_slow_factor(_views_of(d), _knobs_of(d), r)
        refresh_prefill_stretch(_views_of(d), r)
        refresh_decode_base(_views_of(d), _nominal_of(d), r, _views_of(d)[r].running_requests)
