"""Small arithmetic on the path of every request: logarithms, bytes eight at a time, addresses.

`quick_log` and `quick_exp` are off by less than 2e-5, of the unit (log) or of the result (exp);
LLVM does several at a time. A record passed to a compiled function as one address costs a tenth of
what NumPy's own array of it does.

numba's cache does not notice a change in this file: what calls it from a file without a source tag
(`runtime/understanding/prompt_kernel.py`) must be touched, too.

Does not know: what the numbers mean.
Source: exponent and mantissa apart, the mantissa by an odd series of atanh (log) or Taylor (exp).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..env.compiled import inlined

_LN_2 = np.float32(0.6931471805599453)
_PER_LN_2 = np.float32(1.4426950408889634)
_SQRT_2_BITS = np.int32(0x3FB504F3)
_ONE_BITS = np.int32(0x3F800000)
# exp of what is beyond would leave the range of float32.
_MOST = np.float32(87.0)


@intrinsic
def _bits_intrinsic(typing_context, value):
    """Read a float32 as int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _float_intrinsic(typing_context, value):
    """Read an int32 as float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _pointer_intrinsic(typing_context, address):
    """Turn an integer address into a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _word_intrinsic(typing_context, address):
    """Read eight bytes at an address, wherever it lies, as uint64."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.int64), generate


@intrinsic
def _first_bit_intrinsic(typing_context, word):
    """Count the zero bits below the lowest bit that is set."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


# numba passes the first parameter itself, which type checkers cannot know.
_bits: Any = _bits_intrinsic
_float: Any = _float_intrinsic
pointer_to: Any = _pointer_intrinsic
"""Pointer to an address, for `numba.carray`; whoever has the address keeps the array alive."""
word_at: Any = _word_intrinsic
"""Eight bytes at an address, which need not be a multiple of eight."""
first_bit: Any = _first_bit_intrinsic
"""Place of the lowest bit of a uint64 that is set, 64 if none is."""


# A byte of 1, and of 128, in each of a word's bytes.
ONES, HIGH = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)


@inlined
def at_least(sevens, least):
    """Return the high bit of each byte of a word that is at least so much; all are below 128."""
    return (sevens + np.uint64(128 - least) * ONES) & HIGH


@inlined
def equal_to(sevens, value):
    """Return the high bit of each byte of a word that is equal; all are below 128."""
    return ~((sevens ^ (np.uint64(value) * ONES)) + np.uint64(127) * ONES) & HIGH


@inlined
def letters_in(word):
    """Return the high bit of each byte of a word that is an ASCII letter."""
    lower = (word & ~HIGH) | np.uint64(32) * ONES
    return at_least(lower, 97) & ~at_least(lower, 123) & ~word


@inlined
def quick_log(value):
    """Return the natural logarithm of a positive float32 that is not subnormal."""
    bits = _bits(np.float32(value))
    exponent = (bits - _SQRT_2_BITS) >> np.int32(23)
    # m in [sqrt(1/2), sqrt(2))
    m = _float(np.int32(bits - (exponent + np.int32(1) << np.int32(23))))
    s = (m - np.float32(1.0)) / (m + np.float32(1.0))
    z = s * s
    series = np.float32(2.0) + z * (
        np.float32(0.6666666) + z * (np.float32(0.4) + z * np.float32(0.2857142))
    )
    return np.float32(exponent + np.int32(1)) * _LN_2 + s * series


@inlined
def quick_exp(value):
    """Return e to a float32; at the ends of the range for what is beyond."""
    x = min(max(np.float32(value), -_MOST), _MOST) * _PER_LN_2
    whole = np.floor(x + np.float32(0.5))
    r = (x - whole) * _LN_2
    series = np.float32(1.0) + r * (
        np.float32(1.0)
        + r
        * (
            np.float32(0.5)
            + r
            * (np.float32(0.16666667) + r * (np.float32(0.041666667) + r * np.float32(0.0083333)))
        )
    )
    return series * _float(np.int32(_ONE_BITS + (np.int32(whole) << np.int32(23))))
