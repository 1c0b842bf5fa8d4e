"""Prompts that are alike, told by their words: a stable number for each of some clusters.

The beginning and the end of a prompt are cut into words (of other scripts, into characters). Each
word is hashed, weighted by how rare it is, and added to a short vector, whose direction is
compared with the clusters' centres. A prompt unlike all opens a cluster while there is room; else
the nearest centre moves a little towards it. A cluster keeps its number for ever.

Does not know: what a cluster means, or what follows from it.
Source: feature hashing (Weinberger et al., ICML 2009); spherical online k-means (Zhong 2005).
"""

import math
from pathlib import Path
from typing import Protocol

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from ..env.compiled import compiled, inlined, source_tag
from .quick_math import (
    HIGH,
    ONES,
    first_bit,
    letters_in,
    pointer_to,
    quick_log,
    word_at,
)

NUM_CLUSTERS = 64
NUM_DIMENSIONS = 256
NUM_WORDS = 4096
"""Hashed words whose rarity is told apart."""
HEAD_BYTES, TAIL_BYTES = 128, 384
"""How much of a prompt is read, at its beginning and at its end."""

# Cosine to the nearest centre below which a prompt opens a cluster.
_LEAST_LIKENESS = 0.3
# Share of the way that a centre moves at least.
_LEAST_STEP = 0.005
# Scale at which a sum is brought back to its centre, so that numbers stay near 1.
_LEAST_SCALE = 1e-3
# Prompts over which the rarity of words is remembered.
_MEMORY = 20_000.0
# What of a character beyond ASCII is told apart: all of most.
_THREE_BYTES = np.uint64(0xFFFFFF)
# Multiplier of Fibonacci hashing: 2 to the 64 by the golden ratio, odd.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_FILES = [Path(__file__), Path(__file__).with_name("quick_math.py")]
CLUSTERS_DTYPE = np.dtype(
    [
        (f"source_{source_tag(_FILES)}", np.int64),
        ("sums", np.float32, (NUM_DIMENSIONS, NUM_CLUSTERS)),  # a centre is `scale` times its sum
        ("scale", np.float32, (NUM_CLUSTERS,)),
        ("square", np.float64, (NUM_CLUSTERS,)),  # of a sum's length
        ("per_length", np.float32, (NUM_CLUSTERS,)),  # 1 over a sum's length
        ("sizes", np.float32, (NUM_CLUSTERS,)),
        ("prompts_with", np.float32, (NUM_WORDS,)),  # fading count of prompts with a word
        ("num_prompts", np.float32),  # fading
        ("seen_in", np.int64, (NUM_WORDS,)),  # number of the last prompt with a word
        ("number", np.int64),  # of the prompt
        ("num_clusters", np.int64),
        ("sketch", np.float32, (NUM_DIMENSIONS,)),  # scratch
        ("used", np.int64, (NUM_DIMENSIONS + 1,)),  # scratch: where the sketch is not zero
        ("likeness", np.float32, (NUM_CLUSTERS,)),  # scratch: inner products with the sums
    ]
)


class PromptEmbedder(Protocol):
    """Gives the cluster of a prompt in place of the hashed words: a hook for an embedding model.

    It is called on the path of every request and must not wait for anything.
    """

    def cluster(self, prompt: bytes) -> int:
        """Return a number from 0 to NUM_CLUSTERS - 1 for the raw JSON of a prompt or messages."""
        ...


@inlined
def _add_word(arrays, number, per_prompt, word):
    """Add a word to the sketch, once a prompt, weighted by how rare it is."""
    seen_in, prompts_with, sketch = arrays
    mixed = word * _GOLDEN
    mixed ^= mixed >> np.uint64(32)
    place = np.int64(mixed & np.uint64(NUM_WORDS - 1))
    if seen_in[place] != number:
        seen_in[place] = number
        with_word = prompts_with[place]
        prompts_with[place] = with_word + np.float32(1.0)
        weight = -quick_log((with_word + np.float32(0.5)) * per_prompt)
        dimension = np.int64((mixed >> np.uint64(12)) & np.uint64(NUM_DIMENSIONS - 1))
        sign = np.float32(1.0) - np.float32((mixed >> np.uint64(30)) & np.uint64(2))
        sketch[dimension] += sign * max(weight, np.float32(0.0))


@inlined
def _word_from(address):
    """Return the lower-case letters that stand at an address, at most eight, as a number."""
    word = word_at(address)
    letters = letters_in(word)
    # The lowest byte that is no letter ends the word.
    end = first_bit(~letters & HIGH) & ~np.uint64(7)
    whole = word | np.uint64(32) * ONES
    return whole & ((np.uint64(1) << end) - np.uint64(1)) if end < np.uint64(64) else whole


