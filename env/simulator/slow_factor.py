"""How much slower a replica's iterations are for now: trouble, a recent start, shared GPUs.

The factors change at the start of an iteration and are constant in between.

Does not know: what sets them (`lifecycle.py`, `sharing.py`, `faults.py`).
"""

from ..compiled import compiled
from .memory import fleet_of, replicas_of

# Steps in which the slow-down after a start fades.
NUM_WARM_STEPS = 8


@compiled
def _fade(sim, r):
    """Take the steps of a slow start that are due; note the next one."""
    replica, fleet = replicas_of(sim)[r], fleet_of(sim)
    step_s = fleet.slow_start_span_s / NUM_WARM_STEPS
    while (
        replica.num_warm_steps < NUM_WARM_STEPS
        and replica.warm_from_s + (replica.num_warm_steps + 1) * step_s <= replica.clock_s
    ):
        replica.num_warm_steps += 1
    left_frac = 1.0 - replica.num_warm_steps / NUM_WARM_STEPS
    replica.warm_factor = 1.0 + (fleet.slow_start_factor - 1.0) * left_frac
    if replica.num_warm_steps < NUM_WARM_STEPS:
        next_s = replica.warm_from_s + (replica.num_warm_steps + 1) * step_s
        replica.change_at_s = min(replica.change_at_s, next_s)


@compiled
def _share(replica):
    """Take over the slow-down from shared GPUs, and with it the share of their power."""
    factor = replica.next_share_factor
    replica.share_factor = factor
    replica.decode_w = replica.idle_w + (replica.alone_decode_w - replica.idle_w) / factor
    replica.prefill_w = replica.idle_w + (replica.alone_prefill_w - replica.idle_w) / factor


@compiled
def settle_slow_factor(sim, r):
    """Bring a replica's factor up to the start of its next iteration."""
    replica = replicas_of(sim)[r]
    if replica.warm_factor != 1.0:
        _fade(sim, r)
    if replica.next_share_factor != replica.share_factor:
        _share(replica)
    replica.slow_factor = replica.outer_factor * replica.warm_factor * replica.share_factor
