"""A simulated fleet run with the response controller's tick in its loop, compiled.

It stops where an action begins or ends, so that whoever called may carry it out at that moment.

Does not know: what the actions do.
"""

from typing import NamedTuple

import numpy as np

from ...env.compiled import compiled
from ...env.simulator.fleet_loop import run_until
from ...env.simulator.memory import fleet_of
from .controller import Controller, tick
from .simulated_signals import begin_signals, read_signals

PACER_DTYPE = np.dtype(
    [
        ("next_tick_s", np.float64),
        ("tick_s", np.float64),
        ("num_ticks", np.int64),
        ("ticks_per_probe", np.int64),
    ]
)


class GuardedLoop(NamedTuple):
    """What a guarded run reads and writes beside the simulation."""

    controller: Controller
    fleet_signals: np.ndarray  # FLEET_SIGNAL_DTYPE [1]
    signals: np.ndarray  # REPLICA_SIGNAL_DTYPE [R]
    num_free: np.ndarray  # int64 [R], scratch
    pacer: np.ndarray  # PACER_DTYPE [1]


def make_loop(
    controller: Controller,
    arrays: tuple[np.ndarray, np.ndarray],
    *,
    tick_s: float,
    ticks_per_probe: int,
) -> GuardedLoop:
    """Return what a guarded run of a simulation at its start needs.

    Shapes: `arrays` are the signals, FLEET_SIGNAL_DTYPE [1] and REPLICA_SIGNAL_DTYPE [R].
    """
    fleet_signals, signals = arrays
    num_replicas = controller.detector.fires.size
    begin_signals(fleet_signals, signals)
    pacer = np.zeros(1, PACER_DTYPE)
    pacer[0] = (tick_s, tick_s, 0, ticks_per_probe)
    return GuardedLoop(
        controller=controller,
        fleet_signals=fleet_signals,
        signals=signals,
        num_free=np.zeros(num_replicas, np.int64),
        pacer=pacer,
    )


@compiled
def run_guarded(handle, loop, until_s):
    """Run up to a moment, or to the tick at which something calls for an answer.

    Return whether it does: actions that begin or end, or replicas that fell silent or spoke.
    """
    sim = handle[0]
    fleet, pacer, memory = fleet_of(sim), loop.pacer[0], loop.controller.detector.memory[0]
    while fleet.now_s < until_s:
        if pacer.next_tick_s > until_s:
            run_until(handle, until_s)
            break
        run_until(handle, pacer.next_tick_s)
        pacer.num_ticks += 1
        pacer.next_tick_s = pacer.tick_s * (pacer.num_ticks + 1)
        is_probing = pacer.num_ticks % pacer.ticks_per_probe == 0
        read_signals(sim, loop.fleet_signals, loop.signals, loop.num_free, is_probing)
        num_silences = memory.num_silences
        num_transitions = tick(loop.controller, loop.fleet_signals, loop.signals)
        if num_transitions > 0 or memory.num_silences != num_silences:
            return True
    return False
