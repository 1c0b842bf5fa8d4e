"""The simulator's heavy functions by name, called through their address (`..called`).

What is `called_as` one of the names below is compiled once; the handle of the arrays carries its
address.

Does not know: what the functions do.
"""

from collections.abc import Callable

import numpy as np
from numba import types

from .. import called
from ..called import call_0, call_r, call_rs, call_rsb, call_s
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


def called_as(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function the one behind a name."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _functions[name] = function
        return function

    return register


def address_of(name: str, handle_dtype: np.dtype) -> int:
    """Return the address of a function, compiled if it is not yet."""
    return called.address_of(_functions[name], handle_dtype, _ARGUMENTS[name])


@compiled
def admit(sim, r):
    """Call `admission.admit`."""
    call_r(sim.call_admit, sim, r)


@compiled
def advance(sim, r, until_s, is_partial):
    """Call `replica.advance`."""
    call_rsb(sim.call_advance, sim, r, until_s, is_partial)


@compiled
def dispatch(sim, index, now_s):
    """Call `gateway.dispatch`."""
    call_rs(sim.call_dispatch, sim, index, now_s)


@compiled
def follow_up(sim, now_s):
    """Call `cluster_loop.follow_up`."""
    call_s(sim.call_follow_up, sim, now_s)


@compiled
def look_ahead(sim, index, now_s):
    """Call `lookahead.look_ahead`."""
    call_rs(sim.call_look_ahead, sim, index, now_s)


@compiled
def preempt_one(sim, r):
    """Call `admission.preempt_one`."""
    call_r(sim.call_preempt_one, sim, r)


@compiled
def settle(sim, r):
    """Call `handoff.settle`."""
    call_r(sim.call_settle, sim, r)


@compiled
def settle_freeze(sim, r):
    """Call `freeze.settle_freeze`."""
    call_r(sim.call_settle_freeze, sim, r)


@compiled
def take_actions(sim, now_s):
    """Call `cluster_loop.take_actions`."""
    call_s(sim.call_take_actions, sim, now_s)


@compiled
def take_event(sim):
    """Call `fleet_loop.take_event`."""
    call_0(sim.call_take_event, sim)


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
