"""One pass over a prompt's bytes, compiled: hashes of its blocks, its session, its make-up.

A block is a fixed number of bytes of the raw JSON of `prompt` or `messages`, counted from its
beginning, and its hash is chained: equal hashes mean equal bytes up to the block's end. Whatever
follows, two requests share the blocks of what they have in common; the last, unfinished block of a
prompt has no hash.

Does not know: JSON, tokens, or who asks.
Source: mixing function of `traces/hashing.py`; four lanes of multiply and shift before it.
"""

import numpy as np

from ...agents.quick_math import HIGH, at_least, equal_to, first_bit, letters_in, word_at
from ...env.compiled import compiled, inlined
from ...traces.hashing import mix64

BLOCK_BYTES = 256
"""Bytes of a block; about 64 tokens of English."""
_WORD_BYTES = 8
_LANES = 4
# Bytes in which the first user message is looked for, and that stand for a session without one.
_SEARCH_BYTES, _SESSION_BYTES = 2048, 512
# Bytes that requests of one application mostly share.
_HEAD_BYTES = 256
# b'"user"', as the low six bytes of a little-endian word
_USER_WORD = np.uint64(0x227265737522)
_SIX_BYTES = np.uint64(0xFFFFFFFFFFFF)
_CLOSING_BRACE = 125

# Odd multipliers: golden ratio, and those of xxHash64.
_MULTIPLIERS = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
    np.uint64(0x85EBCA77C2B2AE63),
)
_SHIFT = np.uint64(29)

_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
# Words that are counted at a time, in bytes that hold up to 255; and samples of a long prompt.
_COUNTED_WORDS, _MOST_SAMPLES = 64, 16

NUM_TRAITS = 8
"""Counts of a prompt that its tokens are estimated from: 1, words, letters, digits, other printable
ASCII, bytes beyond ASCII, backslashes, and curly braces."""


@compiled
def span_hash(address, num_bytes, seed):
    """Return the hash of some bytes, all of them."""
    a, b, c, d = seed, seed ^ _MULTIPLIERS[1], seed ^ _MULTIPLIERS[2], seed ^ _MULTIPLIERS[3]
    place = address
    last = address + num_bytes // (_LANES * _WORD_BYTES) * (_LANES * _WORD_BYTES)
    while place < last:
        a = (a ^ word_at(place)) * _MULTIPLIERS[0]
        b = (b ^ word_at(place + 8)) * _MULTIPLIERS[1]
        c = (c ^ word_at(place + 16)) * _MULTIPLIERS[2]
        d = (d ^ word_at(place + 24)) * _MULTIPLIERS[3]
        a ^= a >> _SHIFT
        b ^= b >> _SHIFT
        c ^= c >> _SHIFT
        d ^= d >> _SHIFT
        place += _LANES * _WORD_BYTES
    return mix64(mix64(a ^ mix64(b)) ^ mix64(c ^ mix64(d)) ^ np.uint64(num_bytes))


@compiled
def rest_hash(prompt, first, last, seed):
    """Return the hash of a prompt's bytes from `first` up to `last`, one by one at the end."""
    whole = (last - first) // 32 * 32
    hashed = span_hash(np.int64(prompt.ctypes.data) + first, whole, seed)
    for i in range(first + whole, last):
        hashed = (hashed ^ np.uint64(prompt[i])) * _MULTIPLIERS[0]
        hashed ^= hashed >> _SHIFT
    return mix64(hashed)


@compiled
def hash_blocks(prompt, seed, blocks):
    """Write the chained hashes of a prompt's full blocks, [bytes // BLOCK_BYTES]."""
    address = np.int64(prompt.ctypes.data)
    before = mix64(seed)
    for k in range(blocks.size):
        own = span_hash(address + k * BLOCK_BYTES, BLOCK_BYTES, seed)
        before = mix64(before ^ own)
        blocks[k] = before


@compiled
def _find_brace(prompt, first, last):
    """Return the place of the first closing brace of some bytes, or where they end."""
    address, place = np.int64(prompt.ctypes.data), first
    while place + _WORD_BYTES <= last:
        word = word_at(address + place)
        found = equal_to(word & ~HIGH, _CLOSING_BRACE) & ~word
        if found:
            return place + np.int64(first_bit(found) >> np.uint64(3))
        place += _WORD_BYTES
    while place < last and prompt[place] != _CLOSING_BRACE:
        place += 1
    return place


