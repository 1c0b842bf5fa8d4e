"""What a placement is worth: the goodput that a replica gains or loses by it, on average.

Each candidate's replica is run to the end of what it has with the request and without, on the
same draws of all lengths. The request goes where the difference is largest, and nowhere if none is
above its price; the scorer's cost decides between those that are worth the same. The simulator and
the live gateway call this very code.

Does not know: how mirrors are kept.
Source: the project's headroom study, section 3b.
"""

import numpy as np

from ..compiled import compiled, inlined
from ..dispatch import can_take, request_limits, scorer_cost
from ..shed_reason import ShedReason
from .mirror import draw_lengths
from .rollout import rollout
from .situation import prepare

# What became of one candidate.
CHOICE_DTYPE = np.dtype(
    [
        ("replica", np.int64),
        ("cost", np.float64),  # by the analytic scorer
        ("worth", np.float64),  # weighted goodput that the replica gains, on average
        ("own", np.float64),  # the part of it that is the request's own
        ("price", np.float64),  # asked for the own prefill
    ]
)

WORTH_TERM_NAMES = ("own_goodput", "others_goodput", "price", "scorer")
"""What speaks against a candidate that is judged by its worth."""
_LATE, _EMERGENCY = int(ShedReason.LATE), int(ShedReason.EMERGENCY)


@compiled
def list_candidates(view, nominal, query, hit_tokens, knobs, bias, now_s, choices):
    """Fill `choices` with the replicas that the scorer finds cheapest; return how many.

    The cheapest comes first; ties go to the lowest index.

    Shapes: `view`, `nominal`, `hit_tokens`, `bias` [R]; `choices` CHOICE_DTYPE [candidates].
    """
    limits, count = request_limits(query), 0
    for r in range(view.size):
        if not can_take(view, query, bias, r):
            continue
        uncached_tokens = query.input_tokens - hit_tokens[r]
        cost = bias[r] + scorer_cost(
            view[r], nominal[r], query, limits, knobs, uncached_tokens, now_s
        )
        if count == choices.size and cost >= choices[count - 1].cost:
            continue
        place = min(count, choices.size - 1)
        while place > 0 and choices[place - 1].cost > cost:
            choices[place] = choices[place - 1]
            place -= 1
        choices[place].replica = r
        choices[place].cost = cost
        choices[place].worth = choices[place].own = choices[place].price = 0.0
        count = min(count + 1, choices.size)
    return count


@compiled
def worth(ahead, mirror, rows, counts, work, latency, now_s, limits):
    """Return (weighted goodput that a replica gains by the request behind its last row, its own).

    Shapes: `ahead` is a LOOKAHEAD_DTYPE record, `mirror` a MIRROR_DTYPE one; `rows` ROW_DTYPE
    [S]; `counts` float64 [priorities, NUM_LENGTH_BINS]; `work` is a RUN_DTYPE record, jobs [S]
    and lists; `latency` and `limits` as in `situation.prepare`.
    """
    run, jobs, lists = work
    if mirror.num_dropped > 0:
        return 0.0, 0.0  # more than the mirror can hold: nothing can be said for it
    has_drawn = False
    for i in range(mirror.num_rows):
        row = rows[i]
        if draw_lengths(row, counts[min(row.priority, 1)], ahead.seed, ahead.num_samples):
            has_drawn = True
    row = rows[mirror.num_rows]
    draw_lengths(row, counts[min(row.priority, 1)], ahead.seed, ahead.num_samples)
    if has_drawn:
        mirror.version += 1
    coefficients, linear_s, slow_factor = latency
    prepare(run, mirror, rows, jobs, lists, latency, now_s, limits)
    is_fresh = (
        mirror.without_version == mirror.version
        and mirror.without_factor == slow_factor
        and now_s - mirror.without_at_s < ahead.cache_s
    )
    run.is_whole = 0
    total, own = 0.0, 0.0
    for s in range(ahead.num_samples):
        if not is_fresh:
            mirror.without[s] = rollout(run, rows, jobs, lists, coefficients, linear_s, s, 0)
        total += rollout(run, rows, jobs, lists, coefficients, linear_s, s, 1)
        total -= mirror.without[s]
        own += run.own_goodput
    ahead.num_rollouts += ahead.num_samples if is_fresh else 2 * ahead.num_samples
    if is_fresh:
        ahead.num_cached += ahead.num_samples
    else:
        mirror.without_version = mirror.version
        mirror.without_at_s = now_s
        mirror.without_factor = slow_factor
    return total / ahead.num_samples, own / ahead.num_samples


@inlined
def price_of(knobs, query, v, uncached_tokens):
    """Return the worth asked for a placement; `v` is the replica's record of the view."""
    own_s = uncached_tokens * v.prefill_token_s * np.exp(v.iteration_log_ratio)
    per_limit = knobs.price_interactive if query.priority == 0 else knobs.price_batch
    return per_limit * own_s / query.ttft_slo_s


@inlined
def refusal_of(is_worth, predicted_s, query, knobs, most_limits):
    """Return the `ShedReason` for which the best candidate is not taken, 0 if it is.

    Beyond `most_limits` TTFT limits it is refused whatever it is worth; infinity for never.
    """
    if is_worth == 0 and knobs.shed_enabled != 0.0:
        return _LATE
    return _EMERGENCY if predicted_s > most_limits * query.ttft_slo_s else 0


@compiled
def best_choice(choices, cost_weight):
    """Return (the place of the best candidate, whether it is worth its price); first of equals.

    Shapes: `choices` CHOICE_DTYPE [candidates], at least one.
    """
    best, most = 0, -np.inf
    for i in range(choices.size):
        gain = choices[i].worth - choices[i].price - cost_weight * choices[i].cost
        if gain > most:
            best, most = i, gain
    return best, choices[best].worth > choices[best].price


def worth_terms(choices: np.ndarray, cost_weight: float) -> np.ndarray:
    """Return what speaks against candidates; goodput that is expected counts with a minus.

    Shapes: CHOICE_DTYPE [C] -> float64 [C, terms], in the order of `WORTH_TERM_NAMES`.
    """
    own, others = choices["own"], choices["worth"] - choices["own"]
    parts = (-own, -others, choices["price"], cost_weight * choices["cost"])
    return np.stack(parts, axis=-1)


__all__ = [
    "CHOICE_DTYPE",
    "WORTH_TERM_NAMES",
    "best_choice",
    "list_candidates",
    "price_of",
    "refusal_of",
    "worth",
    "worth_terms",
]
