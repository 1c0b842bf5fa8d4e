"""Which open breakers bar their replicas, and what all breakers together leave each replica.

Breakers of barring rules get the replicas at their place barred as long as no more than the rule's
share of any model's replicas is; those that do not fit wait until there is room. A breaker that
bars goes on until it closes.

Does not know: when a breaker opens (`breaker_kernel.py`).
"""

import numpy as np

from ...env.compiled import compiled
from .breaker_kernel import CLOSED, HALF_OPEN, OPEN

EFFECT_DTYPE = np.dtype(
    [
        ("is_barring", np.int64),
        ("mask", np.int64),  # `Mask` bits of a barred replica
        ("probes", np.float64),  # requests at a time, half open
        ("max_open_frac", np.float64),
        ("penalty", np.float64),
        ("outstanding_frac", np.float64),  # of the batch slots; infinity for all
    ]
)

# Half open, a degraded replica is under half the penalty: a step back towards full load.
_HALF = 0.5


@compiled
def _fits(replicas, num_barring, model, num_barred, most):
    """Bar replicas, unless more of a model would be barred than may be; return whether it was."""
    fits = True
    for r in replicas:
        num_barring[r] += 1
        num_barred[model[r]] += num_barring[r] == 1
    for r in replicas:
        fits &= num_barred[model[r]] <= most[model[r]]
    if not fits:
        _release(replicas, num_barring, model, num_barred)
    return fits


@compiled
def _release(replicas, num_barring, model, num_barred):
    for r in replicas:
        num_barring[r] -= 1
        num_barred[model[r]] -= num_barring[r] == 0


@compiled
def release_closed(phases, is_barring, places, counts):
    """Let go of what closed breakers bar.

    Shapes (N nodes, K rules, R replicas, M models): `phases`, `is_barring` uint8 [N, K], the
    latter changed; `places`: first [N + 1], replicas [pairs], model [R]; `counts`: breakers that
    bar each replica [R] and barred replicas of each model [M], changed.
    """
    first, replicas, model = places
    num_barring, num_barred = counts
    for i in range(phases.shape[0]):
        for k in range(phases.shape[1]):
            if is_barring[i, k] and phases[i, k] == CLOSED:
                is_barring[i, k] = 0
                _release(replicas[first[i] : first[i + 1]], num_barring, model, num_barred)


@compiled
def bar_open(effects, phases, is_barring, places, counts, sizes):
    """Bar the replicas of open breakers where there is room.

    Shapes: as `release_closed`; `effects` EFFECT_DTYPE [K], `sizes` [M], replicas of each model.
    """
    first, replicas, model = places
    num_barring, num_barred = counts
    for k in range(effects.size):
        if not effects[k].is_barring:
            continue
        # A share of 0.3 of 10 is 3, whatever its rounding says.
        most = np.floor(effects[k].max_open_frac * sizes + 1e-9)
        for i in range(phases.shape[0]):
            if phases[i, k] != OPEN or is_barring[i, k]:
                continue
            if _fits(replicas[first[i] : first[i + 1]], num_barring, model, num_barred, most):
                is_barring[i, k] = 1


@compiled
def fill_limits(effects, phases, is_barring, places, slots, limits):
    """Add what the breakers of a kind of node do to the limits of the replicas.

    Shapes: as `release_closed`; `slots` [R], most sequences in a batch; `limits`: masks uint16,
    max_outstanding and penalties [R], changed.
    """
    first, replicas, _ = places
    masks, max_outstanding, penalties = limits
    strength = np.zeros(slots.size)
    for k in range(effects.size):
        effect = effects[k]
        is_degrading = effect.penalty > 0.0 or effect.outstanding_frac < 1.0
        strength[:] = 0.0
        for i in range(phases.shape[0]):
            phase = phases[i, k]
            if phase != OPEN and phase != HALF_OPEN:
                continue
            for r in replicas[first[i] : first[i + 1]]:
                if is_degrading:
                    strength[r] = max(strength[r], 1.0 if phase == OPEN else _HALF)
                elif is_barring[i, k] and (phase == OPEN or effect.probes == 0.0):
                    masks[r] |= effect.mask
                elif is_barring[i, k]:
                    max_outstanding[r] = min(max_outstanding[r], effect.probes)
        if is_degrading:
            # A replica at several nodes of the rule is degraded once.
            for r in range(slots.size):
                penalties[r] += effect.penalty * strength[r]
                if strength[r] > 0.0 and effect.outstanding_frac < 1.0:
                    frac = 1.0 - strength[r] * (1.0 - effect.outstanding_frac)
                    max_outstanding[r] = min(max_outstanding[r], max(frac * slots[r], 1.0))
