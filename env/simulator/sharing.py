"""Replicas that take turns on the same GPUs slow each other down.

At every scrape a time-sliced replica's iterations become slower by the share of time that the
others on its GPUs were busy since the scrape before: with one that is always busy, it gets half.

Does not know: fixed shares, which are in the latency coefficients and the KV pages.
Source: time-slicing of CUDA contexts, equal slices among those that have work.
"""

from ..compiled import compiled
from .due import wake
from .memory import fleet_of, ports_of, replicas_of


@compiled
def _busy_frac(replica, span_s):
    return min(1.0, (replica.busy_s - replica.ticked_busy_s) / span_s)


@compiled
def tick(sim, now_s):
    """Set the slow-down of every time-sliced replica from what the others did of late."""
    replicas, ports, fleet = replicas_of(sim), ports_of(sim), fleet_of(sim)
    span_s = now_s - fleet.ticked_at_s
    fleet.ticked_at_s = now_s
    if span_s <= 0.0:
        return
    for r in range(replicas.size):
        if replicas[r].is_time_sliced == 0 or replicas[r].is_up == 0:
            continue
        factor = 1.0
        for other in range(replicas.size):
            if (
                other != r
                and ports[other].server == ports[r].server
                and (ports[other].gpu_mask & ports[r].gpu_mask) != 0
                and replicas[other].is_time_sliced != 0
            ):
                factor += _busy_frac(replicas[other], span_s)
        if factor != replicas[r].share_factor:
            replicas[r].next_share_factor = factor
            replicas[r].change_at_s = min(replicas[r].change_at_s, now_s)
            wake(sim, r, now_s)
    for r in range(replicas.size):
        # Iterations end in the tick after the one that they fill: what is over is carried on.
        replicas[r].ticked_busy_s += span_s * _busy_frac(replicas[r], span_s)
