"""The compiled pass of the change detector; `change_points.py` says what it does and why.

Does not know: thresholds' reasons, or what a signal is.
"""

import math

from ...env.compiled import compiled

SEEN, SINCE, MEAN, SPREAD, PRODUCT, LAST, UP, DOWN = range(8)
"""Columns of a signal's state: samples in all and since its last change, running mean, running
mean absolute deviation, running product of neighbours in units of variance, last residual,
evidence for a step up and for one down, in nats."""
NUM_COLUMNS = 8

# Of a Gaussian, the standard deviation over the mean absolute deviation: sqrt(pi / 2).
_SIGMA_PER_SPREAD = 1.2533141
# Residuals beyond so many sigmas are taken for so many where mean and spread learn from them.
_LARGEST_RESIDUAL = 3.0


@compiled
def detect(values, is_new, owner, state, settings, floor, found, before):
    """Take one sample of every signal; write those that changed, return how many did.

    `values` [signals], NaN absent; `is_new` [owners], whether an owner has a new sample; `owner`
    [signals]; `state` [signals, NUM_COLUMNS]; `found`, `before` [room]: indices of the signals that
    changed, and their means before. Changes beyond the room are counted, not written.
    """
    step, threshold, most_a_sample, memory, noise_memory, warm_up, settling, most_rho = settings
    half = 0.5
    num_found = 0
    rho, surprise, is_evident = 0.0, 0.0, False
    for i in range(values.shape[0]):
        x = values[i]
        if math.isnan(x) or not is_new[owner[i]] or math.isinf(floor[i]):
            continue
        seen, since = state[i, SEEN], state[i, SINCE]
        if since == 0.0:
            state[i, SEEN], state[i, SINCE], state[i, MEAN] = seen + 1.0, 1.0, x
            continue
        residual = x - state[i, MEAN]
        sigma = max(state[i, SPREAD] * _SIGMA_PER_SPREAD, floor[i])
        z = residual / sigma
        if since < memory:
            z /= math.sqrt(1.0 + 1.0 / since)
        last = state[i, LAST]
        is_warm = seen >= warm_up
        if is_warm and since >= settling:
            rho = min(max(state[i, PRODUCT], 0.0), most_rho)
            surprise = z - rho * last
            is_evident = abs(surprise) > half * step * (1.0 - rho)
        if (
            is_warm
            and since >= settling
            and (is_evident or state[i, UP] > 0.0 or state[i, DOWN] > 0.0)
        ):
            innovation = math.sqrt(1.0 - rho * rho)
            e = surprise / innovation
            first = step / innovation
            later = step * (1.0 - rho) / innovation
            up = max(
                state[i, UP] + min(later * (e - half * later), most_a_sample),
                min(first * (e - half * first), most_a_sample),
            )
            down = max(
                state[i, DOWN] + min(later * (-e - half * later), most_a_sample),
                min(first * (-e - half * first), most_a_sample),
            )
            state[i, UP], state[i, DOWN] = max(up, 0.0), max(down, 0.0)
            if up >= threshold or down >= threshold:
                if num_found < found.shape[0]:
                    found[num_found], before[num_found] = i, state[i, MEAN]
                num_found += 1
                # spread and correlation stay known; the mean starts anew
                state[i, SINCE], state[i, MEAN] = 1.0, x
                state[i, LAST] = state[i, UP] = state[i, DOWN] = 0.0
                continue
        near = min(max(z, -_LARGEST_RESIDUAL), _LARGEST_RESIDUAL)
        deviation = residual
        if is_warm and since >= settling:
            deviation = near * sigma
        state[i, MEAN] += max(1.0 / (since + 1.0), 1.0 / memory) * deviation
        if is_warm:
            deviation = near * sigma
        gain = max(1.0 / seen, 1.0 / noise_memory)
        state[i, SPREAD] += gain * (abs(deviation) - state[i, SPREAD])
        product = near * min(max(last, -_LARGEST_RESIDUAL), _LARGEST_RESIDUAL)
        state[i, PRODUCT] += gain * (product - state[i, PRODUCT])
        state[i, LAST] = z
        state[i, SEEN], state[i, SINCE] = seen + 1.0, since + 1.0
    return num_found
