"""Hash chains of prompt blocks: equal prefixes give equal hashes, all else differs.

A block's hash mixes the hash before it with what the block holds, so one equal hash means that
the block and everything before it are equal. Text is never seen: a conversation's content is a
number (its content seed), and block k of it is that number and k.

Does not know: requests, sessions or Arrow.
Source: mixing function of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
"""

import numpy as np
import numpy.typing as npt
from numba import njit

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

# Increment and multipliers of splitmix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


@njit(cache=True, nogil=True)
def mix64(value: np.uint64) -> np.uint64:
    """A well-mixed 64-bit number; one to one, so different values stay different."""
    mixed = value + _GOLDEN
    mixed = (mixed ^ (mixed >> _SHIFT_1)) * _MULTIPLIER_1
    mixed = (mixed ^ (mixed >> _SHIFT_2)) * _MULTIPLIER_2
    return mixed ^ (mixed >> _SHIFT_3)


@njit(cache=True, nogil=True)
def mix_all(values: UInt64Array, salt: np.uint64) -> UInt64Array:
    """`mix64` of every value; different salts give unrelated numbers."""
    out = np.empty(values.size, np.uint64)
    mixed_salt = mix64(salt)
    for i in range(values.size):
        out[i] = mix64(values[i] ^ mixed_salt)
    return out


@njit(cache=True, nogil=True)
def mix_rows(offsets: Int64Array, hashes: UInt64Array, row_salts: UInt64Array) -> UInt64Array:
    """Hashes with each row's salt mixed in: rows of different salts never share a hash.

    Shapes: offsets [N + 1] into hashes [sum of blocks], row_salts [N].
    """
    out = np.empty(hashes.size, np.uint64)
    for row in range(row_salts.size):
        mixed_salt = mix64(row_salts[row])
        for k in range(offsets[row], offsets[row + 1]):
            out[k] = mix64(hashes[k] ^ mixed_salt)
    return out


@njit(cache=True, nogil=True)
def chain_hashes(
    offsets: Int64Array,
    shared_seeds: UInt64Array,
    num_shared_blocks: Int32Array,
    own_seeds: UInt64Array,
) -> UInt64Array:
    """Hash chains of prompts that begin with shared blocks and go on with their own.

    Shapes: offsets [N + 1] (blocks per row, cumulated), the others [N]; result [offsets[N]].
    """
    out = np.empty(offsets[-1], np.uint64)
    for row in range(own_seeds.size):
        before = np.uint64(0)
        for k in range(offsets[row], offsets[row + 1]):
            block = k - offsets[row]
            seed = shared_seeds[row] if block < num_shared_blocks[row] else own_seeds[row]
            before = mix64(before ^ mix64(seed + np.uint64(block) * _GOLDEN))
            out[k] = before
    return out
