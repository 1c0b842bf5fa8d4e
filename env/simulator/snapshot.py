"""Snapshots: the state of a fleet copied in microseconds, restored bit for bit.

Every array of a simulation has a rule for how it is copied. What the rules leave out is the same
on both sides: the rows of requests to come and the cache entries that no block has used are
pristine in all fleets of one reset, and a request that has ended never changes again. So between
two sets of arrays that were equal once, only requests that were open then, and those that have
arrived since, can differ.

Does not know: windows, policies, or who asks for a copy.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import compiled
from .layout import (
    CACHE_ENTRY_DTYPE,
    FAILED,
    FINISHED,
    PENDING,
    REQUEST_DTYPE,
    SEQUENCE_DTYPE,
    SHED,
    SimulationArrays,
)
from .memory import blocks_of, fleet_of, handle, replicas_of, requests_of


class Copy(Enum):
    """How a snapshot treats an array."""

    SHARED = "shared"
    """Never written after the reset: one array serves all copies."""
    WHOLE = "whole"
    """Copied byte for byte."""
    REQUESTS = "requests"
    """By request: rows that may differ, those to come among them."""
    PINS = "pins"
    """By prompt block of a request, with the request's row."""
    HEAPS = "heaps"
    """By replica: up to the sequences that decode."""
    ENTRIES = "entries"
    """By replica: up to the last cache entry that was ever used."""
    BLOCKS = "blocks"
    """By block: up to the last block of any arrived request."""


COPY_RULES: dict[str, Copy] = {
    "fleet": Copy.WHOLE,
    "requests": Copy.REQUESTS,
    "blocks": Copy.SHARED,
    "pinned_entries": Copy.PINS,
    "replicas": Copy.WHOLE,
    "event_tree": Copy.WHOLE,
    "actual": Copy.SHARED,
    "nominal": Copy.SHARED,
    "decode_bases_s": Copy.WHOLE,
    "linear_s": Copy.WHOLE,
    "gateways": Copy.WHOLE,
    "views": Copy.WHOLE,
    "scraped": Copy.WHOLE,
    "shortlists": Copy.WHOLE,
    "sequences": Copy.HEAPS,
    "page_phases": Copy.WHOLE,
    "cache": Copy.ENTRIES,
    "cache_table": Copy.WHOLE,
    "holders": Copy.BLOCKS,
    "slowdowns": Copy.SHARED,
    "events": Copy.SHARED,
    "knobs": Copy.WHOLE,
    "bias": Copy.WHOLE,
    "group_costs": Copy.SHARED,
    "knob_bias": Copy.WHOLE,
    "penalties": Copy.WHOLE,
    "hits": Copy.WHOLE,
    "matched": Copy.WHOLE,
    "terms": Copy.WHOLE,
    "random": Copy.WHOLE,
    "hosts": Copy.WHOLE,
    "host_cache": Copy.WHOLE,
    "host_table": Copy.WHOLE,
    "adapters": Copy.WHOLE,
    "growing": Copy.WHOLE,
    "links": Copy.WHOLE,
    "ports": Copy.SHARED,
    "zone_links": Copy.SHARED,
    "transfers": Copy.WHOLE,
    "pages": Copy.WHOLE,
    "throttled": Copy.WHOLE,
    "shadow": Copy.WHOLE,
    "shadow_knobs": Copy.WHOLE,
    "judge": Copy.SHARED,
    "shadow_bias": Copy.WHOLE,
    "shadow_costs": Copy.WHOLE,
    "shadow_factors": Copy.WHOLE,
    "shadow_random": Copy.WHOLE,
    "groups": Copy.SHARED,
    "buckets": Copy.WHOLE,
    "lookahead": Copy.WHOLE,
    "mirrors": Copy.WHOLE,
    "mirror_rows": Copy.WHOLE,
    "length_counts": Copy.WHOLE,
    "ahead_choices": Copy.WHOLE,
    "ahead_run": Copy.WHOLE,
    "ahead_jobs": Copy.WHOLE,
    "ahead_lists": Copy.WHOLE,
    "ahead_linear_s": Copy.WHOLE,
    "residuals": Copy.WHOLE,
    "value_weights": Copy.SHARED,
    "value_sums": Copy.WHOLE,
    "value_scratch": Copy.WHOLE,
    "labels": Copy.WHOLE,
    "life": Copy.WHOLE,
    "placements": Copy.WHOLE,
    "seen_views": Copy.WHOLE,
    "seen_hits": Copy.WHOLE,
    "seen_choices": Copy.WHOLE,
}
"""Rule of each array; one that is missing is copied whole, which is always right."""

