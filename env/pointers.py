"""A raw address as an array, in compiled code: one record of addresses stands for many arrays.

Passing arrays one by one copies words and counts references at every call. Whoever passes
addresses keeps the arrays alive meanwhile.

Does not know: which arrays there are (`simulator/memory.py`, `runtime/dispatcher`).
Source: the address intrinsic is numba's documented way to use a raw pointer with `carray`.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def _pointer_intrinsic(typing_context, address):
    """Turn an integer address into a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


# numba passes the first parameter itself, which type checkers cannot know.
pointer: Any = _pointer_intrinsic
"""Turns an integer address into a pointer for `numba.carray`."""
