"""What a request map is made from: the queue, the replicas' room, and the rules, as arrays.

Does not know: how a map is found (`request_map.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.restrictions import ReplicaLimits, Restrictions
from .map_kernel import MapTable, fill_costs

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueuedRequests:
    """What is queued.

    Shapes: [Q], but `hit_tokens` [Q, R].

    Raises:
        ValueError: shapes do not agree, or a limit or weight is not above 0.
    """

    groups: IntArray
    """Row of the masks and penalties."""
    tenants: IntArray
    """Whose it is, counted from 0."""
    input_tokens: IntArray
    """Prompt tokens."""
    hit_tokens: IntArray
    """Prompt tokens that each replica has cached."""
    expected_output_tokens: FloatArray
    ttft_slo_s: FloatArray
    """Limit on the time from arrival to first token."""
    waited_s: FloatArray
    """Time since arrival."""
    weights: FloatArray
    """Worth of a request that meets its limits."""
    priorities: IntArray
    """Lower goes first within a batch."""

    def __post_init__(self) -> None:
        shape = self.groups.shape
        for name in self.__dataclass_fields__:
            array = getattr(self, name)
            if array.shape[:1] != shape or array.ndim != (2 if name == "hit_tokens" else 1):
                msg = f"{name} must have {shape[0]} rows, one per request, got shape {array.shape}"
                raise ValueError(msg)
        for name in ("ttft_slo_s", "weights", "input_tokens"):
            worst = getattr(self, name).min(initial=1)
            if not worst > 0:
                msg = f"{name} must be above 0, got {worst}"
                raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaRoom:
    """What each replica has room for. Shapes: all [R]."""

    free_kv_tokens: IntArray
    free_slots: IntArray
    """Sequences that it may take on."""
    batch_tokens: IntArray
    """Prefill tokens of an iteration, decodes taken off."""
    backlog_s: FloatArray
    """Work that it has ahead of anything new."""
    prefill_token_s: FloatArray
    iteration_s: FloatArray
    """Time of an iteration without prefill."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapRules:
    """What may go where.

    Shapes: `masks` [groups, R], `penalties` [groups, R] in TTFT limits, `is_exclusive` [T],
    `occupied` [T, R], `deficits_frac` [T].
    """

    masks: NDArray[np.uint16]
    penalties: FloatArray
    is_exclusive: BoolArray
    """The tenant shares no replica with another."""
    occupied: BoolArray
    """The tenant has requests on the replica."""
    deficits_frac: FloatArray
    """Share of its fair part that the tenant did not get lately; its requests weigh that more."""


def map_rules(
    restrictions: Restrictions, limits: ReplicaLimits | None = None, *, num_tenants: int = 1
) -> MapRules:
    """Return compiled rules and the shield's limits of the moment, with no exclusive tenant."""
    masks, penalties = restrictions.masks, restrictions.penalties
    if limits is not None:
        masks, penalties = masks | limits.masks, penalties + limits.penalties
    shape = (num_tenants, restrictions.num_replicas)
    return MapRules(
        masks=masks,
        penalties=penalties,
        is_exclusive=np.zeros(num_tenants, np.bool_),
        occupied=np.zeros(shape, np.bool_),
        deficits_frac=np.zeros(num_tenants),
    )


