"""What the gateway sees and does: dispatch, first tokens, finishes, and metrics scrapes.

This is the border between the truth inside the replicas and the view that schedulers get. Own
counts change at once; what stands on an engine's metrics page is as old as the last scrape.

Does not know: how replicas compute.
"""

import numpy as np

from ...traces.hashing import mix64
from ..compiled import compiled
from ..dispatch import (
    can_take,
    choose_replica,
    is_shed,
    next_uniform,
    predicted_ttft_s,
    refresh_decode_base,
    refresh_prefill_stretch,
    refresh_slow_factor,
)
from ..gateway_counts import (
    ITERATION_RATIO_GAIN,
    OUTPUT_TOKENS_GAIN,
    PREFILL_FRAC_GAIN,
    count_dispatch,
    count_end,
    count_first_token,
    footprint_tokens,
    moved,
)
from ..lookahead.decide import refusal_of
from ..lookahead.settings import is_by_worth
from ..shed_reason import ShedReason
from ..shortlist import can_use_shortlist, choose_candidate
from . import calls
from .budgets import charge, refund
from .calls import called_as
from .closed_loop import on_end
from .due import wake
from .emergencies import shrink
from .late_pages import fill, hand_on, show_newest
from .layout import NONE, NUM_PRIORITIES, SHED, WAITING
from .life import Moment, keep_view, note
from .lookahead import (
    mirror_end,
    mirror_first_token,
    mirror_forgotten,
    mirror_moved,
    mirror_placed,
)
from .memory import (
    bias_of,
    blocks_of,
    decode_bases_of,
    fleet_of,
    gateways_of,
    hits_of,
    holders_of,
    knobs_of,
    lookahead_of,
    matched_of,
    nominal_of,
    random_of,
    replicas_of,
    requests_of,
    scraped_of,
    shadow_of,
    shortlist_of,
    terms_of,
    views_of,
)
from .prefix_cache import match_replicas
from .queues import push_waiting, waiting_list
from .shadow import compare


@compiled
def on_first_token(sim, index):
    """Note a request's first token: its prefill is no backlog any more, its TTFT is known."""
    request = requests_of(sim)[index]
    v = views_of(sim, request.gateway)[request.replica]
    count_first_token(
        v, request.believed_uncached_tokens, request.first_token_s - request.ready_s,
        request.predicted_ttft_s, request.first_token_s,
    )  # fmt: skip
    refresh_slow_factor(views_of(sim, request.gateway), knobs_of(sim), request.replica)
    mirror_first_token(sim, index)


@compiled
def on_finish(sim, index):
    """Note that a request left its replica, finished or failed."""
    request = requests_of(sim)[index]
    v = views_of(sim, request.gateway)[request.replica]
    had_token = request.generated_tokens > 0
    count_end(v, request.query, request.believed_uncached_tokens, had_token)
    k = waiting_list(request)
    expected = gateways_of(sim)[request.gateway].expected_output_tokens
    expected[k] += OUTPUT_TOKENS_GAIN * (request.generated_tokens - expected[k])
    mirror_end(sim, index)


@compiled
def _match(sim, request):
    """Fill `hits_of(sim)` with the prompt tokens that each replica has cached."""
    fleet, hits, matched = fleet_of(sim), hits_of(sim), matched_of(sim)
    fleet.num_matched = match_replicas(
        blocks_of(sim), request.first_block, request.num_blocks, holders_of(sim), hits, matched,
        fleet.num_matched,
    )  # fmt: skip
    if fleet.num_matched > 0:
        block_tokens = fleet.block_pages * fleet.page_tokens
        # An engine reuses whole blocks, and computes at least one token.
        most = (request.query.input_tokens - 1) // block_tokens * block_tokens
        for i in range(fleet.num_matched):
            hits[matched[i]] = min(hits[matched[i]] * block_tokens, most)


@compiled
def _gateway_of(sim, query):
    """Return the gateway that takes a request: the one of its session."""
    if sim.num_gateways == 1:
        return 0
    return np.int64(mix64(query.session_hash) % np.uint64(sim.num_gateways))


