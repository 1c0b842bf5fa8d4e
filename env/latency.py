"""Time of one engine iteration, from the coefficients of one replica.

One iteration of a replica with continuous batching and chunked prefill processes a chunk of
prefill tokens and one token for each decoding sequence. Its time is

    overhead + layers(tokens) + output head(sequences) + prefill attention + decode attention

`layers` (`linear_time_s`) depends on the number of tokens alone and may be any function of it:
each matrix multiplication is a p-norm of reading its weights and multiplying, with tokens rounded
up part of the way to whole tiles and large products slowed down; then experts, element-wise
operators, and communication interpolated from a table. With the batch fixed, an iteration is
affine in the context tokens of the decoding sequences and in the positions of the prefilled tokens; the
simulator's closed-form jump rests on that.

Speculative decoding and pipeline stages are inside the coefficients: an iteration of this model
always makes one token for each decoding sequence (`roofline.py` says how).

Does not know: GPUs, models or where the coefficients come from (`roofline.py`).
Source: form found on aiconfigurator kernel tables, errors in `docs/fidelity.md`.
"""

import numpy as np

from .compiled import compiled

# matrix multiplications of a layer that have a form of their own; unused ones have zero cost
NUM_GEMMS = 6
# tokens of a communication table's knots; between them time is interpolated in logarithms
COMMUNICATION_TOKENS = np.array([2.0**i for i in range(16)])
# rows of a tile of a matrix multiplication on tensor cores (cuBLAS and CUTLASS kernels, 64-256)
TILE_TOKENS = 128.0
# tokens of a prefill attention tile's diagonal that are computed in vain (FlashAttention, 128)
HALF_TILE_TOKENS = 64.0

# One record a replica. Times are seconds; every coefficient is for the whole replica (all GPUs
# of its tensor-parallel group working together).
LATENCY_DTYPE = np.dtype(
    [
        ("step_s", np.float64),  # fixed cost of an iteration
        ("request_s", np.float64),  # per decoding sequence
        ("weight_s", np.float64),  # reading the dense weights once
        ("expert_s", np.float64),  # reading all expert weights once; 0 for a dense model
        ("expert_miss_frac", np.float64),  # chance that one token does not use a given expert
        ("token_s", np.float64),  # dense matrix multiplications of one token in a large batch
        ("roofline_power", np.float64),  # p of the p-norm, 1 (sum) or more (max as p grows)
        ("prefill_attention_s", np.float64),  # per prefill token and token before it
        ("decode_context_s", np.float64),  # per context token of a decoding sequence
        ("mixed_context_factor", np.float64),  # slow-down of decode attention beside prefill
        ("communication_token_s", np.float64),  # one token in the largest batch of the table
        # Layers with a sliding window read, for each sequence, min(context, window) tokens.
        ("window_tokens", np.float64),  # 0: no such layers
        ("window_context_s", np.float64),  # per windowed context token of a decoding sequence
        ("window_attention_s", np.float64),  # per prefill token and windowed token before it
        ("prefill_step_s", np.float64),  # more in an iteration with prefill
        ("prefill_position_s", np.float64),  # per token before the prefilled ones, on average
        ("decode_step_s", np.float64),  # more in an iteration with decode
        ("head_read_s", np.float64),  # reading the output head once
        ("head_seq_s", np.float64),  # multiplying one sequence's last token with it
        ("activation_token_s", np.float64),  # element-wise operators of one token
        ("expert_token_s", np.float64),  # experts' matrix multiplications of one token
        ("expert_sustained_frac", np.float64),  # their slow-down at one token; grows as sqrt
        ("tile_pad_frac", np.float64),  # share of a tile's empty rows that costs time
        ("micro_batches", np.float64),  # pipeline stages: parts that a batch is cut into
        # Speculative decoding: one verify iteration stands for `speculative_output_tokens`.
        ("speculative_input_tokens", np.float64),  # tokens verified for each sequence, 1 if off
        ("speculative_output_tokens", np.float64),  # expected of them to be kept, 1 if off
        ("speculative_draft_frac", np.float64),  # drafting, as a share of the verify iteration
        # The matrix multiplications of all layers, one column a kind (`roofline.py`).
        ("gemm_read_s", np.float64, NUM_GEMMS),  # weights
        ("gemm_token_read_s", np.float64, NUM_GEMMS),  # activations of one token
        ("gemm_token_s", np.float64, NUM_GEMMS),  # multiplying one token
        ("gemm_sustained_frac", np.float64, NUM_GEMMS),  # slow-down at one token; grows as sqrt
        ("communication_s", np.float64, COMMUNICATION_TOKENS.size),  # at COMMUNICATION_TOKENS
    ]
)


