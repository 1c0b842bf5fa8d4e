"""Emergency actions on a simulated fleet: what each does to its arrays, and how it is undone.

Does not know: when an action is called for (`agents/shield`).
"""

from typing import TYPE_CHECKING

import numpy as np

from .emergency import Emergency, EmergencyAction
from .simulator.emergencies import cap_batch_tokens
from .simulator.freeze import order_freeze
from .simulator.layout import DECODING, READY, ROLE_PREFILL

if TYPE_CHECKING:
    from .simulated_fleet import SimulatedFleet

# Fields of the fleet's record, and what they hold when the action is not in force.
_FLEET_FIELDS: dict[Emergency, tuple[str, float]] = {
    Emergency.SPILL_SHORT: ("spill_tokens", 0.0),
    Emergency.SHRINK_BEST_EFFORT: ("shrink_tokens", np.inf),
    Emergency.SHED: ("shed_limits", np.inf),
}


def can(fleet: "SimulatedFleet", kind: Emergency, replica: int | None) -> bool:
    """Whether the fleet, or a replica's engine, can do this at all."""
    if kind not in fleet.config.emergencies:
        return False
    if kind is Emergency.SPILL_SHORT:
        return any(spec.is_spill for spec in fleet.cluster.replicas)
    return True


def act(fleet: "SimulatedFleet", action: EmergencyAction) -> int:
    """Do it; return how many requests it touched, or replicas where no request is touched yet."""
    _check_replica(fleet, action.replica)
    if action.kind in _FLEET_FIELDS:
        name, _ = _FLEET_FIELDS[action.kind]
        fleet.arrays.fleet[name] = action.amount
        return len(fleet.cluster.replicas)
    replica = int(action.replica or 0)
    if action.kind is Emergency.CAP_BATCH_TOKENS:
        cap_batch_tokens(fleet.handle, replica, float(action.amount))
        return 1
    if action.kind is Emergency.FREEZE_KV_GROWTH:
        return _freeze(fleet, replica, float(action.amount))
    if action.kind is Emergency.MOVE_KV:
        return _move_kv(fleet, replica, int(action.amount))
    return 0


def undo(fleet: "SimulatedFleet", kind: Emergency, replica: int | None) -> None:
    """Take it back; what is not in force, or was done once and for all, stays as it is."""
    _check_replica(fleet, replica)
    if kind in _FLEET_FIELDS:
        name, value = _FLEET_FIELDS[kind]
        fleet.arrays.fleet[name] = value
    elif kind is Emergency.CAP_BATCH_TOKENS:
        cap_batch_tokens(fleet.handle, int(replica or 0), 1.0)
    elif kind is Emergency.FREEZE_KV_GROWTH:
        order_freeze(fleet.handle, int(replica or 0), np.inf)


def thaw(fleet: "SimulatedFleet") -> None:
    """Let all requests that stand still go on: a run that ends leaves none behind."""
    for replica in np.flatnonzero(fleet.arrays.replicas["is_freezing"]):
        order_freeze(fleet.handle, int(replica), np.inf)


def _check_replica(fleet: "SimulatedFleet", replica: int | None) -> None:
    num_replicas = len(fleet.cluster.replicas)
    if replica is not None and not 0 <= replica < num_replicas:
        msg = f"replica must be in [0, {num_replicas - 1}], got {replica}"
        raise ValueError(msg)


def _neighbours(fleet: "SimulatedFleet", replica: int) -> np.ndarray:
    """Return the replicas that may take KV over: same server first, then the emptiest."""
    replicas, specs = fleet.arrays.replicas, fleet.cluster.replicas
    usage = 1.0 - replicas["free_pages"] / replicas["total_pages"]
    views = fleet.arrays.views[: replicas.size]
    is_able = (replicas["state"] == READY) & (replicas["is_up"] != 0) & (views["mask"] == 0)
    is_able &= (replicas["kv_kind"] == replicas["kv_kind"][replica]) & (usage < usage[replica])
    is_able &= replicas["role"] != ROLE_PREFILL
    is_able[replica] = False
    is_far = np.array([spec.server != specs[replica].server for spec in specs])
    found = np.flatnonzero(is_able)
    return found[np.lexsort((usage[found], is_far[found]))]


def _decoding(fleet: "SimulatedFleet", replica: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a replica's decoding requests, and the tokens that each has in KV."""
    requests, iteration = fleet.requests, fleet.arrays.replicas["decode_iteration"][replica]
    rows = np.flatnonzero((requests["status"] == DECODING) & (requests["replica"] == replica))
    taken = iteration - requests["joined_iteration"][rows]
    return rows, requests["prefill_target_tokens"][rows] + taken


def _freeze(fleet: "SimulatedFleet", replica: int, most_tokens: float) -> int:
    """Let long batch requests stand still; return how many have that much context now.

    Others follow when they grow beyond it. A replica that does not serve cannot freeze.
    """
    if fleet.arrays.replicas["state"][replica] != READY:
        return 0
    rows, context = _decoding(fleet, replica)
    is_batch = fleet.requests["query"]["priority"][rows] > 0
    order_freeze(fleet.handle, replica, most_tokens)
    return int((is_batch & (context > most_tokens)).sum())


def _move_kv(fleet: "SimulatedFleet", replica: int, most: int) -> int:
    """Order the least urgent, longest sequences of a replica to migrate, as far as there is room.

    A sequence that finds no room, or may not go there, stays.
    """
    requests = fleet.requests
    rows, context = _decoding(fleet, replica)
    order = np.lexsort((-context, -requests["query"]["priority"][rows]))
    num_moved = 0
    for row in rows[order][:most]:
        for target in _neighbours(fleet, replica):
            try:
                fleet.migrate(int(row), int(target))
            except ValueError:
                continue
            num_moved += 1
            break
    return num_moved
