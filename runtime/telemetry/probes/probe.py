"""What a probe is: something that can be asked for all the signals of its server.

Does not know: what is asked (the modules beside it), when (`runner.py`), or how it is sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ....traces.errors import TrimtabError
from ..signals import SIGNALS_BY_SCOPE, Scope, signal_index

FloatArray = NDArray[np.float64]
Readings = dict[Scope, FloatArray]
"""By scope: [entities, signals], as the source gives them; NaN where absent, never 0 instead."""


class ProbeUnavailableError(TrimtabError):
    """What a probe would ask is not there on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """What a probe samples beside its server, in the order of the rows."""

    gpus: tuple[str, ...] = ()
    replicas: tuple[str, ...] = ()

    def num_rows(self, scope: Scope) -> int:
        """Return how many rows the readings of a scope have."""
        rows = {Scope.SERVER: 1, Scope.GPU: len(self.gpus), Scope.REPLICA: len(self.replicas)}
        return rows[scope]

    def absent(self) -> Readings:
        """Return readings in which nothing could be read."""
        return {
            scope: np.full((self.num_rows(scope), len(signals)), np.nan)
            for scope, signals in SIGNALS_BY_SCOPE.items()
        }


class Probe(Protocol):
    """Reads the signals of one server. Used from one thread at a time."""

    @property
    def members(self) -> Members:
        """What is sampled; the same for the life of the probe."""

    def sample(self) -> Readings:
        """Read every signal once; may block, at most for about the period of sampling."""

    def close(self) -> None:
        """Give back what the probe holds; may be called twice."""


def put(readings: Readings, scope: Scope, name: str, value: float, row: int = 0) -> None:
    """Set one value of the readings."""
    readings[scope][row, signal_index(scope, name)] = value


class JoinedProbe:
    """Several probes of one server as one: their GPUs and replicas one after another."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        if not probes:
            msg = "probes must hold at least one, got none"
            raise ValueError(msg)
        self._probes = tuple(probes)
        self._members = Members(
            gpus=tuple(name for probe in probes for name in probe.members.gpus),
            replicas=tuple(name for probe in probes for name in probe.members.replicas),
        )

    @property
    def members(self) -> Members:
        """GPUs and replicas of all."""
        return self._members

    def sample(self) -> Readings:
        """Read all; of a signal of the server that several give, the first one's counts."""
        parts = [probe.sample() for probe in self._probes]
        joined = {scope: np.concatenate([part[scope] for part in parts]) for scope in Scope}
        server = parts[0][Scope.SERVER]
        for part in parts[1:]:
            server = np.where(np.isnan(server), part[Scope.SERVER], server)
        joined[Scope.SERVER] = server
        return joined

    def close(self) -> None:
        """Close all."""
        for probe in self._probes:
            probe.close()
