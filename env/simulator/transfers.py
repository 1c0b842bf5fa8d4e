"""Bytes on the move over shared links: a fluid that the links share fairly (max-min).

A transfer waits for its path's latency, then flows at the rate that max-min fairness gives it: no
transfer could be faster without one that is no faster being slowed. Rates change when a transfer
begins or ends, or a link's bandwidth does; between such moments nothing is computed.

Does not know: what the bytes are for (`handoff.py`, `lifecycle.py`), or replicas' iterations.
Source: max-min fair sharing as in SimGrid's flow-level network model (Velho et al., "On the
validity of flow-level TCP network models for grid and cloud simulations", TOMACS 2013).
"""

import numpy as np

from ..compiled import compiled
from ..topology import fill_path, fill_storage_path
from .layout import NONE, WEIGHT_TRANSFER
from .memory import (
    fleet_of,
    links_of,
    ports_of,
    replicas_of,
    transfers_of,
    zone_links_of,
)


@compiled
def note_action(sim, at_s):
    """Make the loop stop at a moment for transfers and starts."""
    fleet_of(sim).next_action_s = min(fleet_of(sim).next_action_s, at_s)


@compiled
def can_add(sim):
    """Whether the table has a row left for KV; a row for each replica's weights is kept."""
    return fleet_of(sim).num_transfers < transfers_of(sim).size - replicas_of(sim).size


@compiled
def _add(sim, kind, index, source, target):
    fleet = fleet_of(sim)
    transfer = transfers_of(sim)[fleet.num_transfers]
    fleet.num_transfers += 1
    transfer.kind = kind
    transfer.request = index
    transfer.source = source
    transfer.target = target
    transfer.pages = 0
    transfer.begins_at_s = np.inf
    transfer.has_begun = 0
    transfer.left_bytes = 0.0
    transfer.updated_at_s = 0.0
    transfer.bytes_per_s = 0.0
    transfer.ends_at_s = np.inf
    return transfer


@compiled
def add_between(sim, kind, index, source, target):
    """Add a transfer between two replicas, to be started; return its record."""
    transfer = _add(sim, kind, index, source, target)
    transfer.num_links = fill_path(
        ports_of(sim), zone_links_of(sim), source, target, transfer.links, transfer.shares
    )
    return transfer


@compiled
def add_load(sim, r, weight_source):
    """Add a transfer of a replica's weights, to be started; return its record."""
    transfer = _add(sim, WEIGHT_TRANSFER, NONE, r, r)
    transfer.num_links = fill_storage_path(
        ports_of(sim), r, weight_source, transfer.links, transfer.shares
    )
    return transfer


@compiled
def start(sim, transfer, size_bytes, now_s):
    """Let a transfer of some bytes begin after the latency of its path."""
    latency_s = 0.0
    for k in range(transfer.num_links):
        latency_s += links_of(sim)[transfer.links[k]].latency_s
    transfer.left_bytes = size_bytes
    transfer.begins_at_s = now_s + latency_s
    note_action(sim, transfer.begins_at_s)


@compiled
def remove(sim, t):
    """Take a transfer off the table; the last one moves to its row. Rates stay to be refreshed."""
    fleet, table = fleet_of(sim), transfers_of(sim)
    fleet.num_transfers -= 1
    table[t] = table[fleet.num_transfers]


@compiled
def begin(transfer, now_s):
    """Let a transfer's bytes flow, at a rate to be refreshed."""
    transfer.has_begun = 1
    transfer.updated_at_s = now_s
    transfer.bytes_per_s = 0.0


@compiled
def _reset_loads(sim):
    """Load every link with what crosses it; return how many transfers have begun."""
    links, table, count = links_of(sim), transfers_of(sim), 0
    for t in range(fleet_of(sim).num_transfers):
        for k in range(table[t].num_links):
            link = links[table[t].links[k]]
            link.left_bytes_per_s = link.bytes_per_s * link.factor
            link.load = 0.0
    for t in range(fleet_of(sim).num_transfers):
        table[t].is_fixed = 1 - table[t].has_begun
        table[t].fair_bytes_per_s = np.inf if table[t].num_links == 0 else 0.0
        if table[t].has_begun != 0:
            count += 1
            for k in range(table[t].num_links):
                links[table[t].links[k]].load += table[t].shares[k]
    return count


@compiled
def _find_bottleneck(sim):
    """Return the link that gives its transfers least, or `NONE`, and that rate."""
    links, table = links_of(sim), transfers_of(sim)
    bottleneck, lowest = NONE, np.inf
    for t in range(fleet_of(sim).num_transfers):
        if table[t].is_fixed == 0:
            for k in range(table[t].num_links):
                link = links[table[t].links[k]]
                fill = max(0.0, link.left_bytes_per_s) / link.load
                if fill < lowest:
                    bottleneck, lowest = table[t].links[k], fill
    return bottleneck, lowest


@compiled
def _crosses(transfer, link):
    count = 0
    for k in range(transfer.num_links):
        count += transfer.links[k] == link
    return count > 0


@compiled
def _fill_fair_rates(sim):
    """Give every transfer its max-min fair rate: fill until a link is full, again and again."""
    links, table = links_of(sim), transfers_of(sim)
    num_left = _reset_loads(sim)
    while num_left > 0:
        bottleneck, rate = _find_bottleneck(sim)
        if bottleneck == NONE:
            return
        for t in range(fleet_of(sim).num_transfers):
            if table[t].is_fixed == 0 and _crosses(table[t], bottleneck):
                table[t].is_fixed = 1
                table[t].fair_bytes_per_s = rate
                num_left -= 1
                for k in range(table[t].num_links):
                    link = links[table[t].links[k]]
                    link.left_bytes_per_s -= table[t].shares[k] * rate
                    link.load -= table[t].shares[k]


@compiled
def refresh_rates(sim, now_s):
    """Share the links anew among the transfers that have begun."""
    _fill_fair_rates(sim)
    table = transfers_of(sim)
    for t in range(fleet_of(sim).num_transfers):
        transfer = table[t]
        if transfer.has_begun == 0 or transfer.fair_bytes_per_s == transfer.bytes_per_s:
            continue
        transfer.left_bytes -= transfer.bytes_per_s * (now_s - transfer.updated_at_s)
        transfer.updated_at_s = now_s
        transfer.bytes_per_s = transfer.fair_bytes_per_s
        left_s = np.inf
        if transfer.bytes_per_s > 0.0:
            left_s = max(0.0, transfer.left_bytes) / transfer.bytes_per_s
        transfer.ends_at_s = now_s + left_s
        note_action(sim, transfer.ends_at_s)


@compiled
def set_link(sim, link, factor, now_s):
    """Change a link's bandwidth to a share of what it is when whole."""
    links_of(sim)[link].factor = factor
    refresh_rates(sim, now_s)


@compiled
def soonest_s(sim):
    """Return when the next transfer begins or ends."""
    soonest = np.inf
    table = transfers_of(sim)
    for t in range(fleet_of(sim).num_transfers):
        at_s = table[t].ends_at_s if table[t].has_begun != 0 else table[t].begins_at_s
        soonest = min(soonest, at_s)
    return soonest
