"""Output lengths, compiled: histograms under many keys, pooled into one prediction.

Each key of a request (its tenant, its application, its session and so on) has a histogram of the
lengths that were seen under it, on bins that widen with length. The prediction is the model's own
histogram tilted by each key's: log p = log p0 + sum over keys of w * log(p_key / p0), where p_key
is shrunk towards p0 by how little was seen, and the weights w are learned online by the gradient
of the log loss, so that a key that says nothing, or says what another said before, loses its say.
Upper and lower quantiles are read at levels that follow what share of lengths they covered.

A length that was cut off, by its limit or because the client went away, is known to be at least
what was seen: its count is spread over the longer bins as the prediction has it.

Does not know: what the keys stand for (`output_length.py`).
Source: logarithmic pooling with learned weights as the mixing of context models in PAQ (Mahoney
2005); cut-off lengths by self-consistency (Efron 1967); levels by adaptive conformal inference
(Gibbs and Candes, NeurIPS 2021).
"""

import math
from pathlib import Path

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ..env.compiled import compiled, inlined, source_tag
from .quick_math import pointer_to, quick_exp, quick_log

NUM_KEYS = 10
"""Histograms that a request belongs to; the first is its model's."""
NUM_BINS = 64
NUM_SLOTS = 8192
"""Histograms that are kept; the one least seen of a set of four makes room."""
WAYS = 4
QUANTILES = (0.05, 0.5, 0.9, 0.95)
"""Given with every prediction; the first and the last are the ends of a 90 % interval."""
NUM_QUANTILES = len(QUANTILES)
P90 = QUANTILES.index(0.9)

WHOLE, AT_LIMIT, GIVEN_UP = 0, 1, 2
"""How an answer ended: by itself, at its limit of tokens, or as nobody waited for it any more."""

# Most and least observations that a histogram remembers: of the model's, of a single key's.
_MEMORY_OF_MODEL, _MEMORY_OF_KEY = 2000.0, 200.0
# Observations that a key's histogram is shrunk towards the model's by.
_SHRINKAGE = 8.0
# Observations that the histogram before the first stands for.
_PRIOR = 4.0
# Step of the weights, and the memory of their gradients' size.
_WEIGHT_STEP, _GRADIENT_MEMORY = 0.01, 0.99
_LEAST_WEIGHT, _MOST_WEIGHT = 0.0, 1.5
# Weight of every key at the start.
INITIAL_WEIGHT = 0.3
# Step of a quantile's level; coverage over n ends is off by at most about 1 / (step * n).
_LEVEL_STEP = 0.01
# How many times nearer to 0 or 1 than its quantile a level may come: nearer, lengths are guesses.
_LEVEL_RANGE = 5.0
# Probability that no bin falls below, so that logarithms are finite.
_LEAST_PROBABILITY = 1e-5

_FILES = [Path(__file__), Path(__file__).with_name("quick_math.py")]
LENGTHS_DTYPE = np.dtype(
    [
        (f"source_{source_tag(_FILES)}", np.int64),
        ("edges", np.float64, (NUM_BINS + 1,)),  # bin b holds edges[b] <= length < edges[b + 1]
        ("prior", np.float64, (NUM_BINS,)),
        ("weights", np.float64, (NUM_KEYS,)),
        ("squares", np.float64, (NUM_KEYS,)),  # of the weights' gradients, remembered
        ("keys", np.uint64, (NUM_SLOTS,)),  # 0 for an empty slot
        ("mass", np.float32, (NUM_SLOTS,)),
        ("counts", np.float32, (NUM_SLOTS, NUM_BINS)),
        ("levels", np.float32, (NUM_SLOTS, NUM_QUANTILES)),
        ("tilt", np.float32, (NUM_KEYS, NUM_BINS)),  # scratch: log ratios
        ("base", np.float32, (NUM_BINS,)),  # scratch: p0
        ("inverse", np.float32, (NUM_BINS,)),  # scratch: 1 / p0
        ("pooled", np.float32, (NUM_BINS,)),  # scratch: the prediction
        ("num_learned", np.int64),
        ("num_evicted", np.int64),
    ]
)


@inlined
def lengths_at(address):
    """Return the record at an address."""
    return carray(pointer_to(address), (1,), LENGTHS_DTYPE)[0]


