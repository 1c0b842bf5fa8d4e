"""Alarms of breakers: what they say, and the queue from which they are taken a few at a time.

Does not know: when a breaker opens, or where alarms go (`runtime/breakers`).
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .alarm import Alarm, Severity
from .breaker_board import BreakerBoard
from .breaker_kernel import CLOSED
from .breaker_rules import BreakerRule, value_text


@dataclass(slots=True, eq=False)
class _Batch:
    """Alarms of one moment that are not told yet."""

    board: BreakerBoard
    transitions: np.ndarray
    is_held: NDArray[np.bool_]
    at_s: float
    num_taken: int = 0


class AlarmQueue:
    """Alarms in order; their words are found when they are taken."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque()

    def put(
        self, board: BreakerBoard, transitions: np.ndarray, is_held: NDArray[np.bool_], at_s: float
    ) -> None:
        """Add the alarms of transitions, which open or close breakers.

        Shapes: `transitions` TRANSITION_DTYPE and `is_held`, whether there was no room to bar, [A].
        """
        if transitions.size:
            self._batches.append(_Batch(board, transitions, is_held, at_s))

    def take(self, most: int) -> tuple[Alarm, ...]:
        """Return the next alarms, oldest first."""
        alarms: list[Alarm] = []
        while self._batches and len(alarms) < most:
            batch = self._batches[0]
            end = batch.num_taken + most - len(alarms)
            taken = slice(batch.num_taken, end)
            pairs = zip(batch.transitions[taken].tolist(), batch.is_held[taken], strict=True)
            alarms += [_alarm(batch, transition, bool(is_held)) for transition, is_held in pairs]
            batch.num_taken = end
            if end >= batch.transitions.size:
                self._batches.popleft()
        return tuple(alarms)


def _alarm(batch: _Batch, transition: tuple[int, int, int, int, float], is_held: bool) -> Alarm:
    row, number, _, after, value = transition
    rule, is_resolved = batch.board.rules[number], after == CLOSED
    place = f"{batch.board.node} {batch.board.names[row]}"
    text = _end_text(rule, value) if is_resolved else _begin_text(rule, value, is_held)
    return Alarm(
        name=rule.name,
        severity=Severity.WARNING if rule.severity is Severity.NONE else rule.severity,
        place=place,
        sentence=f"{place}: {text}",
        at_s=batch.at_s,
        is_resolved=is_resolved,
        value=value if np.isfinite(value) else None,
        threshold=rule.threshold,
    )


def _begin_text(rule: BreakerRule, value: float, is_held: bool) -> str:
    text = f"{rule.metric} is {value_text(rule.feature, value)}, {rule.condition()}"
    if is_held:
        return (
            f"{text}; nothing is barred, as more than {rule.max_open_frac:.0%} of a model's "
            "replicas would be"
        )
    return f"{text}; {rule.consequence()}"


def _end_text(rule: BreakerRule, value: float) -> str:
    if not np.isfinite(value):
        return f"rule '{rule.name}' is gone, and its breaker with it"
    return f"{rule.metric} is {value_text(rule.feature, value)} again, not {rule.condition()}"
