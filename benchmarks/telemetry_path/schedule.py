"""Frames of a simulated fleet, made ahead of time so that making them costs a run nothing.

Does not know: aggregators; `Schedule.advance` hands out what arrives, whoever asks.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.runtime.telemetry.signals import Scope
from trimtab.runtime.telemetry.simulated.layout import SimulatedLayout
from trimtab.runtime.telemetry.simulated.network import Delivery
from trimtab.runtime.telemetry.simulated_probes import FleetShape, SimulatedProbes

# s at the end in which nothing goes wrong, so that every loss is seen by its gap
CALM_S = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRound:
    """What the machines of some servers showed in one round."""

    sampled_at_s: NDArray[np.float64]
    blocks: dict[Scope, NDArray[np.float32]]


class Schedule:
    """A run's frames in the order of their arrival, and what the recorded servers truly showed."""

    def __init__(
        self,
        layout: SimulatedLayout,
        seconds: float,
        *,
        shape: FleetShape | None = None,
        recorded: range | None = None,
        seed: int = 0,
    ) -> None:
        self.seconds = seconds
        self.probes = SimulatedProbes(layout, shape, seed)
        self.recorded = recorded or layout.servers_of(0)
        self.rounds: list[RecordedRound] = []
        started_s = time.process_time()
        self._deliveries = self._made(seconds)
        self.cpu_s = time.process_time() - started_s
        """What it took to make the frames."""
        samples = [d for d in self._deliveries if ".sample." in d.subject]
        self.num_frames = len(samples)
        self.raw_bytes = sum(len(d.body) for d in samples)
        self._next = 0

    def _made(self, seconds: float) -> list[Delivery]:
        period_s, deliveries = self.probes.shape.period_s, []
        for k in range(round(seconds / period_s)):
            if k * period_s >= seconds - CALM_S:
                self.probes.calm()
            deliveries += self.probes.advance((k + 1) * period_s)
            truth = self.probes.truth
            if truth is not None:
                rows = slice(self.recorded.start, self.recorded.stop)
                blocks = {scope: block[rows].copy() for scope, block in truth.blocks.items()}
                at_s = truth.sampled_at_s[rows]
                self.rounds.append(RecordedRound(sampled_at_s=at_s, blocks=blocks))
        return deliveries

    def advance(self, until_s: float) -> list[Delivery]:
        """Return the frames that arrive until a moment, answers to pings among them."""
        first = self._next
        while (
            self._next < len(self._deliveries)
            and self._deliveries[self._next].arrives_at_s <= until_s
        ):
            self._next += 1
        answers = self.probes.advance(min(until_s, self.seconds))
        if not answers:
            return self._deliveries[first : self._next]
        return sorted([*self._deliveries[first : self._next], *answers])
