"""Shadow choices: what other knobs would choose, and what is expected to come of it.

A shadow choice is made on the very view, request and cached tokens of the one that rules, and never
carried out. The outcome of either is then foretold by one judge, the kernel's own prediction with
all factors at 1, so no setting is judged by its own belief. As it is foretold from the present
view, it says nothing of what a choice does to requests to come. The simulator and the live gateway
call this very code.

Does not know: where the view comes from, or what follows from an estimate.
"""

import numpy as np

from .compiled import compiled, inlined
from .dispatch import (
    choose_replica,
    decode_iteration_s,
    is_shed,
    predicted_ttft_s,
    refresh_slow_factor,
)
from .knobs import Knobs

JUDGE_KNOBS = Knobs.of(
    backlog=1.0, elapsed=1.0, iteration=1.0, ttft_drift=0.01, iteration_drift=1.0
)
"""By whose prediction outcomes are foretold. The measured iteration time counts in full; the
observed TTFT does not, as it is relative to what the ruling knobs predicted."""

# Prompt tokens of an iteration that carries some: vLLM's budget before it grew with the GPU
# (vllm 0.4 to 0.7, `max_num_batched_tokens` with chunked prefill), and the simulator's default.
CHUNK_TOKENS = 512.0


@compiled
def is_expected_to_meet(view, nominal, query, hit_tokens, judge, now_s, replica):
    """Whether a request is expected to meet both of its limits on a replica.

    Shapes: `view`, `nominal`, `hit_tokens` [R]; `query`, `judge` are records.
    """
    v, coefficients = view[replica], nominal[replica]
    factor = np.exp(
        judge.ttft_drift * v.ttft_log_ratio + judge.iteration_drift * v.iteration_log_ratio
    )
    uncached_tokens = query.input_tokens - hit_tokens[replica]
    # The prediction has the factor of the knobs that rule; the judge has its own.
    ttft_s = predicted_ttft_s(v, coefficients, judge, uncached_tokens, now_s) / v.slow_factor
    batch_tokens = query.input_tokens + 0.5 * query.expected_output_tokens
    step_s = decode_iteration_s(v, coefficients, 1.0, batch_tokens)
    chunk_s = CHUNK_TOKENS * v.prefill_token_s
    # Iterations that carry a chunk take longer, but they give every sequence its token too.
    tpot_s = step_s / (1.0 - v.prefill_frac * chunk_s / (step_s + chunk_s))
    return factor * ttft_s <= query.ttft_slo_s and factor * tpot_s <= query.tpot_slo_s


@compiled
def borrow_factors(view, knobs, factors):
    """Set the slow factors of other knobs; those that were there are kept in `factors` [R]."""
    for r in range(view.size):
        factors[r] = view[r].slow_factor
        refresh_slow_factor(view, knobs, r)


@compiled
def give_back_factors(view, factors):
    """Set the slow factors that were kept."""
    for r in range(view.size):
        view[r].slow_factor = factors[r]


@compiled
def shadow_choice(
    view, nominal, query, hit_tokens, knobs, bias, now_s, cursor, random_state, most_limits, scratch
):
    """Return (whether the request would be placed and not shed, where) under other knobs.

    Arguments are those of `choose_replica` and `is_shed`. The view is as it was when this returns.
    `scratch` is terms [NUM_TERMS] and factors [R].
    """
    terms, factors = scratch
    borrow_factors(view, knobs, factors)
    is_placed, replica = choose_replica(
        view, nominal, query, hit_tokens, knobs, bias, now_s, cursor, random_state, terms
    )
    if is_placed:
        is_placed = not is_shed(
            view, nominal, query, hit_tokens, knobs, now_s, replica, most_limits
        )
    give_back_factors(view, factors)
    return is_placed, replica


@inlined
def add_difference(sums, weight, difference):
    """Add one request's difference, shadow minus ruling, to a record of sums."""
    sums.num_sampled += 1
    sums.weight += weight
    sums.weight_2 += weight * weight
    sums.difference += weight * difference
    sums.difference_2 += weight * weight * difference
    sums.squared_2 += weight * weight * difference * difference
