"""The prefix cache of each replica: blocks by identity, least recently used evicted first.

A block covers a fixed number of prompt tokens and stands for itself and everything before it.
Blocks in use by running requests are pinned; the others can be evicted when pages are needed.
Which replicas hold a block is a bit mask per block, so one walk matches all replicas at once.

Does not know: requests' states or time.
Source: vLLM's automatic prefix caching (reference counts, LRU over free blocks).
"""

import numpy as np

from ..compiled import compiled
from .bits import trailing_zeros
from .layout import NONE

_WORD_BITS = 64


@compiled
def _slot_hash(block, table_size):
    mixed = np.uint64(block) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(20)) & (table_size - 1)


@compiled
def find_entry(table, entries, block):
    """Return the cache entry of a block, or `NONE`. `table` and `entries` are one replica's."""
    size = table.size
    slot = _slot_hash(block, size)
    while table[slot] != 0:
        entry = table[slot] - 1
        if entries[entry].block == block:
            return entry
        slot = (slot + 1) & (size - 1)
    return NONE


@compiled
def table_insert(table, block, entry):
    """Let a block's hash lead to its entry."""
    slot = _slot_hash(block, table.size)
    while table[slot] != 0:
        slot = (slot + 1) & (table.size - 1)
    table[slot] = entry + 1


@compiled
def table_remove(table, entries, block):
    """Take a block that is there out of the hash table."""
    size = table.size
    slot = _slot_hash(block, size)
    while entries[table[slot] - 1].block != block:
        slot = (slot + 1) & (size - 1)
    # Backward-shift deletion keeps probe chains whole without tombstones.
    hole = slot
    slot = (slot + 1) & (size - 1)
    while table[slot] != 0:
        home = _slot_hash(entries[table[slot] - 1].block, size)
        if ((slot - home) & (size - 1)) >= ((slot - hole) & (size - 1)):
            table[hole] = table[slot]
            hole = slot
        slot = (slot + 1) & (size - 1)
    table[hole] = 0


@compiled
def lru_remove(replica, entries, entry):
    """Take an entry out of the list of evictable ones. `replica` has the list's ends."""
    e = entries[entry]
    if e.previous == NONE:
        replica.lru_head = e.next
    else:
        entries[e.previous].next = e.next
    if e.next == NONE:
        replica.lru_tail = e.previous
    else:
        entries[e.next].previous = e.previous
    replica.num_evictable_blocks -= 1


@compiled
def lru_append(replica, entries, entry):
    """Make an entry the most recently used evictable one."""
    e = entries[entry]
    e.previous = replica.lru_tail
    e.next = NONE
    if replica.lru_tail == NONE:
        replica.lru_head = entry
    else:
        entries[replica.lru_tail].next = entry
    replica.lru_tail = entry
    replica.num_evictable_blocks += 1


@compiled
def pin(replica, entries, entry):
    """Add one reference to a cached block; a referenced block is not evicted."""
    if entries[entry].references == 0:
        lru_remove(replica, entries, entry)
    entries[entry].references += 1


@compiled
def unpin(replica, entries, entry):
    """Drop one reference; at zero the block becomes the most recently used evictable one."""
    entries[entry].references -= 1
    if entries[entry].references == 0:
        lru_append(replica, entries, entry)


@compiled
def insert_pinned(replica, table, entries, holders, index, block):
    """Cache a block with one reference and return its entry. The caller has paid its pages."""
    entry = replica.free_entry
    replica.free_entry = entries[entry].next
    replica.num_touched_entries = max(replica.num_touched_entries, entry + 1)
    entries[entry].block = block
    entries[entry].references = 1
    table_insert(table, block, entry)
    holders[block, index // _WORD_BITS] |= np.uint64(1) << np.uint64(index % _WORD_BITS)
    replica.num_cached_blocks += 1
    return entry


@compiled
def is_held(holders, block, index):
    """Whether replica `index` has a block in its cache."""
    word = holders[block, index // _WORD_BITS]
    return (word >> np.uint64(index % _WORD_BITS)) & np.uint64(1) != 0


@compiled
def evict_oldest(replica, table, entries, holders, index):
    """Drop the least recently used block and return it. The caller takes its pages."""
    entry = replica.lru_head
    block = entries[entry].block
    lru_remove(replica, entries, entry)
    table_remove(table, entries, block)
    holders[block, index // _WORD_BITS] &= ~(np.uint64(1) << np.uint64(index % _WORD_BITS))
    entries[entry].next = replica.free_entry
    replica.free_entry = entry
    replica.num_cached_blocks -= 1
    return block


@compiled
def clear(replica, table, entries, holders, index):
    """Forget everything, pinned or not, as a crashed engine does. Pages are the caller's."""
    for slot in range(table.size):
        if table[slot] != 0:
            block = entries[table[slot] - 1].block
            holders[block, index // _WORD_BITS] &= ~(np.uint64(1) << np.uint64(index % _WORD_BITS))
    table[:] = 0
    chain(replica, entries)


@compiled
def chain(replica, entries):
    """Put every entry on the free list."""
    for entry in range(entries.size):
        entries[entry].references = 0
        entries[entry].next = entry + 1 if entry + 1 < entries.size else NONE
    replica.free_entry = 0
    replica.lru_head = NONE
    replica.lru_tail = NONE
    replica.num_cached_blocks = 0
    replica.num_evictable_blocks = 0


@compiled
def reusable_blocks(request, fleet):
    """Return how many leading blocks of a prompt a cache may give: a token is left to compute."""
    block_tokens = fleet.block_pages * fleet.page_tokens
    return min(request.num_blocks, (request.prefill_target_tokens - 1) // max(block_tokens, 1))


@compiled
def match_replicas(blocks, first_block, num_blocks, holders, depth, matched, num_matched):
    """Fill `depth` [R] with the number of leading blocks that each replica holds.

    Returns how many hold any; `matched` [R] then begins with these. The last call's list comes
    in and is wiped, so that the cost grows with those that hold something and not with R.
    """
    for i in range(num_matched):
        depth[matched[i]] = 0
    num_matched = np.int64(0)
    if num_blocks == 0:
        return num_matched
    for word in range(holders.shape[1]):
        alive = holders[blocks[first_block], word]
        position = np.int64(1)
        while alive != 0 and position < num_blocks:
            still = alive & holders[blocks[first_block + position], word]
            num_matched = _set_depth(alive & ~still, word, position, depth, matched, num_matched)
            alive = still
            position += 1
        num_matched = _set_depth(alive, word, position, depth, matched, num_matched)
    return num_matched


@compiled
def _set_depth(mask, word, position, depth, matched, num_matched):
    while mask != 0:
        replica = word * _WORD_BITS + trailing_zeros(mask)
        depth[replica] = position
        matched[num_matched] = replica
        num_matched += 1
        mask &= mask - np.uint64(1)
    return num_matched
