"""Calls through an address: heavy functions that are not compiled again into each that calls them.

numba links all that a function calls into the function's own module and optimises it there anew,
so along a chain of calls the deepest function is compiled as often as the chain is long. What is
`called_as` one of the names below is compiled once; the handle of the arrays carries its address.
A call costs some nanoseconds, so these are functions that do much or are called seldom.

Does not know: what the functions do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, from_dtype, types
from numba.extending import intrinsic

from ..compiled import compiled

# What each takes after the record of addresses; none returns anything.
_ARGUMENTS = {
    "admit": (types.int64,),
    "advance": (types.int64, types.float64, types.boolean),
    "dispatch": (types.int64, types.float64),
    "follow_up": (types.float64,),
    "look_ahead": (types.int64, types.float64),
    "preempt_one": (types.int64,),
    "settle": (types.int64,),
    "settle_freeze": (types.int64,),
    "take_actions": (types.float64,),
    "take_event": (),
}
CALLED = tuple(_ARGUMENTS)
"""Names of the functions; the handle has a field `call_<name>` for each."""

_functions: dict[str, Callable[..., None]] = {}
_compiled: dict[str, Any] = {}


def called_as(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function the one behind a name."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _functions[name] = function
        return function

    return register


def address_of(name: str, handle_dtype: np.dtype) -> int:
    """Return the address of a function, compiled if it is not yet."""
    if name not in _compiled:
        arguments = (from_dtype(handle_dtype), *_ARGUMENTS[name])
        decorate = cfunc(types.none(*arguments), cache=True, error_model="numpy")
        _compiled[name] = decorate(_functions[name])
    return int(_compiled[name].address)


def _emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Call the address that comes first with the arguments behind it."""
    passed = [context.get_value_type(argument) for argument in signature.args[1:]]
    kind = ir.FunctionType(context.get_value_type(types.none), passed)
    function = builder.inttoptr(arguments[0], kind.as_pointer())
    builder.call(function, arguments[1:])
    return context.get_dummy_value()


@intrinsic
def _call_0_intrinsic(typing_context, address, sim):
    return types.none(types.int64, sim), _emit


@intrinsic
def _call_r_intrinsic(typing_context, address, sim, r):
    return types.none(types.int64, sim, types.int64), _emit


@intrinsic
def _call_s_intrinsic(typing_context, address, sim, now_s):
    return types.none(types.int64, sim, types.float64), _emit


@intrinsic
def _call_rs_intrinsic(typing_context, address, sim, r, now_s):
    return types.none(types.int64, sim, types.int64, types.float64), _emit


@intrinsic
def _call_rsb_intrinsic(typing_context, address, sim, r, now_s, flag):
    return types.none(types.int64, sim, types.int64, types.float64, types.boolean), _emit


# numba passes the first parameter itself, which type checkers cannot know.
_call_0: Any = _call_0_intrinsic
_call_r: Any = _call_r_intrinsic
_call_s: Any = _call_s_intrinsic
_call_rs: Any = _call_rs_intrinsic
_call_rsb: Any = _call_rsb_intrinsic


@compiled
def admit(sim, r):
    """Call `admission.admit`."""
    _call_r(sim.call_admit, sim, r)


@compiled
def advance(sim, r, until_s, is_partial):
    """Call `replica.advance`."""
    _call_rsb(sim.call_advance, sim, r, until_s, is_partial)


@compiled
def dispatch(sim, index, now_s):
    """Call `gateway.dispatch`."""
    _call_rs(sim.call_dispatch, sim, index, now_s)


@compiled
def follow_up(sim, now_s):
    """Call `cluster_loop.follow_up`."""
    _call_s(sim.call_follow_up, sim, now_s)


@compiled
def look_ahead(sim, index, now_s):
    """Call `lookahead.look_ahead`."""
    _call_rs(sim.call_look_ahead, sim, index, now_s)


@compiled
def preempt_one(sim, r):
    """Call `admission.preempt_one`."""
    _call_r(sim.call_preempt_one, sim, r)


@compiled
def settle(sim, r):
    """Call `handoff.settle`."""
    _call_r(sim.call_settle, sim, r)


@compiled
def settle_freeze(sim, r):
    """Call `freeze.settle_freeze`."""
    _call_r(sim.call_settle_freeze, sim, r)


@compiled
def take_actions(sim, now_s):
    """Call `cluster_loop.take_actions`."""
    _call_s(sim.call_take_actions, sim, now_s)


@compiled
def take_event(sim):
    """Call `fleet_loop.take_event`."""
    _call_0(sim.call_take_event, sim)


__all__ = [
    "CALLED",
    "address_of",
    "admit",
    "advance",
    "called_as",
    "dispatch",
    "follow_up",
    "look_ahead",
    "preempt_one",
    "settle",
    "settle_freeze",
    "take_actions",
    "take_event",
]
