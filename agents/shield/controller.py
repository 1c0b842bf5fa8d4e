"""The instantaneous response controller: triggers to emergency actions, on and off, compiled.

Each action at each place is a state machine: at rest, active, cooling down. It begins when one of
its triggers fires and its precondition holds, and ends when its triggers have been quiet for a
while or its time is over, whichever comes first; then it rests for its cool-down. So it lasts no
longer than its bound, is undone exactly once, and cannot go on and off faster than its cool-down.

Does not know: how signals are read, or how a fleet carries actions out.
"""

from typing import NamedTuple

import numpy as np

from ...env.compiled import compiled
from .detector import Detector, detect, make_detector
from .emergency_rules import (
    DEFAULT_RULES,
    EmergencyRule,
    Precondition,
    rule_records,
)
from .trigger_levels import TriggerLevels

_AT_REST, _ACTIVE, _COOLING = 0, 1, 2

MACHINE_DTYPE = np.dtype(
    [
        ("state", np.int64),
        ("until_s", np.float64),  # end of its time, or of its cool-down
        ("quiet_from_s", np.float64),  # since when its triggers are quiet, infinity: they hold
        ("unmet_until_s", np.float64),  # a precondition that is not met is not counted again
    ]
)

TRANSITION_DTYPE = np.dtype(
    [
        ("at_s", np.float64),
        ("kind", np.int64),  # place in `Emergency`
        ("replica", np.int64),  # -1: the whole fleet
        ("is_on", np.int64),
        ("triggers", np.int64),  # that fired, at a beginning
    ]
)
_FLEET = -1
# Clocks add up ticks; a span may come out shorter by this.
_TINY_S = 1e-6

_SPILL_IS_UP = int(Precondition.SPILL_IS_UP)
_WAIT_IS_LONG = int(Precondition.WAIT_IS_LONG)
_HAS_NEIGHBOUR = int(Precondition.HAS_NEIGHBOUR)
# Share of the tightest TTFT limit from which the shortest queue is long.
_LONG_WAIT_FRAC = 0.25


class Controller(NamedTuple):
    """All that a tick reads and writes. K kinds of action, R replicas."""

    detector: Detector
    rules: np.ndarray  # RULE_DTYPE [K]
    machines: np.ndarray  # MACHINE_DTYPE [K, R]; those of the whole fleet use the first
    num_unmet: np.ndarray  # int64 [K], calls whose precondition was not met, one a cool-down
    transitions: np.ndarray  # TRANSITION_DTYPE [K * R], of the last tick


def make_controller(
    num_replicas: int,
    rules: tuple[EmergencyRule, ...] = DEFAULT_RULES,
    levels: TriggerLevels | None = None,
) -> Controller:
    """Return a controller at rest."""
    shape = (len(rules), num_replicas)
    machines = np.zeros(shape, MACHINE_DTYPE)
    machines["unmet_until_s"] = -np.inf
    return Controller(
        detector=make_detector(num_replicas, levels),
        rules=rule_records(rules),
        machines=machines,
        num_unmet=np.zeros(len(rules), np.int64),
        transitions=np.zeros(shape[0] * shape[1], TRANSITION_DTYPE),
    )


@compiled
def _is_met(precondition, now, s):
    if precondition == _SPILL_IS_UP:
        return now.num_spill > 0
    if precondition == _WAIT_IS_LONG:
        return now.least_wait_s > _LONG_WAIT_FRAC * now.ttft_slo_s
    if precondition == _HAS_NEIGHBOUR:
        return s.has_neighbour != 0
    return True


@compiled
def _push(controller, kind, replica, is_on, triggers):
    memory = controller.detector.memory[0]
    row = controller.transitions[memory.num_transitions]
    memory.num_transitions += 1
    row.at_s = memory.now_s
    row.kind = kind
    row.replica = replica
    row.is_on = is_on
    row.triggers = triggers


@compiled
def _step(controller, kind, replica, place, triggers, is_met):
    """Move one machine on. `triggers` is (fires, holds) of its place."""
    rule, machine = controller.rules[kind], controller.machines[kind, place]
    now_s = controller.detector.memory[0].now_s
    fires, holds = triggers[0] & rule.triggers, triggers[1] & rule.triggers
    if machine.state == _COOLING and now_s >= machine.until_s:
        machine.state = _AT_REST
    if machine.state == _AT_REST:
        if fires != 0 and rule.is_on != 0:
            if is_met:
                machine.state = _ACTIVE
                machine.until_s = now_s + rule.max_s
                machine.quiet_from_s = np.inf
                _push(controller, kind, replica, 1, fires)
            elif now_s >= machine.unmet_until_s:
                machine.unmet_until_s = now_s + rule.cool_down_s
                controller.num_unmet[kind] += 1
    elif machine.state == _ACTIVE:
        if holds != 0:
            machine.quiet_from_s = np.inf
        else:
            machine.quiet_from_s = min(machine.quiet_from_s, now_s)
        is_over = now_s >= machine.until_s - _TINY_S
        if is_over or now_s - machine.quiet_from_s >= rule.quiet_s - _TINY_S:
            machine.state = _COOLING
            machine.until_s = now_s + rule.cool_down_s
            _push(controller, kind, replica, 0, 0)


@compiled
def tick(controller, fleet_signals, signals):
    """Take one moment in; return how many actions begin or end, as rows of `transitions`.

    Shapes: FLEET_SIGNAL_DTYPE [1], REPLICA_SIGNAL_DTYPE [R].
    """
    memory, detector, now = controller.detector.memory[0], controller.detector, fleet_signals[0]
    memory.num_transitions = 0
    if not detect(detector, fleet_signals, signals):
        return 0
    for kind in range(controller.rules.size):
        rule = controller.rules[kind]
        if rule.is_per_replica == 0:
            triggers = (memory.fires, memory.holds)
            is_met = _is_met(rule.precondition, now, signals[0])
            _step(controller, kind, _FLEET, 0, triggers, is_met)
            continue
        for r in range(signals.size):
            is_at_rest = controller.machines[kind, r].state == _AT_REST
            # Nearly always: nothing fires and nothing changes.
            if is_at_rest and (detector.fires[r] & rule.triggers) == 0:
                continue
            triggers = (detector.fires[r], detector.holds[r])
            is_met = _is_met(rule.precondition, now, signals[r])
            _step(controller, kind, r, r, triggers, is_met)
    return memory.num_transitions