@compiled
def session_end(prompt):
    """Return where the bytes end that stay the same from turn to turn of a conversation.

    That is the first closing brace behind the first `"user"`: the end of the first message of the
    user, or of what of it comes before a brace of its own; of a long one, the beginning.
    """
    address = np.int64(prompt.ctypes.data)
    for i in range(min(prompt.size - _WORD_BYTES, _SEARCH_BYTES)):
        if word_at(address + i) & _SIX_BYTES == _USER_WORD:
            return _find_brace(prompt, i + 6, min(prompt.size, i + _SESSION_BYTES))
    return min(prompt.size, _SESSION_BYTES)


@compiled
def session_hash(prompt, seed):
    """Return a hash that the turns of one conversation share."""
    return rest_hash(prompt, 0, session_end(prompt), seed)


@compiled
def head_hash(prompt, seed):
    """Return a hash of a prompt's beginning."""
    return rest_hash(prompt, 0, min(prompt.size, _HEAD_BYTES), seed)


@inlined
def _lane_sum(lanes):
    """Return the sum of a word's eight bytes."""
    pairs = (lanes & _EVEN_BYTES) + ((lanes >> np.uint64(8)) & _EVEN_BYTES)
    return np.int64((pairs * np.uint64(0x0001000100010001)) >> np.uint64(48))


@compiled
def _add_traits(address, num_words, traits):
    """Add the counts of some words of eight bytes, at most _COUNTED_WORDS."""
    words = letters = digits = printable = foreign = backslashes = braces = np.uint64(0)
    before = np.uint64(0)
    one = np.uint64(7)
    for k in range(num_words):
        word = word_at(address + _WORD_BYTES * k)
        high = word & HIGH
        is_ascii = high ^ HIGH
        sevens = word & ~HIGH
        letter = letters_in(word)
        words += (letter & ~((letter << np.uint64(8)) | before)) >> one
        before = letter >> np.uint64(56)
        letters += letter >> one
        digits += (at_least(sevens, 48) & ~at_least(sevens, 58) & is_ascii) >> one
        printable += (at_least(sevens, 33) & ~at_least(sevens, 127) & is_ascii) >> one
        foreign += high >> one
        backslashes += (equal_to(sevens, 92) & is_ascii) >> one
        braces += (equal_to(sevens, 123) & is_ascii) >> one
    traits[1] += _lane_sum(words)
    traits[2] += _lane_sum(letters)
    traits[3] += _lane_sum(digits)
    traits[4] += _lane_sum(printable)
    traits[5] += _lane_sum(foreign)
    traits[6] += _lane_sum(backslashes)
    traits[7] += _lane_sum(braces)


@compiled
def count_traits(prompt, traits):
    """Write the counts of NUM_TRAITS; of a long prompt, from evenly spaced samples of it."""
    address, num_words = np.int64(prompt.ctypes.data), prompt.size // _WORD_BYTES
    traits[:] = 0.0
    counted = num_words
    if num_words <= _MOST_SAMPLES * _COUNTED_WORDS:
        for first in range(0, num_words, _COUNTED_WORDS):
            last = min(first + _COUNTED_WORDS, num_words)
            _add_traits(address + _WORD_BYTES * first, last - first, traits)
    else:
        counted = _MOST_SAMPLES * _COUNTED_WORDS
        for k in range(_MOST_SAMPLES):
            first = k * (num_words - _COUNTED_WORDS) // (_MOST_SAMPLES - 1)
            _add_traits(address + _WORD_BYTES * first, _COUNTED_WORDS, traits)
    traits[4] -= traits[2] + traits[3]
    if counted > 0:
        scale = prompt.size / (_WORD_BYTES * counted)
        for k in range(1, NUM_TRAITS):
            traits[k] *= scale
    else:
        traits[2] = prompt.size
    traits[0] = 1.0


@compiled
def distance(whole, part):
    """Return where bytes that lie within others begin among them."""
    return np.int64(part.ctypes.data) - np.int64(whole.ctypes.data)
