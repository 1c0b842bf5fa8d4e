"""Fills the arrays with what a cluster is beyond its engines: links, roles, life cycle, shares.

Does not know: workloads, gateways or faults (`setup.py`).
"""

import numpy as np

from ..cluster import ClusterSpec, InitialState, ReplicaSpec, Role, Sharing, kv_kind
from ..topology import topology_of
from .layout import (
    ASLEEP,
    LATENCY_DTYPE,
    NONE,
    READY,
    ROLE_BOTH,
    ROLE_DECODE,
    ROLE_PREFILL,
    STOPPED,
    TRANSFER_DTYPE,
)
from .start_up import StartUpConfig

# Transfers of KV at a time, per replica of the fleet; more wait for their turn with room and
# pages untouched. Fleets that only migrate need few.
HANDOFF_ROWS = 16
MIGRATION_ROWS = 2

_ROLES = {Role.BOTH: ROLE_BOTH, Role.PREFILL: ROLE_PREFILL, Role.DECODE: ROLE_DECODE}
_STATES = {InitialState.READY: READY, InitialState.STOPPED: STOPPED, InitialState.ASLEEP: ASLEEP}
# Parts of an iteration's time that do not shrink with a share of a GPU: the engine's own.
_ENGINE_FIELDS = ("step_s", "request_s", "prefill_step_s", "decode_step_s")


def share_coefficients(table: np.ndarray, compute_frac: float) -> None:
    """Slow latency coefficients down to a share of a GPU's compute and bandwidth, in place."""
    for name in LATENCY_DTYPE.names or ():
        if name.endswith("_s") and name not in _ENGINE_FIELDS:
            table[name] /= compute_frac


def cap_w(cluster: ClusterSpec, replica: ReplicaSpec, watts: float | None) -> float:
    """Return the cap on a replica, hosts included, when each of its GPUs is capped so."""
    if watts is None:
        return float("inf")
    gpu = cluster.gpu_of(replica)
    idle_w, capped_w = (replica.num_gpus * (gpu_w + gpu.host_w) for gpu_w in (gpu.idle_w, watts))
    return idle_w * replica.gpu_frac + (capped_w - idle_w) * replica.compute_frac


def _share_power(record: np.ndarray, replica: ReplicaSpec) -> None:
    """Scale power to the replica's share; by turns, a busy replica has the whole GPU."""
    idle_w = record["idle_w"] * replica.gpu_frac
    busy_frac = replica.compute_frac
    for name in ("decode_w", "prefill_w"):
        record[name] = idle_w + (record[name] - record["idle_w"]) * busy_frac
    record["decode_range_w"] *= busy_frac
    record["idle_w"] = idle_w


def _fill_replica(record: np.ndarray, cluster: ClusterSpec, replica: ReplicaSpec) -> None:
    model, precision = cluster.model_of(replica), replica.precision
    _share_power(record, replica)
    record["role"] = _ROLES[replica.role]
    record["kv_token_bytes"] = model.kv_bytes_per_token(precision.attention_precision)
    record["weight_bytes"] = model.weight_bytes(precision)
    record["engine_init_s"] = replica.engine_init_s
    record["state"] = _STATES[replica.initial_state]
    record["is_up"] = replica.initial_state is InitialState.READY
    record["is_time_sliced"] = replica.sharing is Sharing.TIME_SLICED
    record["change_at_s"] = record["timer_s"] = np.inf
    for name in ("outer_factor", "warm_factor", "share_factor", "next_share_factor"):
        record[name] = 1.0
    for name in ("inbound_head", "inbound_tail", "landed_head", "landed_tail"):
        record[name] = NONE
    record["powered_w"] = record["idle_w"]
    record["alone_decode_w"] = record["decode_w"]
    record["alone_prefill_w"] = record["prefill_w"]
    if replica.initial_state is InitialState.STOPPED:
        record["idle_w"] = 0.0


def fill_replicas(replicas: np.ndarray, cluster: ClusterSpec) -> None:
    """Fill roles, life cycle and shares of replicas whose limits and power are there."""
    kinds = list(dict.fromkeys(kv_kind(replica) for replica in cluster.replicas))
    for i, replica in enumerate(cluster.replicas):
        _fill_replica(replicas[i : i + 1], cluster, replica)
        replicas["kv_kind"][i] = kinds.index(kv_kind(replica))


def fill_fleet(
    fleet: np.ndarray, replicas: np.ndarray, config: StartUpConfig, kv_overlap_frac: float
) -> None:
    """Fill the fleet's counters of moves and starts, and its settings for them."""
    fleet["num_watched"] = int((replicas["role"] == ROLE_PREFILL).any())
    fleet["next_action_s"] = np.inf
    fleet["departed_head"] = fleet["departed_tail"] = NONE
    fleet["kv_overlap_frac"] = kv_overlap_frac
    fleet["node_start_s"] = config.node_start_s
    fleet["weight_source"] = config.weight_source.code
    fleet["wake_init_s"] = config.wake_init_s
    fleet["is_restart_cold"] = config.is_restart_cold
    fleet["slow_start_factor"] = config.slow_start_factor
    fleet["slow_start_span_s"] = config.slow_start_span_s
    fleet["has_time_slices"] = replicas["is_time_sliced"].any()


def link_arrays(cluster: ClusterSpec, replicas: np.ndarray) -> dict[str, np.ndarray]:
    """Return links, ports, zone links and an empty table of transfers, by their names."""
    topology = topology_of(cluster)
    has_handoffs = (replicas["role"] == ROLE_PREFILL).any()
    rows = 1 + (HANDOFF_ROWS if has_handoffs else MIGRATION_ROWS)
    return {
        "links": topology.link_table(),
        "ports": topology.ports,
        "zone_links": topology.zone_links,
        "transfers": np.zeros(rows * replicas.size, dtype=TRANSFER_DTYPE),
    }
