"""Running totals of replicas, and what a window added to them.

Does not know: what is made of a difference (`work.py`, `replicas.py`).
"""

import numpy as np

from ...compiled import compiled
from ..memory import replicas_of

# Columns of the totals of a replica.
(
    BUSY_S,
    ENERGY_J,
    PREFILL_S,
    ITERATIONS,
    PREFILL_ITERATIONS,
    PREFILL_TOKENS,
    PREFILL_POSITIONS,
    DECODED_TOKENS,
    READ_TOKENS,
    GENERATED_TOKENS,
    HIT_TOKENS,
    PROMPT_TOKENS,
    HOST_HIT_TOKENS,
    PREEMPTIONS,
    COPIED_S,
    NUM_TOTALS,
) = range(16)
# Columns of the moving averages over windows: share of time in iterations, of prompts cached.
MEAN_BUSY, MEAN_HIT, NUM_MEANS = range(3)
# Weight of the newest window in those averages.
MEAN_GAIN = 0.1


@compiled
def end_totals(handle, before, totals, added):
    """Fill the totals of this moment, and what they are above those `before`.

    Shapes: all [R, NUM_TOTALS].
    """
    replicas = replicas_of(handle[0])
    for r in range(replicas.size):
        replica, row = replicas[r], totals[r]
        row[BUSY_S] = replica.busy_s
        row[ENERGY_J] = replica.energy_j
        row[PREFILL_S] = replica.prefill_s
        row[ITERATIONS] = replica.num_iterations
        row[PREFILL_ITERATIONS] = replica.num_prefill_iterations
        row[PREFILL_TOKENS] = replica.prefill_tokens
        row[PREFILL_POSITIONS] = replica.prefill_positions
        row[DECODED_TOKENS] = replica.generated_tokens - replica.first_tokens
        row[READ_TOKENS] = replica.read_tokens
        row[GENERATED_TOKENS] = replica.generated_tokens
        row[HIT_TOKENS] = replica.hit_tokens
        row[PROMPT_TOKENS] = replica.prompt_tokens
        row[HOST_HIT_TOKENS] = replica.host_hit_tokens
        row[PREEMPTIONS] = replica.num_preemptions
        row[COPIED_S] = replica.copied_s
        for i in range(NUM_TOTALS):
            added[r, i] = row[i] - before[r, i]


@compiled
def update_means(means, added, span_s, updated):
    """Fill the moving averages after a window, given those before it; NaN where none was yet.

    Shapes: `means` and `updated` [R, NUM_MEANS]; `added` [R, NUM_TOTALS].
    """
    for r in range(means.shape[0]):
        updated[r] = means[r]
        busy_frac = min(added[r, BUSY_S] / span_s, 1.0)
        updated[r, MEAN_BUSY] = _moved(means[r, MEAN_BUSY], busy_frac)
        if added[r, PROMPT_TOKENS] > 0.0:
            hit_frac = added[r, HIT_TOKENS] / added[r, PROMPT_TOKENS]
            updated[r, MEAN_HIT] = _moved(means[r, MEAN_HIT], hit_frac)


@compiled
def _moved(mean, value):
    return value if np.isnan(mean) else mean + MEAN_GAIN * (value - mean)
