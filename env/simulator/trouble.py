"""What events from outside do to a replica or to its metrics page, crashes and restarts apart.

Does not know: why or when they come (`faults/`).
"""

import numpy as np

from ..compiled import compiled
from . import gateway
from .calls import advance
from .due import set_next_event, wake
from .layout import (
    CARBON,
    DIE,
    KV_LOSS,
    NOTICE,
    PAGE_FROZEN,
    PAGE_LOST,
    POWER_CAP,
    PRICE,
    QUEUE_LIE,
    STALL,
)
from .memory import fleet_of, replicas_of
from .power import stand_by
from .tariff import change_tariff


@compiled
def _die(sim, r, is_off):
    """Stop a replica; its requests stay on it, and its page looks healthy, until its crash."""
    replica = replicas_of(sim)[r]
    replica.is_up = 0
    replica.is_unnoticed = 1
    replica.plan_iterations = 0
    set_next_event(sim, r, np.inf)
    if is_off:
        replica.idle_w = 0.0


@compiled
def _stall(sim, r, span_s):
    """Put off the iteration under way, or the next one; nothing shows it but time."""
    stand_by(sim, r, span_s)
    replicas_of(sim)[r].clock_s += span_s


@compiled
def take_trouble(sim, event):
    """Let an event happen; kinds that are not for replicas are left to others."""
    kind, r, value = event.kind, event.target, event.value
    if kind in (PRICE, CARBON):
        change_tariff(sim, r, value, event.at_s, kind == PRICE)
    elif kind == NOTICE:
        gateway.dismiss_replica(sim, r)
    elif kind == PAGE_LOST:
        replicas_of(sim)[r].is_page_lost = int(value)
    elif kind == PAGE_FROZEN:
        replicas_of(sim)[r].is_page_frozen = int(value)
    elif kind == QUEUE_LIE:
        replicas_of(sim)[r].queue_factor = value
    elif kind in (DIE, STALL, KV_LOSS, POWER_CAP):
        replica = replicas_of(sim)[r]
        advance(sim, r, event.at_s, True)
        wake(sim, r, event.at_s)
        if kind == KV_LOSS:
            replica.lost_pages = int(value * replica.total_pages)
        elif kind == POWER_CAP:
            replica.power_cap_w = value
        elif replica.is_up != 0:
            if kind == DIE:
                _die(sim, r, value != 0.0)
            else:
                _stall(sim, r, value)


@compiled
def set_power_cap(handle, r, cap_w):
    """Cap the power of a replica, hosts included, from the iteration under way on."""
    sim = handle[0]
    replicas_of(sim)[r].power_cap_w = cap_w
    wake(sim, r, fleet_of(sim).now_s)