@compiled
def _choose(sim, g, query, now_s):
    """Return (whether a replica can take the request, which one the gateway chooses)."""
    fleet, gateway, knobs = fleet_of(sim), gateways_of(sim)[g], knobs_of(sim)
    if fleet.num_candidates > 0 and can_use_shortlist(knobs):
        is_found, r, gateway.walk = choose_candidate(
            views_of(sim, g), nominal_of(sim), query, hits_of(sim),
            matched_of(sim)[: fleet.num_matched], knobs, bias_of(sim, query.group), now_s,
            shortlist_of(sim, g, query.model, min(query.priority, NUM_PRIORITIES - 1)),
            (gateway.walk, fleet.num_candidates),
        )  # fmt: skip
        if is_found:
            return is_found, r
    return choose_replica(
        views_of(sim, g), nominal_of(sim), query, hits_of(sim), knobs, bias_of(sim, query.group),
        now_s, gateway.cursor, random_of(sim, 2 * g), terms_of(sim),
    )  # fmt: skip


@compiled
def _refusal(sim, index, now_s, r):
    """Return why a request is not sent to the replica that it is worth most at, 0 if it is."""
    request, knobs = requests_of(sim)[index], knobs_of(sim)
    query = request.query
    uncached_tokens = query.input_tokens - hits_of(sim)[r]
    v = views_of(sim, request.gateway)[r]
    ttft_s = predicted_ttft_s(v, nominal_of(sim)[r], knobs, uncached_tokens, now_s)
    return refusal_of(lookahead_of(sim).is_worth, ttft_s, query, knobs, fleet_of(sim).shed_limits)


@compiled
def _decide(sim, index, now_s):
    """Return (whether a replica can take the request, whether it is sent there, which one)."""
    request, knobs, most_limits = requests_of(sim)[index], knobs_of(sim), fleet_of(sim).shed_limits
    query, views = request.query, views_of(sim, request.gateway)
    if is_by_worth(lookahead_of(sim), knobs):
        calls.look_ahead(sim, index, now_s)
        ahead = lookahead_of(sim)
        is_placed = ahead.is_found != 0 and _refusal(sim, index, now_s, ahead.chosen) == 0
        return ahead.is_found != 0, is_placed, ahead.chosen
    is_found, r = _choose(sim, request.gateway, query, now_s)
    is_placed = is_found and not is_shed(
        views, nominal_of(sim), query, hits_of(sim), knobs, now_s, r, most_limits
    )
    return is_found, is_placed, r


@compiled
def _reason(sim, index, now_s, r):
    """Return why a request that a replica could take is refused."""
    request, knobs = requests_of(sim)[index], knobs_of(sim)
    query, views = request.query, views_of(sim, request.gateway)
    if is_by_worth(lookahead_of(sim), knobs):
        return np.int64(_refusal(sim, index, now_s, r))
    is_late = is_shed(views, nominal_of(sim), query, hits_of(sim), knobs, now_s, r, np.inf)
    return np.int64(ShedReason.LATE if is_late else ShedReason.EMERGENCY)


@compiled
def _refuse(sim, index, now_s, r, reason):
    """Refuse a request; `r` is the replica that was best for it, or `NONE`."""
    request = requests_of(sim)[index]
    request.status = SHED
    request.finish_s = now_s
    request.shed_reason = reason
    refund(sim, index)
    note(sim, index, Moment.SHED, now_s, r, request.shed_reason)
    on_end(sim, now_s)


@compiled
def _place(sim, index, now_s, r):
    """Send a request to a replica."""
    request = requests_of(sim)[index]
    query, g = request.query, request.gateway
    v = views_of(sim, g)[r]
    gateways_of(sim)[g].cursor = (r + 1) % sim.num_replicas
    uncached_tokens = query.input_tokens - hits_of(sim)[r]
    ttft_s = predicted_ttft_s(v, nominal_of(sim)[r], knobs_of(sim), uncached_tokens, now_s)
    request.predicted_ttft_s = ttft_s / v.slow_factor
    request.status = WAITING
    request.replica = r
    request.ready_s = now_s
    request.believed_uncached_tokens = uncached_tokens
    request.num_dispatches += 1
    note(sim, index, Moment.DISPATCHED, now_s, r, ttft_s)
    push_waiting(replicas_of(sim)[r], requests_of(sim), index, False)
    count_dispatch(v, query, uncached_tokens, now_s)
    mirror_placed(sim, index, r, np.int64(uncached_tokens), now_s)
    wake(sim, r, now_s)