@compiled
def communication_time_s(coefficients, tokens):
    """Time of all transfers between GPUs for some tokens, interpolated in logarithms."""
    times_s = coefficients.communication_s
    last = times_s.size - 1
    if times_s[last] <= 0.0:
        return 0.0
    place = np.log2(max(tokens, 1.0))
    if place >= last:
        return times_s[last] * tokens / COMMUNICATION_TOKENS[last]
    low = int(place)
    share = place - low
    return np.exp((1.0 - share) * np.log(times_s[low]) + share * np.log(times_s[low + 1]))


@compiled
def _layers_time_s(coefficients, tokens):
    """Time of the layers without attention for one batch or micro-batch."""
    c = coefficients
    p = c.roofline_power
    tiles_tokens = np.ceil(tokens / TILE_TOKENS) * TILE_TOKENS
    filled_frac = min(1.0, tokens / TILE_TOKENS)
    padded_tokens = tokens + c.tile_pad_frac * (tiles_tokens - tokens) * filled_frac
    total_s = c.activation_token_s * tokens + communication_time_s(c, tokens)
    for i in range(NUM_GEMMS):
        read_s = c.gemm_read_s[i] + c.gemm_token_read_s[i] * tokens
        slow = 1.0 + c.gemm_sustained_frac[i] * np.sqrt(tokens)
        compute_s = c.gemm_token_s[i] * padded_tokens * slow
        big, small = max(read_s, compute_s), min(read_s, compute_s)
        if big > 0.0:
            total_s += big * (1.0 + (small / big) ** p) ** (1.0 / p)
    if c.expert_s > 0.0:
        slow = 1.0 + c.expert_sustained_frac * np.sqrt(tokens)
        total_s += c.expert_s * (1.0 - c.expert_miss_frac**tokens)
        total_s += c.expert_token_s * tokens * slow
    return total_s


@compiled
def linear_time_s(coefficients, tokens):
    """Time of everything that depends on the number of tokens alone: layers without attention."""
    return _layers_time_s(coefficients, tokens / coefficients.micro_batches)


@compiled
def _speculative_time_s(coefficients, prefill_tokens, decode_seqs):
    """What the verified tokens add to, or the kept ones save of, the layers' time.

    One verify iteration stands for as many iterations as it is expected to keep tokens, prefill
    chunks included.
    """
    c = coefficients
    kept = c.speculative_output_tokens
    tokens = kept * prefill_tokens + c.speculative_input_tokens * decode_seqs
    verify_s = linear_time_s(c, tokens) * (1.0 + c.speculative_draft_frac) / kept
    return verify_s - linear_time_s(c, float(prefill_tokens + decode_seqs))


@compiled
def other_time_s(coefficients, prefill_tokens, prefill_position_tokens, decode_seqs):
    """Overhead, output head and prefill attention of an iteration.

    `prefill_position_tokens` is the sum, over the chunk's tokens, of the tokens before each.
    """
    c = coefficients
    head_s = c.head_seq_s * c.speculative_input_tokens * decode_seqs
    fixed_s = c.step_s + np.sqrt(c.head_read_s * c.head_read_s + head_s * head_s)
    if decode_seqs > 0:
        fixed_s += c.decode_step_s + c.request_s * decode_seqs
        if c.speculative_input_tokens > 1.0:
            fixed_s *= (1.0 + c.speculative_draft_frac) / c.speculative_output_tokens
            fixed_s += _speculative_time_s(c, prefill_tokens, decode_seqs)
    if prefill_tokens > 0:
        fixed_s += c.prefill_step_s
        fixed_s += c.prefill_attention_s * HALF_TILE_TOKENS * prefill_tokens
        fixed_s += position_time_s(c, prefill_tokens) * prefill_position_tokens
    return fixed_s


