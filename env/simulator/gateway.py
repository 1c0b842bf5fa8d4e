"""What the gateway sees and does: dispatch, first tokens, finishes, and metrics scrapes.

This is the border between the truth inside the replicas and the view that schedulers get. Own
counts change at once; what stands on an engine's metrics page is as old as the last scrape.

Does not know: how replicas compute.
"""

import numpy as np

from ..compiled import compiled
from ..dispatch import (
    choose_replica,
    is_shed,
    next_uniform,
    predicted_ttft_s,
    refresh_decode_base,
    refresh_prefill_stretch,
    refresh_slow_factor,
)
from .closed_loop import on_end
from .layout import NUM_PRIORITIES, SHED, WAITING
from .memory import (
    bias_of,
    blocks_of,
    fleet_of,
    hits_of,
    holders_of,
    knobs_of,
    next_events_of,
    nominal_of,
    random_of,
    replicas_of,
    requests_of,
    terms_of,
    views_of,
)
from .prefix_cache import match_replicas
from .queues import push_waiting, waiting_list

# Weights of the newest value in the moving averages.
TTFT_RATIO_GAIN = 0.1
ITERATION_RATIO_GAIN = 0.3
PREFILL_FRAC_GAIN = 0.3
OUTPUT_TOKENS_GAIN = 0.01
# Log ratios beyond this (a factor of 20) are taken as this.
LOG_RATIO_LIMIT = 3.0


@compiled
def _footprint_tokens(query):
    return query.input_tokens + 0.5 * query.expected_output_tokens


