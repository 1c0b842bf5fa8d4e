"""What a gateway counts by itself of each replica: at dispatch, at a first token, at an end.

The simulator's gateway and the live dispatcher call this very code, so the view that a policy is
trained on moves as the one that it will see.

Does not know: who counts, or how a replica is chosen (`dispatch.py`).
"""

import numpy as np

from .compiled import compiled, inlined

# Weights of the newest value in the moving averages.
TTFT_RATIO_GAIN = 0.1
ITERATION_RATIO_GAIN = 0.3
PREFILL_FRAC_GAIN = 0.3
OUTPUT_TOKENS_GAIN = 0.01
# Log ratios beyond this (a factor of 20) are taken as this.
LOG_RATIO_LIMIT = 3.0
# A moving average nearer to 0 is 0: an idle replica's would go on shrinking for ever.
NEGLIGIBLE = 1e-12


@inlined
def footprint_tokens(query):
    """Tokens that a request is counted with while it is open: prompt and half the answer."""
    return query.input_tokens + 0.5 * query.expected_output_tokens


@inlined
def count_dispatch(v, query, uncached_tokens, now_s):
    """Count a request at the replica that it is sent to; takes records, no arrays."""
    if v.pending_tokens == 0.0:
        v.progress_at_s = now_s
    v.outstanding_requests += 1
    v.outstanding_tokens += footprint_tokens(query)
    v.pending_tokens += uncached_tokens


@compiled
def moved(mean, gain, value):
    """Return a moving average with a new value taken in."""
    mean += gain * (value - mean)
    return mean if abs(mean) > NEGLIGIBLE else 0.0


@compiled
def log_ratio(observed_s, predicted_s):
    """Return the logarithm of an observed time over the predicted one, within its limits."""
    ratio = np.log(max(observed_s, 1e-4) / max(predicted_s, 1e-4))
    return min(max(ratio, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)


@inlined
def count_first_token(v, uncached_tokens, observed_s, predicted_s, now_s):
    """Note a first token: its prefill is no backlog any more, its TTFT is known.

    `predicted_s` is what was predicted for a replica that is not slow.
    """
    v.pending_tokens = max(0.0, v.pending_tokens - uncached_tokens)
    v.progress_at_s = now_s
    v.ttft_log_ratio += TTFT_RATIO_GAIN * (log_ratio(observed_s, predicted_s) - v.ttft_log_ratio)


@inlined
def count_end(v, query, uncached_tokens, had_token):
    """Note that a request left its replica, finished or not."""
    v.outstanding_requests -= 1
    v.outstanding_tokens = max(0.0, v.outstanding_tokens - footprint_tokens(query))
    if not had_token:
        v.pending_tokens = max(0.0, v.pending_tokens - uncached_tokens)
