"""Prompt lengths in tokens without a tokenizer: counts of a prompt's bytes, weighted by learning.

Each model and kind of content (bare text, chat messages) has a weight for each count of
`prompt_kernel.count_traits`; the estimate is their weighted sum. The weights start from what holds
for byte-pair vocabularies in general, and follow the engines' own counts of requests that ended by
recursive least squares on the relative error, clipped so that a wrong count does little.

Does not know: requests, or text.
Source: recursive least squares with exponential forgetting (Ljung and Soderstrom 1983).
"""

from pathlib import Path

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from ...agents.quick_math import pointer_to
from ...env.compiled import compiled, inlined, source_tag
from .prompt_kernel import NUM_TRAITS

NUM_KINDS = 2
"""Bare text, and chat messages."""
TEXT, CHAT = 0, 1

# tokens per 1, word, letter, digit, other printable, byte beyond ASCII, backslash, curly brace, and
# how far each may be off; fitted by eye to cl100k and Llama-3 counts: 1.2 tokens an English word of
# five letters, a token per 3 bytes of Chinese. A message's JSON costs some 14 marks and 3 words,
# its template about 5 tokens: what a brace takes back.
_WEIGHTS = {
    TEXT: (1.0, 0.75, 0.09, 0.6, 0.55, 0.35, 0.3, 0.0),
    CHAT: (6.0, 0.75, 0.09, 0.6, 0.55, 0.35, 0.3, -6.0),
}
_SPREADS = (8.0, 0.25, 0.06, 0.3, 0.25, 0.2, 0.3, 3.0)
# Largest relative error that is learned from at its full size.
_MOST_ERROR = 0.3
# Share of what was learned that is kept at each count.
_KEEP = 0.998
# tokens; relative errors of shorter prompts are counted against this
_LEAST_TOKENS = 16.0
# Step of the mean relative error.
_ERROR_STEP = 0.02

_FILES = [Path(__file__), Path(__file__).with_name("prompt_kernel.py")]
TOKENS_DTYPE = np.dtype(
    [
        (f"source_{source_tag(_FILES)}", np.int64),
        ("weights", np.float64, (NUM_TRAITS,)),
        ("spread", np.float64, (NUM_TRAITS, NUM_TRAITS)),  # covariance of the weights
        ("most_spread", np.float64),  # trace of the covariance at the start
        ("error_frac", np.float64),  # fading mean of the size of the relative error
        ("num_learned", np.int64),
    ]
)


@inlined
def tokens_at(address):
    """Return the record at an address."""
    return carray(pointer_to(address), (1,), TOKENS_DTYPE)[0]


@inlined
def estimate_tokens(state, traits):
    """Return the estimated tokens of a prompt, at least 1, not rounded."""
    total, num_bytes = 0.0, 0.0
    for i in range(NUM_TRAITS):
        total += state.weights[i] * traits[i]
    for i in range(2, NUM_TRAITS - 1):
        num_bytes += traits[i]
    # No vocabulary has a token for less than a byte, and none one for every 16 bytes.
    return max(1.0, min(max(total, num_bytes / 16.0), num_bytes + 64.0))


@compiled
def learn_tokens(state, traits, tokens):
    """Learn from the number of tokens that an engine counted in a prompt."""
    estimate = estimate_tokens(state, traits)
    scale = 1.0 / max(estimate, _LEAST_TOKENS)
    error = (tokens - estimate) * scale
    state.error_frac += _ERROR_STEP * (abs(error) - state.error_frac)
    error = min(max(error, -_MOST_ERROR), _MOST_ERROR)
    gain = np.zeros(NUM_TRAITS)
    denominator, trace = 0.0, 0.0
    for i in range(NUM_TRAITS):
        trace += state.spread[i, i]
        for j in range(NUM_TRAITS):
            gain[i] += state.spread[i, j] * traits[j] * scale
        denominator += gain[i] * traits[i] * scale
    # Relative errors of about this size are noise.
    denominator += 0.05 * 0.05
    keep = _KEEP if trace < state.most_spread else 1.0
    for i in range(NUM_TRAITS):
        state.weights[i] += gain[i] / denominator * error
        for j in range(NUM_TRAITS):
            state.spread[i, j] = (state.spread[i, j] - gain[i] * gain[j] / denominator) / keep
    state.num_learned += 1


def new_estimates(num_models: int) -> NDArray[np.void]:
    """Return what is believed before any count was seen, [models * NUM_KINDS], kinds innermost."""
    states = np.zeros(num_models * NUM_KINDS, TOKENS_DTYPE)
    for row, state in enumerate(states):
        state["weights"] = _WEIGHTS[row % NUM_KINDS]
        state["spread"] = np.diag(np.square(_SPREADS))
        state["most_spread"] = np.trace(state["spread"])
        state["error_frac"] = 0.2
    return states


@compiled
def tokens_of(states, row, traits):
    """As `estimate_tokens`, of a record of an array."""
    return estimate_tokens(states[row], traits)


@compiled
def learn_tokens_in(states, row, traits, tokens):
    """As `learn_tokens`, of a record of an array."""
    learn_tokens(states[row], traits, tokens)
