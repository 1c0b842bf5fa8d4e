"""Features of servers and zones: means and sums over what stands there.

Does not know: networks and disks (`traffic.py`).
"""

import numpy as np

from ...compiled import compiled
from ...state.feature import Node
from ...state.registry import column
from ..memory import hosts_of, replicas_of

_GPU_ACTIVITY = column(Node.GPU, "sm_activity_frac")
_GPU_POWER = column(Node.GPU, "power_frac")
_IS_AVAILABLE = column(Node.REPLICA, "is_available")
_OUTSTANDING = column(Node.REPLICA, "outstanding_requests")

_SERVER_ACTIVITY = column(Node.SERVER, "sm_activity_frac")
_SERVER_POWER = column(Node.SERVER, "power_frac")
_SERVER_AVAILABLE = column(Node.SERVER, "available_frac")
_SERVER_OUTSTANDING = column(Node.SERVER, "outstanding_requests")
_HOST_KV = column(Node.SERVER, "host_kv_frac")

_ZONE_ACTIVITY = column(Node.ZONE, "sm_activity_frac")
_ZONE_POWER = column(Node.ZONE, "power_frac")
_ZONE_AVAILABLE = column(Node.ZONE, "available_frac")
_ZONE_OUTSTANDING = column(Node.ZONE, "outstanding_requests")
_PRICE = column(Node.ZONE, "usd_per_kwh")
_CARBON = column(Node.ZONE, "carbon_g_per_kwh")

JOULES_PER_KWH = 3.6e6

# Sums over a place.
_GPUS, _ACTIVE, _POWERED, _POWER, _REPLICAS, _AVAILABLE, _OPEN, _NUM_SUMS = range(8)


@compiled
def _sum_places(facts, gpus, servers, gpu_rows, rows):
    """Return the sums of all servers and of all zones, [places, _NUM_SUMS]."""
    num_zones = 1
    for s in range(servers.size):
        num_zones = max(num_zones, servers[s].zone + 1)
    of_servers, of_zones = np.zeros((servers.size, _NUM_SUMS)), np.zeros((num_zones, _NUM_SUMS))
    for g in range(gpus.size):
        for sums in (of_servers[gpus[g].server], of_zones[servers[gpus[g].server].zone]):
            sums[_GPUS] += 1.0
            sums[_ACTIVE] += gpu_rows[g, _GPU_ACTIVITY]
            if np.isfinite(gpu_rows[g, _GPU_POWER]):
                sums[_POWERED] += 1.0
                sums[_POWER] += gpu_rows[g, _GPU_POWER]
    for r in range(facts.size):
        for sums in (of_servers[facts[r].server], of_zones[facts[r].zone]):
            sums[_REPLICAS] += 1.0
            sums[_AVAILABLE] += rows[r, _IS_AVAILABLE]
            sums[_OPEN] += rows[r, _OUTSTANDING]
    return of_servers, of_zones


@compiled
def fill_places(facts, gpus, servers, states):
    """Fill servers and zones. A mean over nothing is absent.

    Shapes: `facts` FACTS_DTYPE [R]; `gpus` GPU_DTYPE [G]; `servers` SERVER_DTYPE [S]; `states`
    the features of replicas, GPUs, servers and zones, the last two written.
    """
    rows, gpu_rows, server_rows, zone_rows = states
    of_servers, of_zones = _sum_places(facts, gpus, servers, gpu_rows, rows)
    for s in range(servers.size):
        sums, row = of_servers[s], server_rows[s]
        row[_SERVER_OUTSTANDING] = sums[_OPEN]
        row[_SERVER_POWER] = sums[_POWER] / sums[_POWERED] if sums[_POWERED] > 0.0 else np.nan
        if sums[_GPUS] > 0.0:
            row[_SERVER_ACTIVITY] = sums[_ACTIVE] / sums[_GPUS]
        if sums[_REPLICAS] > 0.0:
            row[_SERVER_AVAILABLE] = sums[_AVAILABLE] / sums[_REPLICAS]
    for z in range(zone_rows.shape[0]):
        sums, row = of_zones[z], zone_rows[z]
        row[_ZONE_OUTSTANDING] = sums[_OPEN]
        if sums[_POWERED] > 0.0:
            row[_ZONE_POWER] = sums[_POWER] / sums[_POWERED]
        if sums[_GPUS] > 0.0:
            row[_ZONE_ACTIVITY] = sums[_ACTIVE] / sums[_GPUS]
        if sums[_REPLICAS] > 0.0:
            row[_ZONE_AVAILABLE] = sums[_AVAILABLE] / sums[_REPLICAS]


@compiled
def fill_host_memory(handle, facts, server_rows, zone_rows):
    """Fill the host memory for KV in use, and the tariffs of zones that have replicas.

    Shapes: `facts` FACTS_DTYPE [R]; the rest [places, features], written.
    """
    sim = handle[0]
    pages = np.zeros((server_rows.shape[0], 2))
    for r in range(facts.size):
        host, replica = hosts_of(sim)[r], replicas_of(sim)[r]
        if host.total_pages > 0:
            pages[facts[r].server, 0] += host.total_pages - host.free_pages
            pages[facts[r].server, 1] += host.total_pages
        zone_rows[facts[r].zone, _PRICE] = replica.usd_per_j * JOULES_PER_KWH
        zone_rows[facts[r].zone, _CARBON] = replica.g_per_j * JOULES_PER_KWH
    for s in range(server_rows.shape[0]):
        if pages[s, 1] > 0.0:
            server_rows[s, _HOST_KV] = pages[s, 0] / pages[s, 1]