@compiled
def _add_words(state, address, num_bytes):
    """Add the words of some bytes; what begins in the last eight is left out."""
    arrays = state.seen_in, state.prompts_with, state.sketch
    number, per_prompt = state.number, np.float32(1.0) / (state.num_prompts + np.float32(1.0))
    before = np.uint64(0)
    for place in range(address, address + num_bytes - 15, 8):
        word = word_at(place)
        letters = letters_in(word)
        # Beyond ASCII a character begins with a byte whose two highest bits are set.
        beyond = word & (word << np.uint64(1)) & HIGH
        begins = (letters & ~((letters << np.uint64(8)) | before)) | beyond
        before = letters >> np.uint64(56)
        while begins:
            bit = first_bit(begins)
            begins &= begins - np.uint64(1)
            at = place + np.int64(bit >> np.uint64(3))
            if (beyond >> bit) & np.uint64(1):
                _add_word(arrays, number, per_prompt, word_at(at) & _THREE_BYTES)
            else:
                _add_word(arrays, number, per_prompt, _word_from(at))


@compiled
def _bring_to_length_one(state):
    """Scale the sketch to length 1, list where it is not zero, and return in how many places."""
    sketch, used = state.sketch, state.used
    square, num_used = np.float32(0.0), 0
    for d in range(NUM_DIMENSIONS):
        used[num_used] = d
        num_used += int(sketch[d] != np.float32(0.0))
    for i in range(num_used):
        square += sketch[used[i]] * sketch[used[i]]
    for i in range(num_used):
        sketch[used[i]] /= np.float32(math.sqrt(square))
    return num_used


@compiled
def _nearest(state, num_used):
    """Return (nearest centre, cosine to it); the sketch has length 1."""
    likeness, sketch, sums, used = state.likeness, state.sketch, state.sums, state.used
    for k in range(NUM_CLUSTERS):
        likeness[k] = 0.0
    for i in range(num_used):
        row, part = sums[used[i]], sketch[used[i]]
        for k in range(NUM_CLUSTERS):
            likeness[k] += part * row[k]
    best, most = 0, np.float32(-2.0)
    for k in range(state.num_clusters):
        cosine = likeness[k] * state.per_length[k]
        if cosine > most:
            best, most = k, cosine
    return best, most


@compiled
def _move(state, cluster, step, num_used):
    """Move a centre by a share of the way towards the sketch.

    A centre is `scale` times its sum, so that only where the sketch is not zero is anything
    written.
    """
    scale = state.scale[cluster] * np.float32(1.0 - step)
    if scale < np.float32(_LEAST_SCALE):
        scale = np.float32(1.0)
        for d in range(NUM_DIMENSIONS):
            state.sums[d, cluster] *= state.scale[cluster] * np.float32(1.0 - step)
        state.square[cluster] *= (state.scale[cluster] * (1.0 - step)) ** 2
        state.likeness[cluster] *= state.scale[cluster] * np.float32(1.0 - step)
    weight = np.float32(step) / scale
    for i in range(num_used):
        d = state.used[i]
        state.sums[d, cluster] += weight * state.sketch[d]
    square = state.square[cluster] + weight * (2.0 * state.likeness[cluster] + weight)
    state.square[cluster] = max(square, 1e-12)
    state.per_length[cluster] = 1.0 / math.sqrt(state.square[cluster])
    state.scale[cluster] = scale


@compiled
def _open(state, num_used):
    """Open a cluster whose centre is the sketch, and return its number."""
    cluster = state.num_clusters
    state.num_clusters += 1
    for i in range(num_used):
        state.sums[state.used[i], cluster] = state.sketch[state.used[i]]
    state.square[cluster] = state.per_length[cluster] = state.scale[cluster] = 1.0
    return cluster


@compiled
def _fade(state):
    """Forget half of what is known of words' rarity, once it is of enough prompts."""
    if state.num_prompts >= 2.0 * _MEMORY:
        state.num_prompts *= 0.5
        for i in range(NUM_WORDS):
            state.prompts_with[i] *= 0.5
    state.num_prompts += 1.0


@inlined
def clusters_at(address):
    """Return the record at an address."""
    return carray(pointer_to(address), (1,), CLUSTERS_DTYPE)[0]


@compiled
def cluster_of(state, prompt):
    """Return the cluster of a prompt, uint8 [bytes], and let it take part in the clustering."""
    size = prompt.size
    state.number += 1
    state.sketch[:] = 0.0
    tail = max(size - TAIL_BYTES, min(size, HEAD_BYTES))
    address = np.int64(prompt.ctypes.data)
    _add_words(state, address, min(size, HEAD_BYTES))
    _add_words(state, address + tail, size - tail)
    _fade(state)
    num_used = _bring_to_length_one(state)
    if num_used == 0:
        return 0
    best, likeness = _nearest(state, num_used)
    if likeness < _LEAST_LIKENESS and state.num_clusters < NUM_CLUSTERS:
        best = _open(state, num_used)
    else:
        _move(state, best, max(1.0 / (state.sizes[best] + 1.0), _LEAST_STEP), num_used)
    state.sizes[best] += 1.0
    return best


@compiled
def cluster_in(states, prompt):
    """As `cluster_of`, of the record in an array [1]."""
    return cluster_of(states[0], prompt)


def new_clusters() -> NDArray[np.void]:
    """Return clusters that have seen nothing: a record of shape [1]."""
    return np.zeros(1, CLUSTERS_DTYPE)