@compiled
def on_first_token(sim, index):
    """Note a request's first token: its prefill is no backlog any more, its TTFT is known."""
    request = requests_of(sim)[index]
    v = views_of(sim)[request.replica]
    v.pending_tokens = max(0.0, v.pending_tokens - request.believed_uncached_tokens)
    v.progress_at_s = request.first_token_s
    observed_s = request.first_token_s - request.ready_s
    ratio = np.log(max(observed_s, 1e-4) / max(request.predicted_ttft_s, 1e-4))
    ratio = min(max(ratio, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)
    v.ttft_log_ratio += TTFT_RATIO_GAIN * (ratio - v.ttft_log_ratio)
    refresh_slow_factor(views_of(sim), knobs_of(sim), request.replica)


@compiled
def on_finish(sim, index):
    """Note that a request left its replica, finished or failed."""
    request = requests_of(sim)[index]
    v = views_of(sim)[request.replica]
    v.outstanding_requests -= 1
    v.outstanding_tokens = max(0.0, v.outstanding_tokens - _footprint_tokens(request.query))
    if request.generated_tokens == 0:
        v.pending_tokens = max(0.0, v.pending_tokens - request.believed_uncached_tokens)
    k = waiting_list(request)
    mean = fleet_of(sim).expected_output_tokens[k]
    mean += OUTPUT_TOKENS_GAIN * (request.generated_tokens - mean)
    fleet_of(sim).expected_output_tokens[k] = mean


@compiled
def _match(sim, request):
    """Fill `hits_of(sim)` with the prompt tokens that each replica has cached."""
    fleet = fleet_of(sim)
    match_replicas(
        blocks_of(sim), request.first_block, request.num_blocks, holders_of(sim), hits_of(sim)
    )
    if request.num_blocks > 0:
        block_tokens = fleet.block_pages * fleet.page_tokens
        # An engine reuses whole blocks, and computes at least one token.
        most = (request.query.input_tokens - 1) // block_tokens * block_tokens
        for r in range(hits_of(sim).size):
            hits_of(sim)[r] = min(hits_of(sim)[r] * block_tokens, most)


@compiled
def dispatch(sim, index, now_s):
    """Place a request on a replica, or shed it."""
    request, fleet, knobs = requests_of(sim)[index], fleet_of(sim), knobs_of(sim)
    query = request.query
    query.expected_output_tokens = fleet.expected_output_tokens[waiting_list(request)]
    _match(sim, request)
    is_found, r = choose_replica(
        views_of(sim), nominal_of(sim), query, hits_of(sim), knobs, bias_of(sim), now_s,
        fleet.cursor, random_of(sim, 0), terms_of(sim),
    )  # fmt: skip
    if not is_found or is_shed(
        views_of(sim), nominal_of(sim), query, hits_of(sim), knobs, now_s, r
    ):
        request.status = SHED
        request.finish_s = now_s
        on_end(sim, now_s)
        return
    fleet.cursor = (r + 1) % views_of(sim).size
    uncached_tokens = query.input_tokens - hits_of(sim)[r]
    v = views_of(sim)[r]
    ttft_s = predicted_ttft_s(v, nominal_of(sim)[r], knobs, uncached_tokens, now_s)
    request.predicted_ttft_s = ttft_s / v.slow_factor
    request.status = WAITING
    request.replica = r
    request.ready_s = now_s
    request.believed_uncached_tokens = uncached_tokens
    request.num_dispatches += 1
    push_waiting(replicas_of(sim)[r], requests_of(sim), index, False)
    if v.pending_tokens == 0.0:
        v.progress_at_s = now_s
    v.outstanding_requests += 1
    v.outstanding_tokens += _footprint_tokens(query)
    v.pending_tokens += uncached_tokens
    next_events_of(sim)[r] = min(next_events_of(sim)[r], now_s)


@compiled
def scrape(sim, r, now_s):
    """Read a replica's metrics page, unless this scrape is lost."""
    if next_uniform(random_of(sim, 1)) < fleet_of(sim).scrape_drop_frac:
        return
    replica, v = replicas_of(sim)[r], views_of(sim)[r]
    if replica.is_up == 0:
        return
    num_running = replica.num_prefilling + replica.num_decoding
    free_pages = replica.free_pages + replica.num_evictable_blocks * fleet_of(sim).block_pages
    v.running_requests = num_running
    v.waiting_requests = replica.num_waiting
    v.kv_usage_frac = 1.0 - free_pages / replica.total_pages
    cached_pages = replica.num_cached_blocks * fleet_of(sim).block_pages
    v.cached_frac = cached_pages / replica.total_pages
    if replica.nominal_s > 0.0:
        ratio = np.log(replica.measured_s / replica.nominal_s)
        v.iteration_log_ratio += ITERATION_RATIO_GAIN * (ratio - v.iteration_log_ratio)
    if now_s > v.scraped_at_s:
        share = (replica.prefill_s - replica.scraped_prefill_s) / (now_s - v.scraped_at_s)
        v.prefill_frac += PREFILL_FRAC_GAIN * (min(share, 1.0) - v.prefill_frac)
        refresh_prefill_stretch(views_of(sim), r)
    replica.scraped_prefill_s = replica.prefill_s
    replica.measured_s = 0.0
    replica.nominal_s = 0.0
    v.scraped_at_s = now_s
    refresh_decode_base(views_of(sim), nominal_of(sim), r, replica.num_decoding)
    refresh_slow_factor(views_of(sim), knobs_of(sim), r)


@compiled
def forget_replica(sim, r):
    """Empty the gateway's own counts of a replica that crashed."""
    v = views_of(sim)[r]
    v.is_available = 0
    v.outstanding_requests = 0
    v.outstanding_tokens = 0.0
    v.pending_tokens = 0.0
    v.ttft_log_ratio = 0.0
    v.iteration_log_ratio = 0.0
    v.prefill_frac = 0.0
    refresh_prefill_stretch(views_of(sim), r)
    v.running_requests = 0.0
    v.waiting_requests = 0.0
    v.kv_usage_frac = 0.0
    v.cached_frac = 0.0
    refresh_decode_base(views_of(sim), nominal_of(sim), r, 1.0)
    refresh_slow_factor(views_of(sim), knobs_of(sim), r)


__all__ = ["NUM_PRIORITIES", "dispatch", "forget_replica", "on_finish", "on_first_token", "scrape"]
