"""How compiled functions reach the arrays: one record of addresses, one accessor an array.

Passing the arrays themselves would copy some 150 words and count references at every call, which
costs more than the simulation; a record is one pointer. `handle` makes it; whoever calls a
compiled function keeps the arrays alive meanwhile.

Does not know: what the arrays mean (`layout.py`).
Source: the address intrinsic is numba's documented way to use a raw pointer with `carray`.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import compiled
from ..dispatch import NUM_TERMS, VIEW_DTYPE
from ..knobs import KNOBS_DTYPE
from ..latency import LATENCY_DTYPE
from .layout import (
    CACHE_ENTRY_DTYPE,
    EVENT_DTYPE,
    FLEET_DTYPE,
    PAGE_DTYPE,
    REPLICA_DTYPE,
    REQUEST_DTYPE,
    SEQUENCE_DTYPE,
    SLOWDOWN_DTYPE,
    SimulationArrays,
)

_COMPILED_FILES = (
    "compiled.py",
    "dispatch.py",
    "knobs.py",
    "latency.py",
    "energy.py",
    "../traces/hashing.py",
)
_SIZES = (
    "num_requests",
    "num_block_references",
    "num_replicas",
    "num_slots",
    "page_tokens",
    "num_entries",
    "table_size",
    "num_blocks",
    "num_words",
    "num_slowdowns",
    "num_events",
    "num_kinds",
    "num_linear",
    "num_pages",
)


def _source_tag() -> str:
    """Return a hash of the compiled code's source files.

    numba's cache looks only at the file of the function that it compiled, so a change in a file
    that this one calls would go unnoticed. With the tag in the handle's type it does not.
    """
    room = Path(__file__).parent
    files = [*sorted(room.glob("*.py")), *(room.parent / name for name in _COMPILED_FILES)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


HANDLE_DTYPE = np.dtype(
    [(f"{name}_at", np.int64) for name in SimulationArrays._fields]
    + [(name, np.int64) for name in _SIZES]
    + [(f"source_{_source_tag()}", np.int8)]
)


def handle(arrays: SimulationArrays) -> np.ndarray:
    """Return the addresses and sizes of the arrays, HANDLE_DTYPE [1]."""
    record = np.zeros(1, dtype=HANDLE_DTYPE)
    for name, array in arrays._asdict().items():
        if not array.flags.c_contiguous:
            msg = f"array '{name}' must be contiguous, got strides {array.strides}"
            raise ValueError(msg)
        record[f"{name}_at"] = array.ctypes.data
    sizes = (
        arrays.requests.size,
        arrays.blocks.size,
        arrays.replicas.size,
        arrays.sequences.shape[1],
        arrays.page_phases.shape[1],
        arrays.cache.shape[1],
        arrays.cache_table.shape[1],
        *arrays.holders.shape,
        arrays.slowdowns.shape[1],
        arrays.events.size,
        *arrays.linear_s.shape,
        arrays.pages.shape[1],
    )
    for name, size in zip(_SIZES, sizes, strict=True):
        record[name] = size
    return record


@intrinsic
def _pointer_intrinsic(typing_context, address):
    """Turn an integer address into a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


# numba passes the first parameter itself, which type checkers cannot know.
_pointer: Any = _pointer_intrinsic


@compiled
def fleet_of(sim):
    """The fleet's own record."""
    return carray(_pointer(sim.fleet_at), (1,), FLEET_DTYPE)[0]


@compiled
def requests_of(sim):
    """Request table [N]."""
    return carray(_pointer(sim.requests_at), (sim.num_requests,), REQUEST_DTYPE)


@compiled
def blocks_of(sim):
    """Dense ids of the requests' prompt blocks."""
    return carray(_pointer(sim.blocks_at), (sim.num_block_references,), np.int32)


@compiled
def pinned_entries_of(sim):
    """Cache entries that running requests have pinned, in the places of their blocks."""
    return carray(_pointer(sim.pinned_entries_at), (sim.num_block_references,), np.int32)


@compiled
def replicas_of(sim):
    """Replica table [R]."""
    return carray(_pointer(sim.replicas_at), (sim.num_replicas,), REPLICA_DTYPE)


