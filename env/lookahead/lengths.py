"""How long answers get: a histogram that a gateway keeps of ended requests, and draws from it.

A draw is of the whole length, given that more tokens than so many have come. It stays the same
until the request outgrows it and is then drawn anew, which gives the same distribution as a fresh
draw at every look, and the same future to whatever is compared.

Does not know: requests that still run (an early histogram is too short for that), or prompts.
"""

import numpy as np

from ...traces.hashing import mix64
from ..compiled import compiled

# Bins of equal ratio: 8 an octave, up to 131,072 tokens.
BINS_PER_OCTAVE = 8
NUM_LENGTH_BINS = 17 * BINS_PER_OCTAVE
# Requests, and how many are remembered: past the latter all counts are halved.
PRIOR_REQUESTS = 4.0
MOST_REQUESTS = 4000.0
# Share of the prior that is spread evenly over all bins, so that no length is impossible.
_EVEN_FRAC = 0.05
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

BIN_LOW_TOKENS = 2.0 ** (np.arange(NUM_LENGTH_BINS + 1) / BINS_PER_OCTAVE)


def prior_lengths(mean_tokens: float) -> np.ndarray:
    """Return the counts before any request has ended: an exponential distribution.

    Shapes: [NUM_LENGTH_BINS].
    """
    over = np.exp(-(BIN_LOW_TOKENS - 1.0) / mean_tokens)
    shares = (1.0 - _EVEN_FRAC) * (over[:-1] - over[1:]) + _EVEN_FRAC / NUM_LENGTH_BINS
    return np.asarray(PRIOR_REQUESTS * shares)


@compiled
def length_bin(tokens):
    """Return the bin of a length."""
    place = int(BINS_PER_OCTAVE * np.log2(max(float(tokens), 1.0)) + 1e-9)
    return min(place, NUM_LENGTH_BINS - 1)


@compiled
def count_length(counts, tokens):
    """Note the length of an answer that has ended; `counts` float64 [NUM_LENGTH_BINS]."""
    counts[length_bin(tokens)] += 1.0
    if counts.sum() > MOST_REQUESTS:
        for i in range(counts.size):
            counts[i] *= 0.5


@compiled
def fill_residuals(residuals, counts):
    """Fill the mean tokens still to come, by the bin of the next token; both [NUM_LENGTH_BINS]."""
    beyond, tokens = 0.0, 0.0
    for i in range(NUM_LENGTH_BINS - 1, -1, -1):
        beyond += counts[i]
        tokens += counts[i] * 0.5 * (BIN_LOW_TOKENS[i] + BIN_LOW_TOKENS[i + 1])
        residuals[i] = max(1.0, tokens / beyond - BIN_LOW_TOKENS[i] + 1.0)


@compiled
def quantile_beyond(counts, tokens, share):
    """Return the length below which a share of the answers longer than `tokens` end."""
    first = length_bin(tokens + 1)
    low, high = BIN_LOW_TOKENS[first], BIN_LOW_TOKENS[first + 1]
    start = min(max(tokens + 1.0, low), high)
    own = counts[first] * (high - start) / (high - low)
    beyond = own
    for i in range(first + 1, NUM_LENGTH_BINS):
        beyond += counts[i]
    left = share * beyond
    if left < own:
        return max(tokens + 1, int(start + (high - start) * left / own))
    left -= own
    for i in range(first + 1, NUM_LENGTH_BINS):
        if left < counts[i]:
            low, high = BIN_LOW_TOKENS[i], BIN_LOW_TOKENS[i + 1]
            return max(tokens + 1, int(low + (high - low) * left / counts[i]))
        left -= counts[i]
    return max(tokens + 1, int(BIN_LOW_TOKENS[NUM_LENGTH_BINS]))


@compiled
def uniform_of(seed, key, num_draws):
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    mixed = mix64(mix64(np.uint64(seed) + _GOLDEN * np.uint64(key + 1)) + np.uint64(num_draws))
    return (mixed >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def draw_length(counts, tokens, most_tokens, seed, key, num_draws, sample, num_samples):
    """Return a whole length beyond `tokens` and at most `most_tokens`.

    The samples of a request are spread evenly over the distribution from a random start.
    """
    share = uniform_of(seed, key, num_draws) + sample / num_samples
    share -= np.floor(share)
    return min(quantile_beyond(counts, tokens, share), max(most_tokens, tokens + 1))
