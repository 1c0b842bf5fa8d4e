"""KV memory of one replica: pages for running requests, and blocks that stay cached.

A page is free, or held by a running request, or part of a cached block. A decoding sequence takes
a page each `page_tokens` iterations; how many are due in the next iterations is known from a
count of sequences by phase, so a jump needs no look at single sequences.

Does not know: who is admitted or preempted, or time.
Source: vLLM's block manager and automatic prefix caching.
"""

import numpy as np

from ..compiled import compiled
from .host_tier import keep_block
from .memory import (
    blocks_of,
    cache_of,
    cache_table_of,
    fleet_of,
    holders_of,
    hosts_of,
    page_phases_of,
    pinned_entries_of,
    replicas_of,
)
from .prefix_cache import (
    evict_oldest,
    find_entry,
    insert_pinned,
    is_held,
    pin,
    reusable_blocks,
    unpin,
)


@compiled
def pages_of(tokens, fleet):
    """Return the KV pages that hold some tokens."""
    return (tokens + fleet.page_tokens - 1) >> fleet.page_shift


@compiled
def request_pages(request, kv_tokens, fleet):
    """Return the KV pages of a request whose sequences have some tokens each.

    Its sequences share the full pages of the prompt; each has a copy of the page after them.
    """
    pages = pages_of(kv_tokens, fleet)
    if request.extra_sequences > 0:
        shared_pages = request.query.input_tokens >> fleet.page_shift
        pages += request.extra_sequences * (pages - shared_pages)
    return pages


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
        block = evict_oldest(replica, cache_table_of(sim, r), cache_of(sim, r), holders_of(sim), r)
        replica.free_pages += fleet_of(sim).block_pages
        if hosts_of(sim)[r].is_tier != 0:
            keep_block(sim, r, block)
    replica.free_pages -= pages
    held_pages = replica.total_pages - available_pages(sim, r)
    replica.peak_pages = max(replica.peak_pages, held_pages)


@compiled
def unpin_blocks(sim, r, request):
    """Drop a request's hold on its cached blocks."""
    # Last block first, so that the tail of a prompt is evicted before its head.
    for position in range(request.pinned_blocks - 1, -1, -1):
        entry = np.int64(pinned_entries_of(sim)[request.first_block + position])
        unpin(replicas_of(sim)[r], cache_of(sim, r), entry)
    request.pinned_blocks = 0


@compiled
def pin_hits(sim, r, request):
    """Pin the leading cached blocks of a request; at least one token is left to compute."""
    for position in range(reusable_blocks(request, fleet_of(sim))):
        block = blocks_of(sim)[request.first_block + position]
        if not is_held(holders_of(sim), block, r):
            break
        entry = find_entry(cache_table_of(sim, r), cache_of(sim, r), block)
        pin(replicas_of(sim)[r], cache_of(sim, r), entry)
        pinned_entries_of(sim)[request.first_block + position] = entry
        request.pinned_blocks += 1


@compiled
def cache_prompt(sim, r, request):
    """Cache the prompt blocks of a request that it holds in pages of its own, pinned by it."""
    replica, cache, holders = replicas_of(sim)[r], cache_of(sim, r), holders_of(sim)
    for position in range(request.pinned_blocks, request.num_blocks):
        block = blocks_of(sim)[request.first_block + position]
        if is_held(holders, block, r):
            entry = find_entry(cache_table_of(sim, r), cache, block)
            pin(replica, cache, entry)
            replica.free_pages += fleet_of(sim).block_pages
        else:
            entry = insert_pinned(replica, cache_table_of(sim, r), cache, holders, r, block)
        pinned_entries_of(sim)[request.first_block + position] = entry
        request.pinned_blocks += 1


@compiled
def cache_output(sim, r, request):
    """Cache the full blocks of a finished request's answer that its session will send again.

    The request still holds its pages; the blocks take theirs out of them.
    """
    replica, cache, holders = replicas_of(sim)[r], cache_of(sim, r), holders_of(sim)
    # Last block first, as in `unpin_blocks`.
    for position in range(request.num_output_blocks - 1, -1, -1):
        block = blocks_of(sim)[request.output_first_block + position]
        if not is_held(holders, block, r):
            entry = insert_pinned(replica, cache_table_of(sim, r), cache, holders, r, block)
            unpin(replica, cache, entry)
            replica.free_pages -= fleet_of(sim).block_pages


@compiled
def release(sim, r, request, kv_tokens):
    """Give back a running request's KV pages; its cached blocks stay, unpinned."""
    fleet = fleet_of(sim)
    own_pages = request_pages(request, kv_tokens, fleet)
    own_pages -= request.pinned_blocks * fleet.block_pages
    replicas_of(sim)[r].free_pages += own_pages
    unpin_blocks(sim, r, request)


@compiled
def growth_pages(sim, r, iterations):
    """Pages that the decode batch takes in the next iterations: one each `page_tokens`."""
    fleet, replica, phases = fleet_of(sim), replicas_of(sim)[r], page_phases_of(sim, r)
    mask = fleet.page_tokens - 1
    pages = (iterations >> fleet.page_shift) * replica.num_sequences
    for i in range(iterations & mask):
        pages += phases[(replica.decode_iteration + 1 + i) & mask]
    return pages


@compiled
def iterations_within_pages(sim, r, limit):
    """Return the most iterations, up to a limit, whose growth fits the available pages."""
    available = available_pages(sim, r)
    fleet, replica, phases = fleet_of(sim), replicas_of(sim)[r], page_phases_of(sim, r)
    # Each sequence takes at most one page for every started cycle.
    if ((limit >> fleet.page_shift) + 1) * replica.num_sequences <= available:
        return limit
    if growth_pages(sim, r, limit) <= available:
        return limit
    cycles = available // replica.num_sequences
    iterations = cycles << fleet.page_shift
    left = available - cycles * replica.num_sequences
    while iterations < limit:
        left -= phases[(replica.decode_iteration + 1 + iterations) & (fleet.page_tokens - 1)]
        if left < 0:
            break
        iterations += 1
    return iterations
