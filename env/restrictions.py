"""What may go where: the form in which rules reach the dispatch kernel.

`Restrictions` are what groups of requests may use, fixed until the rules change; `ReplicaLimits`
are what the shield thinks of each replica at this moment. The kernel adds their penalties to a
candidate's cost and never chooses one that is masked.

Does not know: the rules that they are compiled from (`agents/constraints`), or the kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .cluster import ClusterSpec
from .masks import Mask

MaskArray = NDArray[np.uint16]
FloatArray = NDArray[np.float64]

# What holds for all requests of a group. NaN keeps the request's own value.
GROUP_DTYPE = np.dtype(
    [
        ("ttft_slo_s", np.float64),
        ("tpot_slo_s", np.float64),
        ("priority", np.float64),  # 0 interactive, 1 batch
        ("weight", np.float64),  # worth of a request that meets its limits
        # Budget: a bucket of prompt and expected output tokens, and one of requests.
        ("tokens_per_s", np.float64),  # infinity: no budget
        ("burst_tokens", np.float64),
        ("requests_per_s", np.float64),
        ("burst_requests", np.float64),
        ("is_demoting", np.int64),  # over budget: 1 makes it a batch request, 0 refuses it
        ("budget_group", np.int64),  # group whose bucket it takes from: its own or a shared one
    ]
)


def open_groups(num_groups: int) -> np.ndarray:
    """Return groups without any limit of their own, GROUP_DTYPE [num_groups]."""
    groups = np.zeros(num_groups, dtype=GROUP_DTYPE)
    for name in ("ttft_slo_s", "tpot_slo_s", "priority", "weight"):
        groups[name] = np.nan
    for name in ("tokens_per_s", "burst_tokens", "requests_per_s", "burst_requests"):
        groups[name] = np.inf
    groups["budget_group"] = np.arange(num_groups)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Restrictions:
    """Which replicas each group of requests may use, at what penalty, within which limits.

    A request's group is found by its tenant and its adapter: `table[tenants[name], adapters[name]]`
    with the last row for tenants without a rule, and the last column for requests without an
    adapter or with one that no rule names.

    Shapes: `masks` uint16 [groups, replicas] of `Mask` bits, `penalties` [groups, replicas] in
    units of the score (predicted TTFT over its limit), `groups` GROUP_DTYPE [groups], `table`
    int64 [tenants + 1, adapters + 1].

    Raises:
        ValueError: shapes do not agree, a penalty is not finite, or the table names no group.
    """

    names: tuple[str, ...]
    """What each group is called in messages."""
    masks: MaskArray
    penalties: FloatArray
    groups: np.ndarray
    table: NDArray[np.int64]
    tenants: Mapping[str, int] = field(default_factory=dict)
    adapters: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.names), self.masks.shape[1] if self.masks.ndim == 2 else 0)
        for name, array in (("masks", self.masks), ("penalties", self.penalties)):
            if array.shape != expected:
                msg = f"{name} must have shape {expected}, got {array.shape}"
                raise ValueError(msg)
        if self.groups.shape != expected[:1]:
            msg = f"groups must have shape {expected[:1]}, got {self.groups.shape}"
            raise ValueError(msg)
        budget_groups = self.groups["budget_group"]
        if not ((budget_groups >= 0) & (budget_groups < len(self.names))).all():
            msg = f"budget_group must be from 0 to {len(self.names) - 1}, got {budget_groups}"
            raise ValueError(msg)
        if not np.isfinite(self.penalties).all():
            msg = "penalties must be finite; mask what may not be used"
            raise ValueError(msg)
        shape = (len(self.tenants) + 1, len(self.adapters) + 1)
        if self.table.shape != shape:
            msg = f"table must have shape {shape}, got {self.table.shape}"
            raise ValueError(msg)
        if not ((self.table >= 0) & (self.table < len(self.names))).all():
            msg = f"table must name groups from 0 to {len(self.names) - 1}, got {self.table}"
            raise ValueError(msg)

    @property
    def num_replicas(self) -> int:
        """Replicas that the masks speak of."""
        return int(self.masks.shape[1])

    def group_of(self, tenant: str, adapter: str | None = None) -> int:
        """Return the group of a tenant's requests, with or without an adapter."""
        row = self.tenants.get(tenant, len(self.tenants))
        column = len(self.adapters)
        if adapter is not None:
            column = self.adapters.get(adapter, column)
        return int(self.table[row, column])

    def groups_of(self, tenants: Sequence[str], adapters: Sequence[str]) -> NDArray[np.int64]:
        """Return the group of each tenant without and with each adapter, [T, 1 + A]."""
        rows = [self.tenants.get(name, len(self.tenants)) for name in tenants]
        none = len(self.adapters)
        columns = [none, *(self.adapters.get(name, none) for name in adapters)]
        return self.table[np.ix_(np.array(rows, np.int64), np.array(columns, np.int64))]


def unrestricted(num_replicas: int) -> Restrictions:
    """Return restrictions that let every request use every replica."""
    return Restrictions(
        names=("all",),
        masks=np.zeros((1, num_replicas), np.uint16),
        penalties=np.zeros((1, num_replicas)),
        groups=open_groups(1),
        table=np.zeros((1, 1), np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaLimits:
    """What the shield lets each replica have at this moment, whoever asks.

    Shapes: all [replicas]. `masks` holds `Mask` bits; `max_outstanding` is how many requests it
    may have at a time, infinity for no limit of this kind; `penalties` are added to its cost.

    Raises:
        ValueError: shapes do not agree, or a penalty is not finite.
    """

    masks: MaskArray
    max_outstanding: FloatArray
    penalties: FloatArray

    def __post_init__(self) -> None:
        shapes = (self.masks.shape, self.max_outstanding.shape, self.penalties.shape)
        if len(set(shapes)) != 1 or self.masks.ndim != 1:
            msg = f"masks, max_outstanding and penalties must have one shape [R], got {shapes}"
            raise ValueError(msg)
        if not np.isfinite(self.penalties).all():
            msg = "penalties must be finite; mask what may not be used"
            raise ValueError(msg)


def no_limits(cluster: ClusterSpec) -> ReplicaLimits:
    """Return limits that bar nothing but the spill tier."""
    num_replicas = len(cluster.replicas)
    masks = [Mask.SPILL if replica.is_spill else 0 for replica in cluster.replicas]
    return ReplicaLimits(
        masks=np.array(masks, np.uint16),
        max_outstanding=np.full(num_replicas, np.inf),
        penalties=np.zeros(num_replicas),
    )