@compiled
def position_time_s(coefficients, prefill_tokens):
    """Seconds that one token before one prefilled token adds, for a chunk of a given size."""
    serial_s = coefficients.prefill_position_s / max(float(prefill_tokens), 1.0)
    return coefficients.prefill_attention_s + serial_s


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
def window_positions(window_tokens, prefill_tokens, start_tokens):
    """Return the sum, over the tokens of a chunk, of those before each that a window reaches."""
    growing = min(max(window_tokens - start_tokens, 0.0), prefill_tokens)
    positions = growing * start_tokens + growing * (growing + 1.0) / 2.0
    return positions + (prefill_tokens - growing) * window_tokens


@compiled
def window_time_s(coefficients, prefill_tokens, window_position_tokens, window_context_tokens):
    """Time of the layers with a window; 0 without such layers.

    `window_position_tokens` and `window_context_tokens` count, for each prefilled token and each
    decoding sequence, at most `window_tokens` of the tokens before.
    """
    c = coefficients
    context_s = c.window_context_s
    time_s = 0.0
    if prefill_tokens > 0:
        context_s *= c.mixed_context_factor
        positions = window_position_tokens + HALF_TILE_TOKENS * prefill_tokens
        time_s = c.window_attention_s * positions
    return time_s + context_s * window_context_tokens


@compiled
def iteration_time_s(
    coefficients, prefill_tokens, prefill_start_tokens, decode_seqs, decode_context_tokens
):
    """Time of one iteration: a prefill chunk that starts at a position, beside decode sequences.

    Decoding sequences are taken to have equal contexts where a window matters.

    Shapes: `coefficients` is one record of `LATENCY_DTYPE`; all other arguments are scalars.
    """
    c = coefficients
    position_tokens = prefill_tokens * prefill_start_tokens + (
        prefill_tokens * (prefill_tokens + 1) / 2.0
    )
    time_s = base_time_s(c, prefill_tokens, position_tokens, decode_seqs)
    time_s += decode_context_tokens * context_time_s(c, prefill_tokens > 0)
    if c.window_tokens > 0.0:
        window_context = min(float(decode_context_tokens), c.window_tokens * decode_seqs)
        positions = window_positions(
            c.window_tokens, float(prefill_tokens), float(prefill_start_tokens)
        )
        time_s += window_time_s(c, prefill_tokens, positions, window_context)
    return time_s


@compiled
def predict_parts(coefficients, batches, parts):
    """Fill the times of batches by part: layers, prefill attention, decode attention, the rest.

    Shapes: `coefficients` `LATENCY_DTYPE` [1]; `batches` float64 [B, 6] of prefill tokens, sum of
    their positions, decoding sequences, their context tokens, and windowed positions and context;
    `parts` float64 [B, 4], written.
    """
    c = coefficients[0]
    for i in range(batches.shape[0]):
        prefill_tokens, positions = batches[i, 0], batches[i, 1]
        decode_seqs, context_tokens = batches[i, 2], batches[i, 3]
        other_s = other_time_s(c, prefill_tokens, positions, decode_seqs)
        prefill_s, decode_s = 0.0, 0.0
        if prefill_tokens > 0:
            prefill_s = position_time_s(c, prefill_tokens) * positions
            prefill_s += c.prefill_attention_s * HALF_TILE_TOKENS * prefill_tokens
            prefill_s += c.prefill_step_s
            other_s -= prefill_s
            prefill_s += window_time_s(c, prefill_tokens, batches[i, 4], 0.0)
        if decode_seqs > 0:
            decode_s = context_time_s(c, prefill_tokens > 0) * context_tokens
            window_s = window_time_s(c, prefill_tokens, 0.0, batches[i, 5])
            decode_s += window_s - window_time_s(c, prefill_tokens, 0.0, 0.0)
            decode_s += c.decode_step_s
            other_s -= c.decode_step_s
        parts[i, 0] = linear_time_s(c, prefill_tokens + decode_seqs)
        parts[i, 1], parts[i, 2], parts[i, 3] = prefill_s, decode_s, other_s