@called_as("dispatch")
def dispatch(sim, index, now_s):
    """Place a request on a replica, or shed it."""
    request = requests_of(sim)[index]
    query = request.query
    g = _gateway_of(sim, query)
    request.gateway = g
    gateway = gateways_of(sim)[g]
    query.expected_output_tokens = gateway.expected_output_tokens[waiting_list(request)]
    shrink(sim, index)
    if not charge(sim, index, now_s):
        _refuse(sim, index, now_s, NONE, ShedReason.BUDGET)
        return
    expected_tokens = query.input_tokens + query.expected_output_tokens
    query.may_spill = int(expected_tokens <= fleet_of(sim).spill_tokens)
    _match(sim, request)
    keep_view(sim, index, now_s)
    is_found, is_placed, r = _decide(sim, index, now_s)
    if shadow_of(sim).every > 0:
        compare(sim, index, now_s, is_placed, r)
    if not is_found:
        _refuse(sim, index, now_s, NONE, ShedReason.NOBODY)
        return
    if not is_placed:
        _refuse(sim, index, now_s, r, _reason(sim, index, now_s, r))
        return
    _place(sim, index, now_s, r)


@compiled
def _least_of_kind(sim, g, query, kv_kind):
    """Return (whether there is one, the replica of a KV format that has fewest requests)."""
    views, is_found, best = views_of(sim, g), False, 0
    bias = bias_of(sim, query.group)
    for r in range(views.size):
        if replicas_of(sim)[r].kv_kind != kv_kind or not can_take(views, query, bias, r):
            continue
        if not is_found or views[r].outstanding_requests < views[best].outstanding_requests:
            is_found, best = True, r
    return is_found, best


@compiled
def choose_decoder(sim, index, now_s):
    """Return (whether there is one, the replica that a request with its prefill done goes on at).

    Its KV comes along, so every replica counts as one that holds the whole prompt.
    """
    request, fleet, hits = requests_of(sim)[index], fleet_of(sim), hits_of(sim)
    query, g = request.query, request.gateway
    query.phase = 1
    hits[:] = query.input_tokens
    is_found, r = choose_replica(
        views_of(sim, g), nominal_of(sim), query, hits, knobs_of(sim), bias_of(sim, query.group),
        now_s, fleet.decode_cursor, random_of(sim, 2 * g), terms_of(sim),
    )  # fmt: skip
    hits[:] = 0
    fleet.num_matched = 0
    kv_kind = replicas_of(sim)[request.source].kv_kind
    if is_found and replicas_of(sim)[r].kv_kind != kv_kind:
        is_found, r = _least_of_kind(sim, g, query, kv_kind)
    query.phase = 0
    if is_found:
        fleet.decode_cursor = (r + 1) % hits.size
    return is_found, r


@compiled
def move(sim, index, r):
    """Count a request that has its first token at another replica."""
    request = requests_of(sim)[index]
    request_tokens = footprint_tokens(request.query)
    v = views_of(sim, request.gateway)[request.replica]
    v.outstanding_requests -= 1
    v.outstanding_tokens = max(0.0, v.outstanding_tokens - request_tokens)
    mirror_moved(sim, index, r)
    request.replica = r
    v = views_of(sim, request.gateway)[r]
    v.outstanding_requests += 1
    v.outstanding_tokens += request_tokens


@compiled
def _refresh_decode_base(sim, g, r, num_sequences):
    """Recompute a replica's nominal decode iteration, remembered where it was asked before."""
    bases_s = decode_bases_of(sim, replicas_of(sim)[r].kind)
    if num_sequences >= bases_s.size:
        refresh_decode_base(views_of(sim, g), nominal_of(sim), r, num_sequences)
        return
    if np.isnan(bases_s[num_sequences]):
        refresh_decode_base(views_of(sim, g), nominal_of(sim), r, num_sequences)
        bases_s[num_sequences] = views_of(sim, g)[r].decode_base_s
    views_of(sim, g)[r].decode_base_s = bases_s[num_sequences]


@compiled
def scrape(sim, g, r, now_s):
    """Let a gateway read a replica's metrics page; where pages are late, an older one shows."""
    if fleet_of(sim).page_lag == 0:
        _read_page(sim, g, r, now_s)
        return
    show_newest(sim, g, r)
    _read_page(sim, g, r, now_s)
    hand_on(sim, g, r)
    refresh_slow_factor(views_of(sim, g), knobs_of(sim), r)


