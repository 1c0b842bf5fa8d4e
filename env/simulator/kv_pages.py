"""KV memory of one replica: pages for running requests, and blocks that stay cached.

A page is free, or held by a running request, or part of a cached block. A decoding sequence takes
a page each `page_tokens` iterations; how many are due in the next iterations is known from a
count of sequences by phase, so a jump needs no look at single sequences.

Does not know: who is admitted or preempted, or time.
Source: vLLM's block manager and automatic prefix caching.
"""

from ..compiled import compiled
from .memory import (
    blocks_of,
    cache_of,
    cache_table_of,
    fleet_of,
    holders_of,
    page_phases_of,
    pinned_entries_of,
    replicas_of,
)
from .prefix_cache import evict_oldest, find_entry, is_held, pin, unpin


@compiled
def pages_of(tokens, fleet):
    """Return the KV pages that hold some tokens."""
    return (tokens + fleet.page_tokens - 1) >> fleet.page_shift


@compiled
def available_pages(sim, r):
    """Return the pages that are free or can be freed by eviction."""
    replica = replicas_of(sim)[r]
    pages = replica.free_pages + replica.num_evictable_blocks * fleet_of(sim).block_pages
    return max(0, pages - replica.lost_pages)


@compiled
def take_pages(sim, r, pages):
    """Take pages, evicting the oldest blocks that nobody uses where needed."""
    replica = replicas_of(sim)[r]
    while replica.free_pages < pages:
        evict_oldest(replica, cache_table_of(sim, r), cache_of(sim, r), holders_of(sim), r)
        replica.free_pages += fleet_of(sim).block_pages
    replica.free_pages -= pages


@compiled
def unpin_blocks(sim, r, request):
    """Drop a request's hold on its cached blocks."""
    # Last block first, so that the tail of a prompt is evicted before its head.
    for position in range(request.pinned_blocks - 1, -1, -1):
        entry = pinned_entries_of(sim)[request.first_block + position]
        unpin(replicas_of(sim)[r], cache_of(sim, r), entry)
    request.pinned_blocks = 0


@compiled
def pin_hits(sim, r, request):
    """Pin the leading cached blocks of a request; at least one token is left to compute."""
    block_tokens = fleet_of(sim).block_pages * fleet_of(sim).page_tokens
    limit = min(request.num_blocks, (request.prefill_target_tokens - 1) // max(block_tokens, 1))
    for position in range(limit):
        block = blocks_of(sim)[request.first_block + position]
        if not is_held(holders_of(sim), block, r):
            break
        entry = find_entry(cache_table_of(sim, r), cache_of(sim, r), block)
        pin(replicas_of(sim)[r], cache_of(sim, r), entry)
        pinned_entries_of(sim)[request.first_block + position] = entry
        request.pinned_blocks += 1


@compiled
def release(sim, r, request, kv_tokens):
    """Give back a running request's KV pages; its cached blocks stay, unpinned."""
    fleet = fleet_of(sim)
    own_pages = pages_of(kv_tokens, fleet) - request.pinned_blocks * fleet.block_pages
    replicas_of(sim)[r].free_pages += own_pages
    unpin_blocks(sim, r, request)


@compiled
def growth_pages(sim, r, iterations):
    """Pages that the decode batch takes in the next iterations: one each `page_tokens`."""
    fleet, replica, phases = fleet_of(sim), replicas_of(sim)[r], page_phases_of(sim, r)
    mask = fleet.page_tokens - 1
    pages = (iterations >> fleet.page_shift) * replica.num_decoding
    for i in range(iterations & mask):
        pages += phases[(replica.decode_iteration + 1 + i) & mask]
    return pages


@compiled
def iterations_within_pages(sim, r, limit):
    """Return the most iterations, up to a limit, whose growth fits the available pages."""
    available = available_pages(sim, r)
    fleet, replica, phases = fleet_of(sim), replicas_of(sim)[r], page_phases_of(sim, r)
    # Each sequence takes at most one page for every started cycle.
    if ((limit >> fleet.page_shift) + 1) * replica.num_decoding <= available:
        return limit
    if growth_pages(sim, r, limit) <= available:
        return limit
    cycles = available // replica.num_decoding
    iterations = cycles << fleet.page_shift
    left = available - cycles * replica.num_decoding
    while iterations < limit:
        left -= phases[(replica.decode_iteration + 1 + iterations) & (fleet.page_tokens - 1)]
        if left < 0:
            break
        iterations += 1
    return iterations
