"""What a raw signal is: one number that a probe reads, before anything is derived from it.

A `COUNTER` is folded: the probe sends what was counted modulo `high`, because a frame holds
32-bit floats, in which a counter that only grows soon loses the step of one window. The step
between two floats below `high` is `high / 2**24`; each `high` is chosen so that a busy window is
still measured to about a percent. Whoever makes a rate of two readings takes a fall for a start
from zero, be it a restart or a fold, and has no rate for that window.

Does not know: which signals there are (`signals.py`), or how they are read (`probes/`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ...env.state.feature import Live


class Scope(StrEnum):
    """What a signal is about. A frame holds one block of signals for each scope."""

    SERVER = "server"
    GPU = "gpu"
    REPLICA = "replica"


class Kind(StrEnum):
    """How a signal moves."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One number of a server, a GPU or a replica."""

    name: str
    scope: Scope
    kind: Kind
    unit: str
    low: float
    """Least that makes sense; a reading below it is refused."""
    high: float
    """Most that makes sense; a counter is folded at it, so that its readings stay below."""
    source: Mapping[Live, str] = field(hash=False)
    """Who can be asked, and what for."""


SignalMaker = Callable[..., Signal]


def signal_maker(scope: Scope) -> SignalMaker:
    """Return what makes the signals of one scope, as their tables write them."""

    def make(
        name: str,
        unit: str,
        high: float,
        source: Mapping[Live, str],
        *,
        kind: Kind = Kind.GAUGE,
        low: float = 0.0,
    ) -> Signal:
        return Signal(
            name=name, scope=scope, kind=kind, unit=unit, low=low, high=high, source=source
        )

    return make
