"""Which replica holds which prompt blocks: the compiled index of live prefix caches.

A block is a chained 64-bit hash, so it stands for itself and all before it. One table finds blocks;
a bit mask per block says who holds it, so one walk over a prompt matches all replicas. Each replica
has its own list, least recently used first, and never more blocks than its capacity. The
capacities add up to no more than there is room for, so no table is ever full.

Does not know: who says what a replica holds (`prefix_index.py`).
Source: the masks and the backward-shift deletion are those of the simulator's prefix cache.
"""

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ...env.compiled import compiled
from ...env.pointers import pointer
from ...env.simulator.bits import trailing_zeros

BLOCK_DTYPE = np.dtype(
    [
        ("hash", np.uint64),
        ("num_holders", np.int32),
        ("next_free", np.int32),
    ]
)

# One block at one replica.
PAIR_DTYPE = np.dtype(
    [
        ("block", np.int32),
        ("replica", np.int32),
        ("previous", np.int32),  # less recently used
        ("next", np.int32),  # or the next free pair
    ]
)

HOLDER_DTYPE = np.dtype(
    [
        ("oldest", np.int32),
        ("newest", np.int32),
        ("num_blocks", np.int64),
        ("max_blocks", np.int64),
        ("num_evicted", np.int64),
        ("is_exact", np.int64),  # its engine tells what it holds: what is sent says nothing
    ]
)

POOL_DTYPE = np.dtype([("free_block", np.int32), ("free_pair", np.int32)])

INDEX_ARRAYS = ("blocks", "holders", "pairs", "replicas", "pool", "block_table", "pair_table")
INDEX_HANDLE_DTYPE = np.dtype(
    [(f"{name}_at", np.int64) for name in (*INDEX_ARRAYS, "scratch")]
    + [(name, np.int64) for name in ("num_blocks", "num_words", "num_pairs", "num_replicas")]
    + [(name, np.int64) for name in ("block_table_size", "pair_table_size")]
)

NONE = -1
_WORD_BITS = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@compiled
def _blocks_of(index):
    return carray(pointer(index.blocks_at), (index.num_blocks,), BLOCK_DTYPE)


@compiled
def _holders_of(index):
    return carray(pointer(index.holders_at), (index.num_blocks, index.num_words), np.uint64)


@compiled
def _pairs_of(index):
    return carray(pointer(index.pairs_at), (index.num_pairs,), PAIR_DTYPE)


@compiled
def replicas_of(index):
    """What each replica's part of the index is like, HOLDER_DTYPE [R]."""
    return carray(pointer(index.replicas_at), (index.num_replicas,), HOLDER_DTYPE)


@compiled
def _pool_of(index):
    return carray(pointer(index.pool_at), (1,), POOL_DTYPE)[0]


@compiled
def _block_table_of(index):
    return carray(pointer(index.block_table_at), (index.block_table_size,), np.int32)


@compiled
def _pair_table_of(index):
    return carray(pointer(index.pair_table_at), (index.pair_table_size,), np.int32)


@compiled
def _scratch_of(index):
    return carray(pointer(index.scratch_at), (index.num_words,), np.uint64)


@compiled
def _block_home(block_hash, size):
    return np.int64((block_hash * _GOLDEN) >> np.uint64(24)) & (size - 1)


@compiled
def _pair_home(block, replica, size):
    key = np.uint64(block) * _GOLDEN + np.uint64(replica) * np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((key * _GOLDEN) >> np.uint64(24)) & (size - 1)


@compiled
def _find_block(index, block_hash):
    table, blocks = _block_table_of(index), _blocks_of(index)
    place = _block_home(block_hash, table.size)
    while table[place] != 0:
        block = table[place] - 1
        if blocks[block].hash == block_hash:
            return block
        place = (place + 1) & (table.size - 1)
    return NONE


@compiled
def _find_pair(index, block, replica):
    table, pairs = _pair_table_of(index), _pairs_of(index)
    place = _pair_home(block, replica, table.size)
    while table[place] != 0:
        pair = table[place] - 1
        if pairs[pair].block == block and pairs[pair].replica == replica:
            return pair
        place = (place + 1) & (table.size - 1)
    return NONE


@compiled
def _insert(table, home, number):
    place = home
    while table[place] != 0:
        place = (place + 1) & (table.size - 1)
    table[place] = number + 1


@compiled
def _forget_block(index, block):
    """Take a block that nobody holds out of its table, by backward shift, and free it."""
    table, blocks, size = _block_table_of(index), _blocks_of(index), index.block_table_size
    hole = _block_home(blocks[block].hash, size)
    while table[hole] != block + 1:
        hole = (hole + 1) & (size - 1)
    place = (hole + 1) & (size - 1)
    while table[place] != 0:
        home = _block_home(blocks[table[place] - 1].hash, size)
        if ((place - home) & (size - 1)) >= ((place - hole) & (size - 1)):
            table[hole] = table[place]
            hole = place
        place = (place + 1) & (size - 1)
    table[hole] = 0
    pool = _pool_of(index)
    blocks[block].next_free = pool.free_block
    pool.free_block = block


