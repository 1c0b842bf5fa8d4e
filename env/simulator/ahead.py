"""Requests to come, fetched into the processor's caches before they arrive.

A long workload's table is larger than the caches, and a request's row is read in one go when it
arrives; to wait for it then would take as long as a tenth of the simulation.

Does not know: what a row holds.
Source: LLVM's prefetch intrinsic.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import compiled
from .layout import REQUEST_DTYPE
from .memory import blocks_of, requests_of

# How many requests ahead rows and blocks are fetched: longer than memory takes, and few enough
# to be in the nearest cache still when they arrive.
_ROWS_AHEAD = 8
_BLOCKS_AHEAD = 4
# Bytes of a cache line.
_LINE_BYTES = 64
_ROW_BYTES = REQUEST_DTYPE.itemsize
# Bytes of a word of `holders`.
_WORD_BYTES = 8


@intrinsic
def _prefetch_intrinsic(typing_context, address):
    """Fetch the cache line at an address; any address will do."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        # To be written, kept in all caches, data.
        builder.call(fetch, [pointer, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


# numba passes the first parameter itself, which type checkers cannot know.
_prefetch: Any = _prefetch_intrinsic


@compiled
def fetch_ahead(sim, index):
    """Fetch what requests some places behind one will need when they arrive."""
    row = index + _ROWS_AHEAD
    if row >= sim.num_requests:
        return
    at = sim.requests_at + row * _ROW_BYTES
    for start in range(0, _ROW_BYTES, _LINE_BYTES):
        _prefetch(at + start)
    request, blocks = requests_of(sim)[index + _BLOCKS_AHEAD], blocks_of(sim)
    for position in range(request.first_block, request.first_block + request.num_blocks):
        _prefetch(sim.holders_at + blocks[position] * sim.num_words * _WORD_BYTES)


__all__ = ["fetch_ahead"]
