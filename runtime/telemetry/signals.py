"""Every raw signal that a probe may send, and its place in a frame.

Does not know: how a signal is read (`probes/`), what is derived from it (`derivation.py`), or how
a frame is packed (`frames.py`).
"""

import hashlib
import json
from functools import cache

from .gpu_signals import GPU_SIGNALS
from .raw_signal import Kind, Scope, Signal
from .replica_signals import REPLICA_SIGNALS
from .server_signals import SERVER_SIGNALS

__all__ = [
    "SIGNALS",
    "SIGNALS_BY_SCOPE",
    "Kind",
    "Scope",
    "Signal",
    "num_values",
    "signal_index",
    "signals_hash",
]

SIGNALS_BY_SCOPE: dict[Scope, tuple[Signal, ...]] = {
    Scope.SERVER: SERVER_SIGNALS,
    Scope.GPU: GPU_SIGNALS,
    Scope.REPLICA: REPLICA_SIGNALS,
}
"""The signals of each scope, in the order of their columns in frames."""

SIGNALS: tuple[Signal, ...] = tuple(
    signal for signals in SIGNALS_BY_SCOPE.values() for signal in signals
)

_COLUMNS = {
    scope: {signal.name: column for column, signal in enumerate(signals)}
    for scope, signals in SIGNALS_BY_SCOPE.items()
}


def signal_index(scope: Scope, name: str) -> int:
    """Return the column of a signal.

    Raises: ValueError if the scope has no such signal.
    """
    try:
        return _COLUMNS[scope][name]
    except KeyError:
        known = ", ".join(sorted(_COLUMNS[scope]))
        msg = f"{scope} has no signal {name!r}; expected one of {known}"
        raise ValueError(msg) from None


def num_values(*, num_gpus: int, num_replicas: int) -> int:
    """Return how many values a sample of a server holds."""
    return len(SERVER_SIGNALS) + num_gpus * len(GPU_SIGNALS) + num_replicas * len(REPLICA_SIGNALS)


@cache
def signals_hash() -> str:
    """Return what changes when frames of two versions must not be mixed.

    Two tables with the same hash have the same columns, with the same meaning and range.
    """
    columns = [
        [signal.scope, signal.name, signal.kind, signal.unit, signal.low, signal.high]
        for signal in SIGNALS
    ]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:16]
