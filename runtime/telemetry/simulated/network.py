"""Frames on their way from simulated probes: each takes its own time, none blocks another.

Does not know: what is in a frame, or what goes wrong with it (`faults.py`).
"""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkShape:
    """How long frames travel."""

    least_s: float = 0.0002
    """At least; a data centre's network and its hosts' stacks."""
    jitter_s: float = 0.0005
    """Mean of what is added, exponentially distributed."""


class Delivery(NamedTuple):
    """A frame that arrives."""

    arrives_at_s: float
    """In hub time."""
    order: int
    """Of two that arrive at once, the one that was sent first."""
    subject: str
    rack: str
    body: bytes


class SimulatedNetwork:
    """Holds frames until they arrive."""

    def __init__(self, rng: np.random.Generator, shape: NetworkShape) -> None:
        self._rng = rng
        self._shape = shape
        self._on_the_way: list[Delivery] = []
        self._num_sent = 0

    def delays_s(self, number: int) -> NDArray[np.float64]:
        """Return how long some frames travel."""
        return self._shape.least_s + self._rng.exponential(self._shape.jitter_s, number)

    def send(self, arrives_at_s: float, subject: str, rack: str, body: bytes) -> None:
        """Let a frame arrive at a moment."""
        self._num_sent += 1
        delivery = Delivery(arrives_at_s, self._num_sent, subject, rack, body)
        heapq.heappush(self._on_the_way, delivery)

    def arrived(self, until_s: float) -> list[Delivery]:
        """Return the frames that arrive until a moment, in order."""
        arrived = []
        while self._on_the_way and self._on_the_way[0].arrives_at_s <= until_s:
            arrived.append(heapq.heappop(self._on_the_way))
        return arrived
