"""The compiled pass of the change detector; `change_points.py` says what it does and why.

Does not know: thresholds' reasons, or what a signal is.
"""

import math

from ...env.compiled import compiled, inlined

SEEN, SINCE, MEAN, SPREAD, SQUARE, PRODUCT, LAST, UP, DOWN, LARGE, JUMP, VOTES = range(12)
"""Columns of a signal's state: samples in all and since its last change, running mean, running
mean absolute deviation, running square and product of neighbours in units of variance, last
residual, evidence for a step up and for one down, in nats; running share of large innovations;
samples since a jump, it included, with its sign, 0 if none is watched; how many were far out."""
NUM_COLUMNS = 12

# Of a Gaussian, the standard deviation over the mean absolute deviation: sqrt(pi / 2).
_SIGMA_PER_SPREAD = 1.2533141
# Residuals beyond so many sigmas are taken for so many where mean and spread learn from them.
_LARGEST_RESIDUAL = 3.0
# Running square below which a signal's noise is too small to have a correlation.
_LEAST_SQUARE = 0.5
# Innovations beyond so many sigmas are large.
_LARGE = 3.5
# Samples over which a jump is confirmed, and how many must be far out: their median is.
_JUMP_SAMPLES = 3
_JUMP_VOTES = 2


@compiled
def detect(values, is_new, owner, state, settings, floor, found, before):
    """Take one sample of every signal; write those that changed, return how many did.

    `values` [signals], NaN absent; `is_new` [owners], whether an owner has a new sample; `owner`
    [signals]; `state` [signals, NUM_COLUMNS]; `found`, `before` [room]: indices of the signals that
    changed, and their means before. Changes beyond the room are counted, not written.
    """
    evidence, learning, jumps = settings
    memory, noise_memory, warm_up, settling = learning
    step, _, _, most_rho = evidence
    num_found = 0
    for i in range(values.shape[0]):
        x = values[i]
        if math.isnan(x) or not is_new[owner[i]] or math.isinf(floor[i]):
            continue
        since = state[i, SINCE]
        if since == 0.0:
            state[i, SEEN], state[i, SINCE], state[i, MEAN] = state[i, SEEN] + 1.0, 1.0, x
            continue
        residual = x - state[i, MEAN]
        sigma = max(state[i, SPREAD] * _SIGMA_PER_SPREAD, floor[i])
        z = residual / sigma
        if since < memory:
            z /= math.sqrt(1.0 + 1.0 / since)
        is_warm = state[i, SEEN] >= warm_up
        is_watched, is_large = is_warm and since >= settling, 0.0
        if is_watched:
            # product and square are of the same samples: what is wrong in both cancels out
            square = max(state[i, SQUARE], _LEAST_SQUARE)
            rho = min(max(state[i, PRODUCT] / square, 0.0), most_rho)
            surprise = z - rho * state[i, LAST]
            is_evident = abs(surprise) > 0.5 * step * (1.0 - rho)
            if is_evident or state[i, UP] > 0.0 or state[i, DOWN] > 0.0 or state[i, JUMP] != 0.0:
                per_sigma = 1.0 / math.sqrt((1.0 - rho * rho) * max(square, 1.0))
                e = surprise * per_sigma
                is_large = 1.0 if abs(e) > _LARGE else 0.0
                has_stepped = _adds_up(state, i, e, (rho, per_sigma), evidence)
                if _has_jumped(state, i, z, e, rho, step, jumps) or has_stepped:
                    if num_found < found.shape[0]:
                        found[num_found], before[num_found] = i, state[i, MEAN]
                    num_found += 1
                    _begin_anew(state, i, x)
                    continue
        near = min(max(z, -_LARGEST_RESIDUAL), _LARGEST_RESIDUAL)
        _learn_mean(state, i, near * sigma if is_watched else residual, memory)
        _learn_noise(state, i, near, near * sigma if is_warm else residual, is_large, noise_memory)
        state[i, LAST] = z
        state[i, SEEN], state[i, SINCE] = state[i, SEEN] + 1.0, since + 1.0
    return num_found


@inlined
def _adds_up(state, i, e, noise, evidence):
    """Add an innovation to the evidence; return whether there is enough for a step."""
    step, threshold, most_a_sample, _ = evidence
    rho, per_sigma = noise
    first = step * per_sigma
    later = first * (1.0 - rho)
    up = max(
        state[i, UP] + min(later * (e - 0.5 * later), most_a_sample),
        min(first * (e - 0.5 * first), most_a_sample),
    )
    down = max(
        state[i, DOWN] + min(later * (-e - 0.5 * later), most_a_sample),
        min(first * (-e - 0.5 * first), most_a_sample),
    )
    state[i, UP], state[i, DOWN] = max(up, 0.0), max(down, 0.0)
    return up >= threshold or down >= threshold


@inlined
def _has_jumped(state, i, z, e, rho, step, jumps):
    """Watch a jump, this one or the last; return whether the samples from it on stay far out."""
    jump, least_rho, most_large, least_seen = jumps
    if state[i, JUMP] == 0.0:
        if (
            abs(e) <= jump
            or rho <= least_rho
            or state[i, LARGE] > most_large
            or state[i, SEEN] < least_seen
        ):
            return False
        state[i, VOTES] = 0.0
    side = 1.0 if state[i, JUMP] > 0.0 or (state[i, JUMP] == 0.0 and e > 0.0) else -1.0
    if side * e < -jump:  # it returned: an outlier
        state[i, JUMP] = 0.0
        return False
    state[i, JUMP] += side
    if side * z > 0.5 * step:
        state[i, VOTES] += 1.0
    if state[i, VOTES] >= _JUMP_VOTES:
        return True
    if abs(state[i, JUMP]) >= _JUMP_SAMPLES:
        state[i, JUMP] = 0.0
    return False


@inlined
def _begin_anew(state, i, x):
    """Begin with a new mean; spread and correlation stay known."""
    state[i, SINCE], state[i, MEAN] = 1.0, x
    state[i, LAST] = state[i, UP] = state[i, DOWN] = state[i, JUMP] = 0.0


@inlined
def _learn_mean(state, i, deviation, memory):
    state[i, MEAN] += deviation / min(state[i, SINCE] + 1.0, memory)


@inlined
def _learn_noise(state, i, near, deviation, is_large, noise_memory):
    """Learn spread, correlation and tails; `near` is the residual in sigmas, clipped."""
    gain = 1.0 / min(state[i, SEEN], noise_memory)
    state[i, SPREAD] += gain * (abs(deviation) - state[i, SPREAD])
    state[i, SQUARE] += gain * (near * near - state[i, SQUARE])
    last = min(max(state[i, LAST], -_LARGEST_RESIDUAL), _LARGEST_RESIDUAL)
    state[i, PRODUCT] += gain * (near * last - state[i, PRODUCT])
    state[i, LARGE] += gain * (is_large - state[i, LARGE])
