"""What goes wrong between simulated probes and their aggregator, and how often it was made to.

A probe's frame has one fate at a time, and a few good frames between two bad ones, so that what an
aggregator should count is known exactly: it stands in `SimulatedProbes.injected`.

Does not know: what is in a frame, or how an aggregator takes it.
"""

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Fate(IntEnum):
    """What becomes of one frame."""

    DELIVERED = 0
    LOST = 1
    DUPLICATED = 2
    DELAYED = 3  # until after the next one
    TORN = 4  # delivered, and a broken copy of it before
    OTHER_SCHEMA = 5  # delivered, and before it one of another version
    INFINITE = 6  # one value is infinite
    IMPOSSIBLE = 7  # one value is far outside of its range
    RESTARTED = 8  # the probe stops, and starts again a few periods later


# Rounds between two bad frames of a probe: a delayed frame must find its successor in order.
_REST_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRates:
    """Share of frames that meet each fate, and how many probes lie."""

    lost_frac: float = 0.001
    duplicated_frac: float = 0.0005
    delayed_frac: float = 0.0005
    torn_frac: float = 0.0002
    other_schema_frac: float = 0.0001
    infinite_frac: float = 0.0002
    impossible_frac: float = 0.0002
    restarted_frac: float = 0.00005
    num_frozen: int = 1
    """Probes that send the same values for ever."""
    num_false_clocks: int = 1
    """Probes whose answers to pings jump about by seconds."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value < 0 or (item.name.endswith("_frac") and value > 1):
                msg = f"{item.name} must be a share or a count, got {value}"
                raise ValueError(msg)
        if sum(self.shares) > 1:
            msg = f"shares of fates must add up to at most 1, got {sum(self.shares)}"
            raise ValueError(msg)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares by fate, in the order of `Fate`, DELIVERED left out."""
        return tuple(getattr(self, f"{fate.name.lower()}_frac") for fate in Fate if fate)


NO_FAULTS = FaultRates(**{item.name: 0 for item in fields(FaultRates)})
"""Everything arrives once, in order and whole, and no probe lies."""


class Fates:
    """Draws the fate of every probe's next frame."""

    def __init__(self, num_probes: int, rng: np.random.Generator, rates: FaultRates) -> None:
        self._rng = rng
        self._bounds = np.cumsum(rates.shares)
        self._rest = np.zeros(num_probes, dtype=np.int64)

    def draw(self) -> NDArray[np.int64]:
        """Return a fate for each probe, [probes]."""
        place = np.searchsorted(self._bounds, self._rng.random(len(self._rest)), side="right")
        fates = np.where(place < len(self._bounds), place + 1, Fate.DELIVERED)
        fates[self._rest > 0] = Fate.DELIVERED
        self._rest = np.where(fates == Fate.DELIVERED, self._rest - 1, _REST_ROUNDS)
        np.maximum(self._rest, 0, out=self._rest)
        return fates.astype(np.int64)

    def rest(self, probe: int) -> None:
        """Let a probe's next frames be."""
        self._rest[probe] = _REST_ROUNDS