@compiled
def _forget_pair(index, pair):
    """Take a pair out of its table, by backward shift, and free it."""
    table, pairs, size = _pair_table_of(index), _pairs_of(index), index.pair_table_size
    hole = _pair_home(pairs[pair].block, pairs[pair].replica, size)
    while table[hole] != pair + 1:
        hole = (hole + 1) & (size - 1)
    place = (hole + 1) & (size - 1)
    while table[place] != 0:
        other = pairs[table[place] - 1]
        home = _pair_home(other.block, other.replica, size)
        if ((place - home) & (size - 1)) >= ((place - hole) & (size - 1)):
            table[hole] = table[place]
            hole = place
        place = (place + 1) & (size - 1)
    table[hole] = 0
    pool = _pool_of(index)
    pairs[pair].next = pool.free_pair
    pool.free_pair = pair


@compiled
def _unlink(index, pair):
    pairs = _pairs_of(index)
    p = pairs[pair]
    holder = replicas_of(index)[p.replica]
    if p.previous == NONE:
        holder.oldest = p.next
    else:
        pairs[p.previous].next = p.next
    if p.next == NONE:
        holder.newest = p.previous
    else:
        pairs[p.next].previous = p.previous


@compiled
def _append(index, pair):
    pairs = _pairs_of(index)
    p = pairs[pair]
    holder = replicas_of(index)[p.replica]
    p.previous = holder.newest
    p.next = NONE
    if holder.newest == NONE:
        holder.oldest = pair
    else:
        pairs[holder.newest].next = pair
    holder.newest = pair


@compiled
def _drop(index, pair):
    """Let a replica hold a block no more."""
    p = _pairs_of(index)[pair]
    block, replica = np.int64(p.block), np.int64(p.replica)
    _unlink(index, pair)
    _forget_pair(index, pair)
    _holders_of(index)[block, replica // _WORD_BITS] &= ~(
        np.uint64(1) << np.uint64(replica % _WORD_BITS)
    )
    replicas_of(index)[replica].num_blocks -= 1
    b = _blocks_of(index)[block]
    b.num_holders -= 1
    if b.num_holders == 0:
        _forget_block(index, block)


@compiled
def _new_block(index, block_hash):
    pool, blocks = _pool_of(index), _blocks_of(index)
    block = np.int64(pool.free_block)
    pool.free_block = blocks[block].next_free
    blocks[block].hash = block_hash
    blocks[block].num_holders = 0
    _insert(_block_table_of(index), _block_home(block_hash, index.block_table_size), block)
    return block


@compiled
def _hold(index, block, replica):
    pool, pairs = _pool_of(index), _pairs_of(index)
    pair = np.int64(pool.free_pair)
    pool.free_pair = pairs[pair].next
    pairs[pair].block = block
    pairs[pair].replica = replica
    _insert(_pair_table_of(index), _pair_home(block, replica, index.pair_table_size), pair)
    _append(index, pair)
    _holders_of(index)[block, replica // _WORD_BITS] |= np.uint64(1) << np.uint64(
        replica % _WORD_BITS
    )
    _blocks_of(index)[block].num_holders += 1
    replicas_of(index)[replica].num_blocks += 1


@compiled
def store(index, replica, blocks):
    """Note that a replica holds some blocks; the first are then its most recently used ones."""
    holder = replicas_of(index)[replica]
    # Of a prompt beyond the capacity the beginning is what stays.
    for k in range(min(blocks.size, holder.max_blocks) - 1, -1, -1):
        block = _find_block(index, blocks[k])
        pair = _find_pair(index, block, replica) if block != NONE else NONE
        if pair != NONE:
            _unlink(index, pair)
            _append(index, pair)
            continue
        if holder.num_blocks >= holder.max_blocks:
            holder.num_evicted += 1
            _drop(index, np.int64(holder.oldest))
            # It may have been the last to hold this very block.
            block = _find_block(index, blocks[k])
        if block == NONE:
            block = _new_block(index, blocks[k])
        _hold(index, block, replica)


@compiled
def remove(index, replica, blocks):
    """Note that a replica does not hold some blocks any more; return how many it held."""
    count = 0
    for k in range(blocks.size):
        block = _find_block(index, blocks[k])
        pair = _find_pair(index, block, replica) if block != NONE else NONE
        if pair != NONE:
            _drop(index, pair)
            count += 1
    return count


@compiled
def clear(index, replica):
    """Note that a replica holds nothing."""
    holder = replicas_of(index)[replica]
    while holder.oldest != NONE:
        _drop(index, np.int64(holder.oldest))


@compiled
def match(index, blocks, depths):
    """Fill `depths` [R] with how many of a prompt's first blocks each replica holds."""
    holders, running = _holders_of(index), _scratch_of(index)
    depths[:] = 0
    running[:] = _ALL
    for k in range(blocks.size):
        block, still = _find_block(index, blocks[k]), np.uint64(0)
        for word in range(running.size):
            # Before the first block all are running, and who loses there holds nothing.
            kept = running[word] & holders[block, word] if block != NONE else np.uint64(0)
            lost = running[word] & ~kept if k > 0 else np.uint64(0)
            while lost != 0:
                depths[word * _WORD_BITS + trailing_zeros(lost)] = k
                lost &= lost - np.uint64(1)
            running[word] = kept
            still |= kept
        if still == 0:
            return
    if blocks.size == 0:
        return
    for word in range(running.size):
        left = running[word]
        while left != 0:
            depths[word * _WORD_BITS + trailing_zeros(left)] = blocks.size
            left &= left - np.uint64(1)
