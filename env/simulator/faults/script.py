"""Trouble at known moments: drills, and scenarios whose answer is known.

Does not know: trouble that is drawn at random (`drawing.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..layout import (
    CRASH,
    DIE,
    EVENT_DTYPE,
    KV_LOSS,
    NOTICE,
    PAGE_FROZEN,
    PAGE_LOST,
    RESTART,
    STALL,
)


class Drill(Enum):
    """What may be made to happen to a replica, with the number of its event."""

    CRASH = CRASH  # it is down, and the gateway sees its connections break
    DIE = DIE  # it is down, and nobody notices before its CRASH
    RESTART = RESTART  # it is up again
    NOTICE = NOTICE  # the gateway sends it nothing new
    STALL = STALL  # no iteration for `value` s
    KV_LOSS = KV_LOSS  # `value` of its KV pages cannot be had, 0: all are back
    PAGE_LOST = PAGE_LOST  # its metrics page cannot be read: 1 from here on, 0 no more
    PAGE_FROZEN = PAGE_FROZEN  # its metrics page stands still: 1 from here on, 0 no more


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedTrouble:
    """One thing that happens to one replica.

    Raises:
        ValueError: the moment is not a time, or the replica is below 0.
    """

    at_s: float
    drill: Drill
    replica: int
    value: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.at_s < np.inf or self.replica < 0:
            msg = f"scripted trouble must be at a moment from 0 on, at a replica, got {self}"
            raise ValueError(msg)


def script_events(script: Sequence[ScriptedTrouble], num_replicas: int) -> np.ndarray:
    """Return the events of a script, EVENT_DTYPE [n].

    Raises:
        ValueError: it is about a replica that is not there.
    """
    for one in script:
        if one.replica >= num_replicas:
            msg = f"scripted trouble is at replica {one.replica}, but there are {num_replicas}"
            raise ValueError(msg)
    rows = [(one.at_s, one.drill.value, one.replica, one.value) for one in script]
    return np.array(rows, dtype=EVENT_DTYPE)
