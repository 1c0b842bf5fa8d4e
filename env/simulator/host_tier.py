"""Host memory of one replica: KV of swapped sequences, and blocks that the GPU's cache evicted.

Both share its pages; swapped sequences come first and push out the oldest blocks. A block stays
when it is loaded, so that evicting it again needs no room. Copies to the host overlap with
computing and are free; a load is waited for by the iteration that needs it, and a slow replica
copies slowly too.

Does not know: who is admitted or preempted.
Source: vLLM `docs/features/kv_offloading_usage` (blocks are copied to pinned host memory beside
computing, LRU) and LMCache, whose loads come before the forward pass.
"""

from ..compiled import compiled
from .layout import NONE
from .memory import (
    blocks_of,
    cache_of,
    cache_table_of,
    fleet_of,
    holders_of,
    host_cache_of,
    host_table_of,
    hosts_of,
    pinned_entries_of,
    replicas_of,
)
from .prefix_cache import (
    chain,
    find_entry,
    insert_pinned,
    is_held,
    lru_append,
    lru_remove,
    pin,
    reusable_blocks,
    table_insert,
    table_remove,
)


@compiled
def _drop_oldest(sim, r):
    host, entries = hosts_of(sim)[r], host_cache_of(sim, r)
    entry = host.lru_head
    lru_remove(host, entries, entry)
    table_remove(host_table_of(sim, r), entries, entries[entry].block)
    entries[entry].next = host.free_entry
    host.free_entry = entry
    host.num_cached_blocks -= 1
    host.free_pages += fleet_of(sim).block_pages


@compiled
def take_host_pages(sim, r, pages):
    """Take pages of host memory, dropping the oldest blocks; return whether they could be had."""
    host = hosts_of(sim)[r]
    if host.free_pages + host.num_cached_blocks * fleet_of(sim).block_pages < pages:
        return False
    while host.free_pages < pages:
        _drop_oldest(sim, r)
    host.free_pages -= pages
    return True


@compiled
def keep_block(sim, r, block):
    """Keep a block that the GPU's cache evicts, if swapped sequences leave room for it."""
    host, entries, table = hosts_of(sim)[r], host_cache_of(sim, r), host_table_of(sim, r)
    entry = find_entry(table, entries, block)
    if entry != NONE:
        lru_remove(host, entries, entry)
        lru_append(host, entries, entry)
    elif take_host_pages(sim, r, fleet_of(sim).block_pages):
        entry = host.free_entry
        host.free_entry = entries[entry].next
        entries[entry].block = block
        table_insert(table, block, entry)
        lru_append(host, entries, entry)
        host.num_cached_blocks += 1


@compiled
def load_blocks(sim, r, request):
    """Load the blocks behind a request's hits from host memory into pages that it has taken."""
    replica, host, fleet = replicas_of(sim)[r], hosts_of(sim)[r], fleet_of(sim)
    cache, table, holders = cache_of(sim, r), cache_table_of(sim, r), holders_of(sim)
    for position in range(request.pinned_blocks, reusable_blocks(request, fleet)):
        block = blocks_of(sim)[request.first_block + position]
        if is_held(holders, block, r):
            entry = find_entry(table, cache, block)
            pin(replica, cache, entry)
            replica.free_pages += fleet.block_pages
        else:
            host_entry = find_entry(host_table_of(sim, r), host_cache_of(sim, r), block)
            if host_entry == NONE:
                return
            lru_remove(host, host_cache_of(sim, r), host_entry)
            lru_append(host, host_cache_of(sim, r), host_entry)
            entry = insert_pinned(replica, table, cache, holders, r, block)
            replica.copy_s += fleet.block_pages * host.page_copy_s
            replica.host_hit_tokens += fleet.block_pages * fleet.page_tokens
        pinned_entries_of(sim)[request.first_block + position] = entry
        request.pinned_blocks += 1


@compiled
def clear_host(sim, r):
    """Forget everything in host memory, as a crashed engine does."""
    host = hosts_of(sim)[r]
    host.free_pages = host.total_pages
    host_table_of(sim, r)[:] = 0
    chain(host, host_cache_of(sim, r))
