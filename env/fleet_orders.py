"""What an operator may order a simulated fleet to do, checked and carried out.

Does not know: who gives the orders, or the emergency actions (`emergency_orders.py`).
"""

from typing import TYPE_CHECKING

import numpy as np

from .hardware import unknown_name_message
from .simulator.layout import DECODING, READY, ROLE_PREFILL
from .simulator.orders import can_move, order_link, order_migration, pages_to_move
from .topology import topology_of

if TYPE_CHECKING:
    from .simulated_fleet import SimulatedFleet

# States of a replica by their numbers in the arrays.
STATE_NAMES = ("ready", "down", "stopped", "asleep", "starting", "waking", "draining")


def check_state(
    fleet: "SimulatedFleet", replica: int, deed: str, expected: str, state: int
) -> None:
    """Refuse a deed on a replica that is not there, or not in the state that it takes.

    Raises:
        ValueError: so it is.
    """
    replicas = fleet.arrays.replicas
    if not 0 <= replica < replicas.size:
        msg = f"replica must be in [0, {replicas.size - 1}], got {replica}"
        raise ValueError(msg)
    if replicas["state"][replica] != state:
        actual = STATE_NAMES[int(replicas["state"][replica])]
        msg = f"replica {replica} is {actual}; only one that is {expected} can be {deed}"
        raise ValueError(msg)


def migrate(fleet: "SimulatedFleet", request: int, to_replica: int) -> None:
    """Order a decoding request to move with its KV.

    Raises:
        ValueError: the request is not decoding, or the replica cannot take it.
    """
    check_state(fleet, to_replica, "migrated to", "ready", READY)
    if not 0 <= request < fleet.requests.size:
        msg = f"request must be in [0, {fleet.requests.size - 1}], got {request}"
        raise ValueError(msg)
    if fleet.requests[request]["status"] != DECODING:
        msg = f"request {request} is not decoding; only a decoding request can migrate"
        raise ValueError(msg)
    pages = pages_to_move(fleet.handle, request)
    fault = _migration_fault(fleet, request, to_replica, pages)
    if fault:
        msg = f"request {request} cannot migrate to replica {to_replica}: it {fault}"
        raise ValueError(msg)
    order_migration(fleet.handle, request, to_replica, pages)


def _migration_fault(
    fleet: "SimulatedFleet", request: int, to_replica: int, pages: int
) -> str | None:
    """Return why a decoding request cannot move there, or None."""
    from_replica = int(fleet.requests[request]["replica"])
    source, target = fleet.arrays.replicas[[from_replica, to_replica]]
    if from_replica == to_replica:
        return "is there already"
    if source["kv_kind"] != target["kv_kind"]:
        return "has KV of another model or format"
    if target["role"] == ROLE_PREFILL:
        return "would come to a prefill replica"
    if _is_ordered(fleet, request):
        return "has been ordered to migrate already"
    if not _may_go(fleet, request, to_replica):
        return "may not go there by the rules in force"
    if not can_move(fleet.handle, to_replica, request, pages):
        return f"finds no room for {pages} KV pages"
    return None


def _is_ordered(fleet: "SimulatedFleet", request: int) -> bool:
    rows = fleet.arrays.transfers[: fleet.arrays.fleet[0]["num_transfers"]]
    return bool((rows["request"] == request).any())


def _may_go(fleet: "SimulatedFleet", request: int, replica: int) -> bool:
    group = int(fleet.requests[request]["query"]["group"])
    # All gateways are under the same masks; the views of the first come first.
    is_masked = fleet.arrays.views["mask"][replica] != 0
    return bool(np.isfinite(fleet.arrays.group_costs[group, replica]) and not is_masked)


def degrade_link(fleet: "SimulatedFleet", name: str, factor: float) -> None:
    """Order a link's bandwidth to be a share of what it is when whole.

    Raises:
        ValueError: there is no such link, or the share is not in [0, 1].
    """
    topology = topology_of(fleet.cluster)
    names = [link.name for link in topology.links]
    if name not in names:
        raise ValueError(unknown_name_message("link", name, names))
    if not 0 <= factor <= 1:
        msg = f"factor must be in [0, 1], got {factor}"
        raise ValueError(msg)
    order_link(fleet.handle, topology.link_index(name), float(factor))
