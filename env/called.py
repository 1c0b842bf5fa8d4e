"""Calls through an address: heavy functions that are not compiled again into each that calls them.

numba links all that a function calls into the function's own module and optimises it there anew,
so along a chain of calls the deepest function is compiled as often as the chain is long. What is
called through its address is compiled once, and only where somebody asks for the address. A call
costs some nanoseconds, so these are functions that do much or are called seldom. They take a record
of addresses, which may carry their own, and return nothing.

Does not know: what the functions do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, from_dtype, types
from numba.extending import intrinsic

_compiled: dict[Callable[..., None], Any] = {}


def address_of(
    function: Callable[..., None], handle_dtype: np.dtype, arguments: tuple[Any, ...]
) -> int:
    """Return the address of a function, compiled if it is not yet.

    `arguments` are numba's types of what it takes after the record.
    """
    if function not in _compiled:
        signature = types.none(from_dtype(handle_dtype), *arguments)
        _compiled[function] = cfunc(signature, cache=True, error_model="numpy")(function)
    return int(_compiled[function].address)


def _emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Call the address that comes first with the arguments behind it."""
    passed = [context.get_value_type(argument) for argument in signature.args[1:]]
    kind = ir.FunctionType(context.get_value_type(types.none), passed)
    function = builder.inttoptr(arguments[0], kind.as_pointer())
    builder.call(function, arguments[1:])
    return context.get_dummy_value()


@intrinsic
def _call_0_intrinsic(typing_context, address, record):
    return types.none(types.int64, record), _emit


@intrinsic
def _call_r_intrinsic(typing_context, address, record, r):
    return types.none(types.int64, record, types.int64), _emit


@intrinsic
def _call_s_intrinsic(typing_context, address, record, now_s):
    return types.none(types.int64, record, types.float64), _emit


@intrinsic
def _call_rs_intrinsic(typing_context, address, record, r, now_s):
    return types.none(types.int64, record, types.int64, types.float64), _emit


@intrinsic
def _call_rsb_intrinsic(typing_context, address, record, r, now_s, flag):
    return types.none(types.int64, record, types.int64, types.float64, types.boolean), _emit


# numba passes the first parameter itself, which type checkers cannot know.
call_0: Any = _call_0_intrinsic
"""Call an address with a record."""
call_r: Any = _call_r_intrinsic
"""The same with an integer behind it."""
call_s: Any = _call_s_intrinsic
"""The same with a float."""
call_rs: Any = _call_rs_intrinsic
"""The same with an integer and a float."""
call_rsb: Any = _call_rsb_intrinsic
"""The same with an integer, a float and a flag."""