_NO_ROWS = np.zeros(0, np.int32)
_REQUEST_BYTES = REQUEST_DTYPE.itemsize
_ENTRY_BYTES = CACHE_ENTRY_DTYPE.itemsize
_SEQUENCE_BYTES = SEQUENCE_DTYPE.itemsize
_PIN_BYTES = np.dtype(np.int32).itemsize
_HOLDER_BYTES = np.dtype(np.uint64).itemsize


def rule_of(name: str) -> Copy:
    """Return the rule of an array by its field's name."""
    return COPY_RULES.get(name, Copy.WHOLE)


@intrinsic
def _copy_bytes_intrinsic(typing_context, source, target, size):
    """Copy bytes from one address to another; the ranges do not overlap."""

    def generate(context, builder, signature, arguments):
        source_at, target_at, count = arguments
        target_pointer = builder.inttoptr(target_at, cgutils.voidptr_t)
        source_pointer = builder.inttoptr(source_at, cgutils.voidptr_t)
        cgutils.raw_memcpy(builder, target_pointer, source_pointer, count, 1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate


# numba passes the first parameter itself, which type checkers cannot know.
_raw_copy: Any = _copy_bytes_intrinsic


@compiled
def _copy_bytes(source_at, target_at, size):
    _raw_copy(np.int64(source_at), np.int64(target_at), np.int64(size))


@compiled
def _copy_rows(source, target, first, end):
    """Copy the requests from `first` to before `end`, and their pins."""
    if first >= end:
        return
    requests = requests_of(source)
    start = first * _REQUEST_BYTES
    size = (end - first) * _REQUEST_BYTES
    _copy_bytes(source.requests_at + start, target.requests_at + start, size)
    first_pin = requests[first].first_block
    end_pin = requests[end - 1].first_block + requests[end - 1].num_blocks
    start = first_pin * _PIN_BYTES
    size = (end_pin - first_pin) * _PIN_BYTES
    _copy_bytes(source.pinned_entries_at + start, target.pinned_entries_at + start, size)


@compiled
def num_seen_blocks(handle, first, end):
    """Return one past the last block that the requests from `first` to before `end` name.

    The blocks of their answers, which the next prompts of their sessions name, are among them.
    """
    sim = handle[0]
    blocks, most = blocks_of(sim), 0
    for row in range(first, end):
        request = requests_of(sim)[row]
        for position in range(request.first_block, request.first_block + request.num_blocks):
            most = max(most, blocks[position] + 1)
        first_output = request.output_first_block
        for position in range(first_output, first_output + request.num_output_blocks):
            most = max(most, blocks[position] + 1)
    return most


@compiled
def _copy_replica(source, target, r):
    """Copy a replica's heap and cache entries as far as either side has used them."""
    a, b = replicas_of(source)[r], replicas_of(target)[r]
    start = r * source.num_slots * _SEQUENCE_BYTES
    size = a.num_decoding * _SEQUENCE_BYTES
    _copy_bytes(source.sequences_at + start, target.sequences_at + start, size)
    start = r * source.num_entries * _ENTRY_BYTES
    size = max(a.num_touched_entries, b.num_touched_entries) * _ENTRY_BYTES
    _copy_bytes(source.cache_at + start, target.cache_at + start, size)


@compiled
def copy_state(pair, rows, first_new, num_blocks, whole):
    """Make the target's state that of the source; return one past the last block ever seen.

    Both are of one reset and were equal once, but for the `rows` and for all requests from
    `first_new` on. Blocks before `num_seen_blocks` may be held by a cache anywhere.

    Shapes: `pair` HANDLE_DTYPE [2], source and target; `rows` int [any]; `whole` int64 [any, 3],
    source address, target address and bytes of the arrays that are copied whole.
    """
    source, target = pair[0], pair[1]
    end = max(fleet_of(source).next_arrival, fleet_of(target).next_arrival)
    # Clients of a closed loop give requests to come their moment of arrival.
    end = min(end + fleet_of(source).num_clients, source.num_requests)
    for i in range(rows.size):
        _copy_rows(source, target, rows[i], rows[i] + 1)
    _copy_rows(source, target, first_new, end)
    num_blocks = max(num_blocks, num_seen_blocks(pair, first_new, end))
    size = num_blocks * source.num_words * _HOLDER_BYTES
    _copy_bytes(source.holders_at, target.holders_at, size)
    for r in range(source.num_replicas):
        _copy_replica(source, target, r)
    # The fleet's and the replicas' own records, which the copies above read, are among these.
    for i in range(whole.shape[0]):
        _copy_bytes(whole[i, 0], whole[i, 1], whole[i, 2])
    return num_blocks


@compiled
def list_open(handle, rows, first_new, found):
    """Fill `found` with the requests that may still change and return how many there are.

    They are among `rows` and those that arrived from `first_new` on.
    """
    requests = requests_of(handle[0])
    count = 0
    for i in range(rows.size + fleet_of(handle[0]).next_arrival - first_new):
        row = rows[i] if i < rows.size else first_new + i - rows.size
        status = requests[row].status
        if status != FINISHED and status != SHED and status != FAILED and status != PENDING:
            found[count] = row
            count += 1
    return count


def copy_array(array: np.ndarray) -> np.ndarray:
    """Return a copy of a contiguous array.

    Records as bytes: NumPy's own copy goes field by field, ten times as slow.
    """
    if array.dtype.names is None or array.size == 0:
        return array.copy()
    return array.view(np.uint8).copy().view(array.dtype)


def stack_records(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return record arrays of one type and size [R] as [n, R].

    As bytes: NumPy's own stacking works out the common type anew for every array.
    """
    stacked = np.stack([array.view(np.uint8) for array in arrays])
    return stacked.view(arrays[0].dtype)


class Bank:
    """One set of a simulation's arrays with the addresses that compiled functions need."""

    def __init__(self, arrays: SimulationArrays) -> None:
        self.arrays = arrays
        self.handle = handle(arrays)
        by_rule = {rule: [] for rule in Copy}  # type: dict[Copy, list[np.ndarray]]
        for name, array in arrays._asdict().items():
            by_rule[rule_of(name)].append(array)
        self._shared = by_rule[Copy.SHARED]
        whole = by_rule[Copy.WHOLE]
        self._whole_at = np.array([array.ctypes.data for array in whole], dtype=np.int64)
        self._whole_bytes = np.array([array.nbytes for array in whole], dtype=np.int64)
        self._plans: WeakKeyDictionary[Bank, tuple[np.ndarray, np.ndarray]] = WeakKeyDictionary()

    def is_sibling(self, other: "Bank") -> bool:
        """Whether both come from one reset."""
        return all(a is b for a, b in zip(self._shared, other._shared, strict=True))

    def duplicate(self) -> "Bank":
        """Return an independent copy; what never changes is shared."""
        arrays = {
            name: array if rule_of(name) is Copy.SHARED else copy_array(array)
            for name, array in self.arrays._asdict().items()
        }
        return Bank(SimulationArrays(**arrays))

    def copy_to(self, target: "Bank", rows: np.ndarray, first_new: int, num_blocks: int) -> int:
        """Copy to a sibling; arguments and result are those of `copy_state`."""
        plan = self._plans.get(target)
        if plan is None:
            whole = np.stack([self._whole_at, target._whole_at, self._whole_bytes], axis=1)
            pair = stack_records([self.handle, target.handle]).ravel()
            plan = self._plans[target] = (pair, whole)
        pair, whole = plan
        return int(copy_state(pair, rows, first_new, num_blocks, whole))


class Sync(NamedTuple):
    """With which content of which snapshot a bank was equal last."""

    snapshot: "Snapshot"
    version: int


class Snapshot:
    """The state of a fleet at a moment, independent of what the fleet does afterwards.

    `take` and `put` cost as much as can have changed since bank and snapshot were equal last.
    """

    def __init__(self, bank: Bank, origin: dict[str, object]) -> None:
        self._origin = origin
        self.extra: object = None
        """What the owner keeps beside the arrays."""
        self._version = 0
        self._begin(bank)

    def _begin(self, bank: Bank) -> None:
        """Become a copy of a bank, whatever was here before."""
        self._bank = bank.duplicate()
        num_requests = bank.arrays.requests.size
        # Requests that may still change: of this content, and of the one before.
        self._open, self._open_before = (np.zeros(num_requests, np.int32) for _ in range(2))
        self._num_open, self._num_open_before = 0, 0
        self._first_new, self._first_new_before = 0, 0
        self._has_before = False
        num_arrived = int(bank.arrays.fleet[0]["next_arrival"])
        self._num_seen_blocks = int(num_seen_blocks(bank.handle, 0, num_arrived))
        self._finish(_NO_ROWS, 0)

    def _finish(self, rows: np.ndarray, first_new: int) -> None:
        """Note which requests may still change, given those that may have since before."""
        self._version += 1
        self._num_open = int(list_open(self._bank.handle, rows, first_new, self._open))
        self._first_new = int(self._bank.arrays.fleet[0]["next_arrival"])

    @property
    def now_s(self) -> float:
        """The moment."""
        return float(self._bank.arrays.fleet[0]["now_s"])

    def check_origin(self, origin: dict[str, object]) -> None:
        """Check that a fleet is made of the same things as the one whose state this is.

        Raises:
            ValueError: it is not.
        """
        for name, own in self._origin.items():
            # Arrays have no equality of their own: a workload must be the same object.
            if own is not origin[name] and (name == "workload" or own != origin[name]):
                one, other = (getattr(what, "name", what) for what in (own, origin[name]))
                msg = f"snapshot is of another {name}: '{one}', the fleet has '{other}'"
                raise ValueError(msg)

    def take(self, bank: Bank, last: Sync | None) -> Sync:
        """Make this the state of a bank that was equal to `last`; return what it is equal to."""
        if not bank.is_sibling(self._bank):
            self._begin(bank)
            return Sync(self, self._version)
        rows, first_new = _NO_ROWS, 0
        self._has_before = last == (self, self._version)
        if self._has_before:
            rows, first_new = self._open[: self._num_open], self._first_new
        seen = bank.copy_to(self._bank, rows, first_new, self._num_seen_blocks)
        self._num_seen_blocks = seen
        self._num_open_before, self._first_new_before = rows.size, first_new
        self._open, self._open_before = self._open_before, self._open
        self._finish(rows, first_new)
        return Sync(self, self._version)

    def put(self, bank: Bank | None, last: Sync | None) -> tuple[Bank, Sync]:
        """Bring a bank that was equal to `last` to this state; return it and what it equals.

        A bank of another reset is replaced by a new one.
        """
        now = Sync(self, self._version)
        if bank is None or not bank.is_sibling(self._bank):
            return self._bank.duplicate(), now
        if last == now:
            rows, first_new = self._open[: self._num_open], self._first_new
        elif last == (self, self._version - 1) and self._has_before:
            rows, first_new = self._open_before[: self._num_open_before], self._first_new_before
        else:
            rows, first_new = _NO_ROWS, 0
        self._bank.copy_to(bank, rows, first_new, self._num_seen_blocks)
        return bank, now
