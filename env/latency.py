"""Time of one engine iteration, as a roofline with about ten coefficients.

One iteration of a replica with continuous batching and chunked prefill processes a chunk of
prefill tokens and one token for each decoding sequence. Its time is a sum of an overhead, a
p-norm of weight traffic and matrix multiplication, prefill attention, KV reads of decode
attention, and communication. With the batch fixed, the sum is affine in the number of context
tokens; the simulator's closed-form jump rests on that.

Does not know: GPUs, models or where the coefficients come from (`roofline.py`).
Source: shared research on measured kernels (forms B and pooled); form of the p-norm fitted
there on aiconfigurator tables, median error 1-4 % for prefill and decode.
"""

import numpy as np

from .compiled import compiled

# One record a replica. Times are seconds; every coefficient is for the whole replica (all GPUs
# of its tensor-parallel group working together).
LATENCY_DTYPE = np.dtype(
    [
        ("step_s", np.float64),  # fixed cost of an iteration, all-reduce latency included
        ("request_s", np.float64),  # per sequence in the batch
        ("weight_s", np.float64),  # reading the dense weights once
        ("expert_s", np.float64),  # reading all expert weights once; 0 for a dense model
        ("expert_miss_frac", np.float64),  # chance that one token does not use a given expert
        ("token_s", np.float64),  # matrix multiplications of one token
        ("roofline_power", np.float64),  # p of the p-norm, 1 (sum) or more (max as p grows)
        ("prefill_attention_s", np.float64),  # per prefill token and token before it
        ("decode_context_s", np.float64),  # per context token of a decoding sequence
        ("mixed_context_factor", np.float64),  # slow-down of decode attention beside prefill
        ("communication_token_s", np.float64),  # all-reduce bytes of one token
        # Layers with a sliding window read, for each sequence, min(context, window) tokens.
        ("window_tokens", np.float64),  # 0: no such layers
        ("window_context_s", np.float64),  # per windowed context token of a decoding sequence
        ("window_attention_s", np.float64),  # per prefill token and windowed token before it
    ]
)


@compiled
def linear_time_s(coefficients, tokens):
    """Time of the layers without attention: p-norm of weight traffic and matrix multiplication."""
    c = coefficients
    read_s = c.weight_s
    if c.expert_s > 0.0:
        read_s += c.expert_s * (1.0 - c.expert_miss_frac**tokens)
    compute_s = c.token_s * tokens
    p = c.roofline_power
    big, small = max(read_s, compute_s), min(read_s, compute_s)
    return big * (1.0 + (small / big) ** p) ** (1.0 / p)


@compiled
def other_time_s(coefficients, prefill_tokens, prefill_position_tokens, decode_seqs):
    """Overhead, communication and prefill attention of an iteration.

    `prefill_position_tokens` is the sum, over the chunk's tokens, of the tokens before each.
    """
    c = coefficients
    return (
        c.step_s
        + c.request_s * decode_seqs
        + c.communication_token_s * (prefill_tokens + decode_seqs)
        + c.prefill_attention_s * prefill_position_tokens
    )


@compiled
def base_time_s(coefficients, prefill_tokens, prefill_position_tokens, decode_seqs):
    """Part of an iteration's time that does not depend on the decode context."""
    return linear_time_s(coefficients, float(prefill_tokens + decode_seqs)) + other_time_s(
        coefficients, prefill_tokens, prefill_position_tokens, decode_seqs
    )


@compiled
def context_time_s(coefficients, is_mixed):
    """Seconds that one decode context token adds to an iteration."""
    if is_mixed:
        return coefficients.decode_context_s * coefficients.mixed_context_factor
    return coefficients.decode_context_s


@compiled
def iteration_time_s(
    coefficients, prefill_tokens, prefill_start_tokens, decode_seqs, decode_context_tokens
):
    """Time of one iteration: a prefill chunk that starts at a position, beside decode sequences.

    Shapes: `coefficients` is one record of `LATENCY_DTYPE`; all other arguments are scalars.
    """
    position_tokens = prefill_tokens * prefill_start_tokens + (
        prefill_tokens * (prefill_tokens + 1) / 2.0
    )
    return base_time_s(
        coefficients, prefill_tokens, position_tokens, decode_seqs
    ) + decode_context_tokens * context_time_s(coefficients, prefill_tokens > 0)
