"""Bits of a word, for compiled code.

Does not know: what the bits mean.
Source: LLVM's `cttz`, through numba's documented interface for intrinsics.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic


@intrinsic
def _trailing_zeros_intrinsic(typing_context, word):
    """Return the place of the lowest bit that is set."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(word), generate


trailing_zeros: Any = _trailing_zeros_intrinsic
"""The place of the lowest set bit of a uint64 that is not 0."""