@compiled
def _read_page(sim, g, r, now_s):
    """Read a replica's metrics page, unless this scrape is lost."""
    if next_uniform(random_of(sim, 2 * g + 1)) < fleet_of(sim).scrape_drop_frac:
        return
    replica, v, before = replicas_of(sim)[r], views_of(sim, g)[r], scraped_of(sim, g)[r]
    if replica.is_page_lost != 0 or (replica.is_up == 0 and replica.is_unnoticed == 0):
        return
    if replica.is_page_frozen != 0 or replica.is_up == 0:
        v.scraped_at_s = now_s
        return
    # Engines count each sequence of a request as a running one.
    num_running = replica.num_prefill_sequences + replica.num_sequences
    free_pages = replica.free_pages + replica.num_evictable_blocks * fleet_of(sim).block_pages
    v.running_requests = num_running * replica.queue_factor
    v.waiting_requests = replica.num_waiting * replica.queue_factor
    v.kv_usage_frac = 1.0 - free_pages / replica.total_pages
    cached_pages = replica.num_cached_blocks * fleet_of(sim).block_pages
    v.cached_frac = cached_pages / replica.total_pages
    measured_s = replica.measured_s - before.measured_s
    nominal_s = replica.nominal_s - before.nominal_s
    if nominal_s > 0.0:
        ratio = np.log(measured_s / nominal_s) if measured_s != nominal_s else 0.0
        if ratio != 0.0 or v.iteration_log_ratio != 0.0:
            v.iteration_log_ratio = moved(v.iteration_log_ratio, ITERATION_RATIO_GAIN, ratio)
            refresh_slow_factor(views_of(sim, g), knobs_of(sim), r)
    if now_s > v.scraped_at_s:
        share = (replica.prefill_s - before.prefill_s) / (now_s - v.scraped_at_s)
        v.prefill_frac = moved(v.prefill_frac, PREFILL_FRAC_GAIN, min(share, 1.0))
        refresh_prefill_stretch(views_of(sim, g), r)
    if replica.num_sequences != before.num_sequences:
        _refresh_decode_base(sim, g, r, replica.num_sequences)
    _remember_page(sim, g, r)
    v.scraped_at_s = now_s


@compiled
def _remember_page(sim, g, r):
    replica, before = replicas_of(sim)[r], scraped_of(sim, g)[r]
    before.measured_s = replica.measured_s
    before.nominal_s = replica.nominal_s
    before.prefill_s = replica.prefill_s
    before.num_sequences = replica.num_sequences


@compiled
def forget_replica(sim, r):
    """Empty all gateways' counts of a replica that crashed; each sees its connections break."""
    for g in range(sim.num_gateways):
        _forget(sim, g, r)


@compiled
def _forget(sim, g, r):
    v = views_of(sim, g)[r]
    v.is_available = 0
    v.outstanding_requests = 0
    v.outstanding_tokens = 0.0
    v.pending_tokens = 0.0
    v.ttft_log_ratio = 0.0
    v.iteration_log_ratio = 0.0
    v.prefill_frac = 0.0
    refresh_prefill_stretch(views_of(sim, g), r)
    v.running_requests = 0.0
    v.waiting_requests = 0.0
    v.kv_usage_frac = 0.0
    v.cached_frac = 0.0
    mirror_forgotten(sim, g, r)
    refresh_decode_base(views_of(sim, g), nominal_of(sim), r, 1.0)
    refresh_slow_factor(views_of(sim, g), knobs_of(sim), r)
    fill(sim, g, r)


@compiled
def dismiss_replica(sim, r):
    """Let all gateways send nothing new to a replica."""
    for g in range(sim.num_gateways):
        views_of(sim, g)[r].is_available = 0


@compiled
def welcome_replica(sim, r, now_s):
    """Let all gateways send to a replica that is up again."""
    for g in range(sim.num_gateways):
        v = views_of(sim, g)[r]
        v.is_available = 1
        v.scraped_at_s = now_s
        v.progress_at_s = now_s
        _remember_page(sim, g, r)
        fill(sim, g, r)


__all__ = [
    "NUM_PRIORITIES",
    "choose_decoder",
    "dismiss_replica",
    "dispatch",
    "forget_replica",
    "move",
    "on_finish",
    "on_first_token",
    "scrape",
    "welcome_replica",
]