@inlined
def bin_of(edges, length):
    """Return the bin that holds a length; the last for whatever is longer."""
    low, high = 0, NUM_BINS - 1
    while low < high:
        middle = (low + high + 1) // 2
        if edges[middle] <= length:
            low = middle
        else:
            high = middle - 1
    return low


@inlined
def find_slot(keys, key):
    """Return the slot of a key, -1 if it has none."""
    first = np.int64(key % np.uint64(NUM_SLOTS // WAYS)) * WAYS
    for slot in range(first, first + WAYS):
        if keys[slot] == key:
            return slot
    return -1


@compiled
def claim_slot(state, key):
    """Return the slot of a key, made anew in place of the least seen of its set if it has none."""
    slot = find_slot(state.keys, key)
    if slot >= 0:
        return slot
    first = np.int64(key % np.uint64(NUM_SLOTS // WAYS)) * WAYS
    slot = first
    for other in range(first, first + WAYS):
        # What is passed over fades, so that no histogram of old keeps its place for ever.
        if state.keys[other] != 0 and state.mass[other] < state.mass[slot]:
            slot = other
        if state.keys[other] == 0:
            slot = other
            break
    if state.keys[slot] != 0:
        state.num_evicted += 1
    state.keys[slot] = key
    state.mass[slot] = 0.0
    state.counts[slot, :] = 0.0
    for q in range(NUM_QUANTILES):
        state.levels[slot, q] = QUANTILES[q]
    return slot


@compiled
def pool(state, keys):
    """Fill `pooled` with the predicted probability of each bin, before any limit."""
    base, inverse, tilt, pooled = state.base, state.inverse, state.tilt, state.pooled
    counts, mass, weights = state.counts, state.mass, state.weights
    slot = find_slot(state.keys, keys[0])
    total = np.float32(_PRIOR)
    for b in range(NUM_BINS):
        base[b] = _PRIOR * state.prior[b]
    if slot >= 0:
        total += mass[slot]
        for b in range(NUM_BINS):
            base[b] += counts[slot, b]
    for b in range(NUM_BINS):
        base[b] = max(base[b] / total, np.float32(_LEAST_PROBABILITY))
        inverse[b] = np.float32(1.0) / base[b]
        pooled[b] = quick_log(base[b])
    for i in range(1, NUM_KEYS):
        slot = find_slot(state.keys, keys[i])
        if slot < 0:
            tilt[i, :] = 0.0
            continue
        weight = np.float32(weights[i])
        shrinkage = np.float32(_SHRINKAGE)
        scale = np.float32(1.0) / (mass[slot] + shrinkage)
        for b in range(NUM_BINS):
            tilt[i, b] = quick_log((counts[slot, b] * inverse[b] + shrinkage) * scale)
        for b in range(NUM_BINS):
            pooled[b] += weight * tilt[i, b]
    most = pooled.max()
    total = np.float32(0.0)
    for b in range(NUM_BINS):
        pooled[b] = quick_exp(pooled[b] - most)
    for b in range(NUM_BINS):
        total += pooled[b]
    for b in range(NUM_BINS):
        pooled[b] /= total


@inlined
def quantile(edges, pooled, level):
    """Return the length below or at which a share of the probability lies."""
    below = 0.0
    for b in range(NUM_BINS - 1):
        if below + pooled[b] >= level:
            last = edges[b + 1] - 1.0
            return edges[b] + (last - edges[b]) * (level - below) / pooled[b]
        below += pooled[b]
    return edges[NUM_BINS]


@compiled
def predict(state, keys, most_tokens, out):
    """Write the quantiles of an answer of at most so many tokens, and return its mean.

    `keys` uint64 [NUM_KEYS] or longer; `out` float64 [NUM_QUANTILES].
    """
    pool(state, keys)
    edges, pooled = state.edges, state.pooled
    mean = 0.0
    for b in range(NUM_BINS):
        mean += pooled[b] * min(0.5 * (edges[b] + edges[b + 1] - 1.0), most_tokens)
    slot = find_slot(state.keys, keys[1])
    for q in range(NUM_QUANTILES):
        level = QUANTILES[q] if slot < 0 else np.float64(state.levels[slot, q])
        value = quantile(edges, pooled, level)
        least = out[q - 1] if q > 0 else 0.0
        out[q] = max(min(value, most_tokens), least)
    return mean


@compiled
def _spread_rest(pooled, first):
    """Turn the prediction into what it says of a length that reaches its bin `first` at least."""
    rest = np.float32(0.0)
    for b in range(first, NUM_BINS):
        rest += pooled[b]
    for b in range(NUM_BINS):
        if b < first:
            pooled[b] = 0.0
        elif rest > 0.0:
            pooled[b] /= rest
    if rest <= 0.0:
        pooled[first] = 1.0


@compiled
def _learn_weights(state, target, is_cut):
    """Step the weights along the gradient of the log loss.

    `target` is the bin of a length, or of the least that it was if it was cut off.
    """
    pooled = state.pooled
    rest = np.float32(0.0)
    for b in range(target, NUM_BINS):
        rest += pooled[b]
    for i in range(1, NUM_KEYS):
        expected = np.float32(0.0)
        seen = np.float32(0.0)
        for b in range(NUM_BINS):
            expected += pooled[b] * state.tilt[i, b]
        if is_cut:
            for b in range(target, NUM_BINS):
                seen += pooled[b] * state.tilt[i, b]
            seen = seen / rest if rest > 0.0 else expected
        else:
            seen = state.tilt[i, target]
        gradient = np.float64(seen - expected)
        if gradient == 0.0:
            continue
        state.squares[i] += (1.0 - _GRADIENT_MEMORY) * (gradient * gradient - state.squares[i])
        step = _WEIGHT_STEP * gradient / (math.sqrt(state.squares[i]) + 0.1)
        state.weights[i] = min(max(state.weights[i] + step, _LEAST_WEIGHT), _MOST_WEIGHT)


@compiled
def _count(state, key, memory):
    """Add the target distribution, which `pooled` holds, to the histogram of a key."""
    slot = claim_slot(state, key)
    keep = np.float32(1.0)
    if state.mass[slot] >= memory:
        keep = np.float32((memory - 1.0) / memory)
    for b in range(NUM_BINS):
        state.counts[slot, b] = state.counts[slot, b] * keep + state.pooled[b]
    state.mass[slot] = state.mass[slot] * keep + np.float32(1.0)
    return slot


@compiled
def learn(state, keys, length, cut, most_tokens, issued):
    """Learn from an answer's length, or from the least that it was if it was cut off.

    `cut` is WHOLE, AT_LIMIT or GIVEN_UP; `issued` float64 [NUM_QUANTILES]: the quantiles that had
    been given for it as an answer of at most `most_tokens`, NaN for none.
    """
    pool(state, keys)
    target = bin_of(state.edges, length)
    is_cut = cut != WHOLE
    _learn_weights(state, target, is_cut)
    if is_cut:
        _spread_rest(state.pooled, target)
    else:
        state.pooled[:] = 0.0
        state.pooled[target] = 1.0
    for i in range(NUM_KEYS):
        slot = _count(state, keys[i], _MEMORY_OF_MODEL if i == 0 else _MEMORY_OF_KEY)
        if i == 1 and cut != GIVEN_UP:
            _learn_levels(state.levels[slot], length, most_tokens, issued)
    state.num_learned += 1


@compiled
def _learn_levels(levels, length, most_tokens, issued):
    """Move a quantile's level up where it fell short, and down a little where it did not."""
    for q in range(NUM_QUANTILES):
        # What reaches the limit covers whatever comes, which says nothing of the level.
        if math.isnan(issued[q]) or issued[q] >= most_tokens:
            continue
        error = QUANTILES[q] - (1.0 if length <= issued[q] else 0.0)
        least, most = QUANTILES[q] / _LEVEL_RANGE, 1.0 - (1.0 - QUANTILES[q]) / _LEVEL_RANGE
        levels[q] = min(max(levels[q] + _LEVEL_STEP * error, least), most)


@compiled
def predict_in(states, keys, most_tokens, out):
    """As `predict`, of the record in an array [1]."""
    return predict(states[0], keys, most_tokens, out)


@compiled
def learn_in(states, keys, length, cut, most_tokens, issued):
    """As `learn`, of the record in an array [1]."""
    learn(states[0], keys, length, cut, most_tokens, issued)
