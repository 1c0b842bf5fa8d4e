"""Rules in a simulation: the group of each request, and what each group and replica may have.

Does not know: where restrictions and limits come from.
"""

import numpy as np

from ..restrictions import ReplicaLimits, Restrictions
from .layout import NUM_PRIORITIES, SimulationArrays
from .workload import Workload


def group_costs(restrictions: Restrictions, num_replicas: int) -> np.ndarray:
    """Return what is added to each replica's cost by group, infinite where masked; [G, R].

    Raises:
        ValueError: the restrictions are of another number of replicas.
    """
    if restrictions.num_replicas != num_replicas:
        msg = (
            f"restrictions are for {restrictions.num_replicas} replicas, but the cluster has "
            f"{num_replicas}; compile them for this cluster"
        )
        raise ValueError(msg)
    return np.where(restrictions.masks != 0, np.inf, restrictions.penalties)


def assign_groups(requests: np.ndarray, workload: Workload, restrictions: Restrictions) -> None:
    """Give requests their group, and what their group says of limits, class and worth."""
    # Adapters are numbered from 1; 0 is a request without one.
    groups = restrictions.groups_of(workload.tenant_names, workload.adapter_names)
    group = groups[requests["tenant"], requests["adapter"]]
    query, rule = requests["query"], restrictions.groups[group]
    query["group"] = group
    for name in ("ttft_slo_s", "tpot_slo_s"):
        query[name] = np.where(np.isnan(rule[name]), query[name], rule[name])
    priority = np.minimum(rule["priority"], NUM_PRIORITIES - 1)
    query["priority"] = np.where(np.isnan(priority), query["priority"], priority)
    requests["weight"] = np.where(np.isnan(rule["weight"]), requests["weight"], rule["weight"])


def set_bias(arrays: SimulationArrays) -> None:
    """Add up what the knobs, the groups and the shield add to a replica's cost."""
    np.add(arrays.group_costs, arrays.knob_bias + arrays.penalties, out=arrays.bias)


def set_limits(arrays: SimulationArrays, limits: ReplicaLimits) -> None:
    """Let every gateway obey what the shield lets each replica have.

    Raises:
        ValueError: the limits are of another number of replicas.
    """
    if limits.masks.shape != arrays.replicas.shape:
        msg = (
            f"limits must be of {arrays.replicas.size} replicas, got {limits.masks.size}; "
            "make them for this cluster"
        )
        raise ValueError(msg)
    views = arrays.views.reshape(arrays.gateways.size, -1)
    views["mask"] = limits.masks
    views["max_outstanding"] = limits.max_outstanding
    if not np.array_equal(arrays.penalties, limits.penalties):
        arrays.penalties[:] = limits.penalties
        set_bias(arrays)
