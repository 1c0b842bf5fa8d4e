"""What a placement is worth by the value network, from a gateway's mirror and view of a replica.

The simulator and the live gateway call this very code.

Does not know: how mirrors are kept, or which candidates are judged.
"""

import numpy as np

from ..compiled import compiled
from .features import fill_features
from .network import evaluate


@compiled
def see_features(work, mirror, rows, residuals, replica, now_s, knobs):
    """Fill the network's features of a replica for the request behind its mirror's last row.

    Shapes: `work` is the network's scratch and a SUMS_DTYPE record; `replica` is its record of the
    view, its nominal coefficients, and their table of layer times; the rest as `fill_features`.
    """
    scratch, sums = work
    v, coefficients, linear_s = replica
    slow_factor = np.exp(v.iteration_log_ratio)
    latency = (coefficients, linear_s, slow_factor, v.prefill_stretch, v.kv_usage_frac)
    fill_features(scratch, mirror, rows, residuals, latency, now_s, knobs, sums)


@compiled
def judge(choice, weights, work, mirror, rows, residuals, replica, now_s, knobs):
    """Fill what a candidate is worth, and the part of it that is the request's own.

    Shapes: `choice` is a CHOICE_DTYPE record, `weights` float32 [NUM_WEIGHTS]; the rest as
    `see_features`.
    """
    see_features(work, mirror, rows, residuals, replica, now_s, knobs)
    own, others = evaluate(weights, work[0], knobs.value_loss, knobs.value_doubt)
    weight = rows[mirror.num_rows].weight
    choice.own = own * weight
    choice.worth = (own + others) * weight


__all__ = ["judge", "see_features"]
