"""What a window's iterations were made of: arithmetic, reading, sending, and shares of time.

Time is split by the latency model's own terms, at the mean batch of the window's iterations with
and without prefill. Only nominal coefficients are used: what slows a replica in secret does not
show here, but in the time that its iterations took.

Does not know: GPUs or links; results are of one replica.
"""

import numpy as np

from ...compiled import compiled
from ...latency import (
    NUM_GEMMS,
    communication_time_s,
    context_time_s,
    linear_time_s,
    other_time_s,
    position_time_s,
)
from .totals import (
    DECODED_TOKENS,
    GENERATED_TOKENS,
    ITERATIONS,
    PREFILL_ITERATIONS,
    PREFILL_POSITIONS,
    PREFILL_TOKENS,
    READ_TOKENS,
)

# Columns of the work of a window: FLOPs of all GPUs together, bytes of one GPU, nominal seconds.
(
    MATMUL_FLOPS,
    ATTENTION_FLOPS,
    READ_BYTES,
    SENT_BYTES,
    TENSOR_S,
    OVERHEAD_S,
    COMMUNICATION_S,
    BUBBLE_S,
    ITERATION_S,
    NUM_WORKS,
) = range(10)


@compiled
def fill_work(c, facts, added, work):
    """Fill the work of a window of one replica.

    Shapes: `c` a record of LATENCY_DTYPE, `facts` of FACTS_DTYPE; `added` [NUM_TOTALS]; `work`
    [NUM_WORKS].
    """
    work[:] = 0.0
    if added[ITERATIONS] <= 0.0:
        return
    _fill_flops(c, facts, added, work)
    num_prefill = added[PREFILL_ITERATIONS]
    if num_prefill > 0.0:
        chunk = added[PREFILL_TOKENS] / num_prefill
        positions = added[PREFILL_POSITIONS] / num_prefill
        _add_iterations(c, facts, added, work, (num_prefill, chunk, positions))
    num_decode = added[ITERATIONS] - num_prefill
    if num_decode > 0.0:
        _add_iterations(c, facts, added, work, (num_decode, 0.0, 0.0))


@compiled
def _fill_flops(c, facts, added, work):
    # A verify iteration computes its drafts as well, and stands for the tokens that it keeps.
    computed = added[DECODED_TOKENS] * c.speculative_input_tokens / c.speculative_output_tokens
    tokens = added[PREFILL_TOKENS] + computed
    first_tokens = added[GENERATED_TOKENS] - added[DECODED_TOKENS]
    work[MATMUL_FLOPS] = facts.token_flops * tokens + facts.head_flops * (computed + first_tokens)
    full = added[PREFILL_POSITIONS] + added[READ_TOKENS]
    windowed = _windowed(facts, added[PREFILL_POSITIONS], added[PREFILL_TOKENS])
    windowed += _windowed(facts, added[READ_TOKENS], added[DECODED_TOKENS])
    work[ATTENTION_FLOPS] = facts.pair_flops * full + facts.window_pair_flops * windowed
    work[SENT_BYTES] = facts.link_gpu_bytes * tokens


@compiled
def _windowed(facts, positions, tokens):
    """Return what of the tokens before some tokens a window reaches, all taken as at the mean."""
    if facts.window_tokens <= 0.0 or tokens <= 0.0:
        return 0.0
    return min(positions, facts.window_tokens * tokens)


@compiled
def _add_iterations(c, facts, added, work, kind):
    """Add the time of iterations of one kind, and what they read."""
    count, chunk, positions = kind
    seqs = added[DECODED_TOKENS] / added[ITERATIONS]
    if chunk <= 0.0:
        seqs = max(1.0, seqs)  # nothing but decode: at least one sequence
    context = added[READ_TOKENS] / added[ITERATIONS]
    # Each of the micro-batches of a pipeline reads the weights of its stage.
    tokens = (chunk + seqs) / c.micro_batches
    communication_s = communication_time_s(c, tokens)
    overhead_s = c.step_s + c.activation_token_s * tokens
    if seqs > 0.0:
        overhead_s += c.decode_step_s + c.request_s * seqs
    if chunk > 0.0:
        overhead_s += c.prefill_step_s
    iteration_s = linear_time_s(c, chunk + seqs) + other_time_s(c, chunk, positions, seqs)
    iteration_s += context_time_s(c, chunk > 0.0) * context
    if c.window_tokens > 0.0:
        iteration_s += c.window_attention_s * _windowed(facts, positions, chunk)
        iteration_s += c.window_context_s * _windowed(facts, context, seqs)
    work[TENSOR_S] += count * _tensor_s(c, tokens, chunk, positions, seqs)
    work[OVERHEAD_S] += count * min(overhead_s, iteration_s)
    work[COMMUNICATION_S] += count * min(communication_s, iteration_s)
    work[BUBBLE_S] += count * iteration_s * (1.0 - min(1.0, tokens))
    work[ITERATION_S] += count * iteration_s
    touched_frac = 1.0 - facts.expert_miss_frac**tokens
    read_bytes = facts.dense_gpu_bytes + facts.expert_gpu_bytes * touched_frac
    read_bytes += facts.kv_gpu_bytes * context
    read_bytes += facts.window_kv_gpu_bytes * _windowed(facts, context, seqs)
    work[READ_BYTES] += count * read_bytes / c.speculative_output_tokens


@compiled
def _tensor_s(c, tokens, chunk, positions, seqs):
    """Return the time in which an iteration's matrix products multiply."""
    tiles_tokens = np.ceil(tokens / c.tile_tokens) * c.tile_tokens
    filled_frac = min(1.0, tokens / c.tile_tokens)
    padded_tokens = tokens + c.tile_pad_frac * (tiles_tokens - tokens) * filled_frac
    tensor_s = 0.0
    for i in range(NUM_GEMMS):
        slow = 1.0 + c.gemm_sustained_frac[i] * np.sqrt(tokens)
        tensor_s += c.gemm_token_s[i] * padded_tokens * slow
    if c.expert_s > 0.0:
        tensor_s += c.expert_token_s * tokens * (1.0 + c.expert_sustained_frac * np.sqrt(tokens))
    tensor_s += c.head_seq_s * seqs
    if chunk > 0.0:
        tensor_s += position_time_s(c, chunk) * positions
    return tensor_s