@compiled
def next_events_of(sim):
    """When each replica next changes in a visible way, s [R]."""
    return carray(_pointer(sim.next_event_s_at), (sim.num_replicas,), np.float64)


@compiled
def actual_of(sim):
    """True latency coefficients [R]."""
    return carray(_pointer(sim.actual_at), (sim.num_replicas,), LATENCY_DTYPE)


@compiled
def throttled_of(sim):
    """Scratch: latency coefficients at the clock that a power cap leaves [R]."""
    return carray(_pointer(sim.throttled_at), (sim.num_replicas,), LATENCY_DTYPE)


@compiled
def nominal_of(sim):
    """Latency coefficients that the scheduler believes [R]."""
    return carray(_pointer(sim.nominal_at), (sim.num_replicas,), LATENCY_DTYPE)


@compiled
def linear_s_of(sim, kind):
    """Remembered layer times of a kind of replica, by tokens [T]."""
    shape = (sim.num_kinds, sim.num_linear)
    return carray(_pointer(sim.linear_s_at), shape, np.float64)[kind]


@compiled
def views_of(sim):
    """The gateway's view of each replica [R]."""
    return carray(_pointer(sim.views_at), (sim.num_replicas,), VIEW_DTYPE)


@compiled
def sequences_of(sim, r):
    """Heap of a replica's decoding sequences [S]."""
    shape = (sim.num_replicas, sim.num_slots)
    return carray(_pointer(sim.sequences_at), shape, SEQUENCE_DTYPE)[r]


@compiled
def page_phases_of(sim, r):
    """Decoding sequences of a replica by the iteration at which they need a page."""
    shape = (sim.num_replicas, sim.page_tokens)
    return carray(_pointer(sim.page_phases_at), shape, np.int64)[r]


@compiled
def cache_of(sim, r):
    """Prefix-cache entries of a replica [C]."""
    shape = (sim.num_replicas, sim.num_entries)
    return carray(_pointer(sim.cache_at), shape, CACHE_ENTRY_DTYPE)[r]


@compiled
def cache_table_of(sim, r):
    """Hash table from block to cache entry of a replica [H]."""
    shape = (sim.num_replicas, sim.table_size)
    return carray(_pointer(sim.cache_table_at), shape, np.int32)[r]


@compiled
def holders_of(sim):
    """Bit masks of the replicas that hold each block [B, words]."""
    return carray(_pointer(sim.holders_at), (sim.num_blocks, sim.num_words), np.uint64)


@compiled
def slowdowns_of(sim, r):
    """Changes of a replica's slow-down [K]."""
    shape = (sim.num_replicas, sim.num_slowdowns)
    return carray(_pointer(sim.slowdowns_at), shape, SLOWDOWN_DTYPE)[r]


@compiled
def events_of(sim):
    """What happens to the fleet from outside, in order of time."""
    return carray(_pointer(sim.events_at), (sim.num_events,), EVENT_DTYPE)


@compiled
def knobs_of(sim):
    """The knobs in force."""
    return carray(_pointer(sim.knobs_at), (1,), KNOBS_DTYPE)[0]


@compiled
def bias_of(sim):
    """Additive score of each replica [R]."""
    return carray(_pointer(sim.bias_at), (sim.num_replicas,), np.float64)


@compiled
def hits_of(sim):
    """Scratch: cached prompt tokens of the request in hand [R]."""
    return carray(_pointer(sim.hits_at), (sim.num_replicas,), np.int64)


@compiled
def terms_of(sim):
    """Scratch: parts of a score [NUM_TERMS]."""
    return carray(_pointer(sim.terms_at), (NUM_TERMS,), np.float64)


@compiled
def random_of(sim, stream):
    """State of one random stream [1]: 0 dispatch, 1 scrapes."""
    return carray(_pointer(sim.random_at), (2,), np.uint64)[stream : stream + 1]


@compiled
def late_pages_of(sim, r):
    """Metrics pages of a replica that are on their way [P]."""
    shape = (sim.num_replicas, sim.num_pages)
    return carray(_pointer(sim.pages_at), shape, PAGE_DTYPE)[r]