def map_table(
    requests: QueuedRequests, room: ReplicaRoom, rules: MapRules, num_batches: int
) -> MapTable:
    """Return the problem in integers, with the next `num_batches` iterations of each replica.

    Raises:
        ValueError: shapes of queue, room and rules do not agree.
    """
    _check_shapes(requests, room, rules)
    free_kv_tokens, free_slots, batch_tokens = (
        np.maximum(_whole(array), 0)
        for array in (room.free_kv_tokens, room.free_slots, room.batch_tokens)
    )
    uncached = _whole(np.maximum(requests.input_tokens[:, None] - requests.hit_tokens, 1))
    output = np.ceil(requests.expected_output_tokens).astype(np.int64)
    kv_tokens = uncached + output[:, None]
    is_barred = (
        (rules.masks[requests.groups] != 0)
        | _is_kept_apart(requests, rules)
        | (kv_tokens > free_kv_tokens)
        | (free_slots < 1)
        | (batch_tokens < 1)
    )
    budget = np.maximum(batch_tokens, 1)
    costs, wait_costs = _costs(requests, room, rules, (uncached, is_barred), (budget, num_batches))
    least = costs.min(axis=2)
    near = np.argsort(least, axis=1, kind="stable")
    return MapTable(
        costs=costs,
        wait_costs=wait_costs,
        kv_tokens=kv_tokens,
        batch_tokens=np.minimum(uncached, num_batches * budget),
        near=near,
        least_costs=np.take_along_axis(least, near, axis=1),
        tenants=_whole(requests.tenants),
        is_exclusive=rules.is_exclusive,
        free_kv_tokens=free_kv_tokens,
        free_slots=free_slots,
        budgets=batch_tokens[:, None] * np.arange(1, num_batches + 1),
    )


def _costs(
    requests: QueuedRequests,
    room: ReplicaRoom,
    rules: MapRules,
    barred: tuple[IntArray, BoolArray],
    window: tuple[IntArray, int],
) -> tuple[IntArray, IntArray]:
    """Return costs of places and of waiting, from (uncached, is_barred) and (budgets, batches)."""
    uncached, is_barred = barred
    budget, num_batches = window
    costs = np.empty((len(requests), len(budget), num_batches), np.int64)
    wait_costs = np.empty(len(requests), np.int64)
    worths = requests.weights * (1.0 + rules.deficits_frac[requests.tenants])
    fill_costs(
        (
            _whole(requests.groups),
            uncached,
            *(_real(array) for array in (requests.ttft_slo_s, requests.waited_s, worths)),
        ),
        (budget, *map(_real, (room.backlog_s, room.prefill_token_s, room.iteration_s))),
        (_real(rules.penalties), is_barred),
        costs,
        wait_costs,
    )
    return costs, wait_costs


def _whole(array: np.ndarray) -> IntArray:
    """Return integers in the one layout that the kernel is compiled for."""
    return np.ascontiguousarray(array, np.int64)


def _real(array: np.ndarray) -> FloatArray:
    return np.ascontiguousarray(array, np.float64)


def _is_kept_apart(requests: QueuedRequests, rules: MapRules) -> BoolArray:
    """Return where a tenant of its own, or another tenant, is in the way, bool [Q, R]."""
    num_present = rules.occupied.sum(axis=0)
    others = num_present[None] - rules.occupied > 0  # [T, R]
    exclusive = rules.occupied & rules.is_exclusive[:, None]
    other_exclusive = exclusive.sum(axis=0)[None] - exclusive > 0
    apart = np.where(rules.is_exclusive[:, None], others, other_exclusive)
    return np.asarray(apart[requests.tenants])


def _check_shapes(requests: QueuedRequests, room: ReplicaRoom, rules: MapRules) -> None:
    num_groups, num_replicas = rules.masks.shape
    num_tenants = len(rules.is_exclusive)
    expected: dict[str, tuple[int, ...]] = {
        name: (num_replicas,) for name in room.__dataclass_fields__
    }
    found = {name: getattr(room, name).shape for name in expected}
    expected |= {
        "penalties": (num_groups, num_replicas),
        "occupied": (num_tenants, num_replicas),
        "deficits_frac": (num_tenants,),
    }
    found |= {name: getattr(rules, name).shape for name in expected if name not in found}
    expected["hit_tokens"] = (len(requests), num_replicas)
    found["hit_tokens"] = requests.hit_tokens.shape
    for name, shape in expected.items():
        if found[name] != shape:
            msg = f"{name} must have shape {shape}, got {found[name]}"
            raise ValueError(msg)
    for name, limit in (("groups", num_groups), ("tenants", num_tenants)):
        numbers = getattr(requests, name)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < limit:
            msg = f"{name} must be from 0 to {limit - 1}, got {numbers.min()} to {numbers.max()}"
            raise ValueError(msg)
