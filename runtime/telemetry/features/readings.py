"""Features that are one statistic of one signal, over a constant where they are shares of one.

A node kind writes them as a literal table; `ReadingTable` fills all of them in a few passes.

Does not know: features that combine several signals (`gpu_features.py` and its neighbours).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import FEATURES_BY_NODE, column
from ..raw_window import RawWindow
from ..signals import SIGNALS_BY_SCOPE, Kind, Scope, signal_index
from .recent import RecentCounters


class Statistic(StrEnum):
    """What is taken of a signal's samples."""

    LAST = "last"
    MEAN = "mean"  # of the window
    MAXIMUM = "maximum"  # of the window
    RATE = "rate"  # of a counter, a second


@dataclass(frozen=True, slots=True)
class Reading:
    """A statistic of a signal, divided by a constant of the node."""

    statistic: Statistic
    signal: str
    per: str | None = None
    """Name of the constant; None: the signal's own unit."""


def last(signal: str, per: str | None = None) -> Reading:
    """Return the newest value of a signal."""
    return Reading(Statistic.LAST, signal, per)


def mean(signal: str, per: str | None = None) -> Reading:
    """Return the mean of a signal in the window."""
    return Reading(Statistic.MEAN, signal, per)


def most(signal: str, per: str | None = None) -> Reading:
    """Return the greatest value of a signal in the window."""
    return Reading(Statistic.MAXIMUM, signal, per)


def rate(signal: str, per: str | None = None) -> Reading:
    """Return by how much a counter grows a second."""
    return Reading(Statistic.RATE, signal, per)


Readings = Mapping[str, tuple[Reading, ...]]
"""By feature: where it is read, the best source first; the next is for where that is absent."""


class ScopeStatistics:
    """All statistics of a scope's signals in one window.

    Shapes: [servers, entities, signals]; rates keep their counters' columns, NaN in others.
    """

    def __init__(self, scope: Scope, shape: tuple[int, int]) -> None:
        signals = SIGNALS_BY_SCOPE[scope]
        self._scope = scope
        kinds = [signal.kind is Kind.COUNTER for signal in signals]
        self._counters: NDArray[np.intp] = np.flatnonzero(kinds)
        self._places = {signals[c].name: i for i, c in enumerate(self._counters)}
        self.recent = RecentCounters((*shape, len(self._counters)))
        self._rates = np.full((*shape, len(signals)), np.nan)
        self._window: RawWindow | None = None

    def take(self, window: RawWindow, passed_s: FloatArray) -> None:
        """Take a window; `passed_s` [servers, entities] is the time since the one before."""
        readings = window.last[self._scope][..., self._counters].astype(np.float64)
        before = window.previous_last[self._scope][..., self._counters].astype(np.float64)
        self.recent.add(readings, before, passed_s)
        self._rates[..., self._counters] = self.recent.rates()
        self._window = window

    def all_of(self, statistic: Statistic) -> NDArray[np.floating]:
        """Return a statistic of all signals."""
        if self._window is None:
            msg = "statistics must take a window before they are read"
            raise ValueError(msg)
        if statistic is Statistic.RATE:
            return self._rates
        statistics: NDArray[np.floating] = getattr(self._window, statistic)[self._scope]
        return statistics

    def of(self, reading: Reading) -> FloatArray:
        """Return one statistic of one signal, [servers, entities]."""
        values = self.all_of(reading.statistic)[..., signal_index(self._scope, reading.signal)]
        return values.astype(np.float64)

    def increments(self) -> dict[str, FloatArray]:
        """Return the faded increments of each counter by name, [servers, entities]."""
        increments = self.recent.increments()
        return {name: increments[..., place] for name, place in self._places.items()}


@dataclass(frozen=True, slots=True)
class _Pass:
    """Columns that are filled from one statistic in one go."""

    statistic: Statistic
    features: NDArray[np.intp]
    signals: NDArray[np.intp]
    divisors: FloatArray

    def read(self, statistics: ScopeStatistics) -> FloatArray:
        """Return the columns, [servers, entities, features of the pass]."""
        taken = statistics.all_of(self.statistic).take(self.signals, axis=-1)
        read: FloatArray = taken / self.divisors
        return read


class ReadingTable:
    """The readings of a node kind, as columns."""

    def __init__(
        self, node: Node, scope: Scope, readings: Readings, constants: Mapping[str, FloatArray]
    ) -> None:
        self._num_features = len(FEATURES_BY_NODE[node])
        ranks = max(map(len, readings.values()))
        self._first = _passes(node, scope, readings, constants, 0)
        self._otherwise = [
            one for k in range(1, ranks) for one in _passes(node, scope, readings, constants, k)
        ]

    def values(self, statistics: ScopeStatistics) -> FloatArray:
        """Return the features of the table in their columns, NaN in all others."""
        shape = statistics.all_of(Statistic.LAST).shape[:2]
        values = np.full((*shape, self._num_features), np.nan)
        for one in self._first:
            values[..., one.features] = one.read(statistics)
        for one in self._otherwise:
            read = one.read(statistics)
            so_far = values[..., one.features]
            values[..., one.features] = np.where(np.isnan(so_far), read, so_far)
        return values


def _passes(
    node: Node,
    scope: Scope,
    readings: Readings,
    constants: Mapping[str, FloatArray],
    rank: int,
) -> Sequence[_Pass]:
    passes = []
    for statistic in Statistic:
        chosen = {
            name: ranked[rank]
            for name, ranked in readings.items()
            if len(ranked) > rank and ranked[rank].statistic is statistic
        }
        if not chosen:
            continue
        divisors = [np.ones(1) if r.per is None else constants[r.per] for r in chosen.values()]
        passes.append(
            _Pass(
                statistic=statistic,
                features=np.array([column(node, name) for name in chosen]),
                signals=np.array([signal_index(scope, r.signal) for r in chosen.values()]),
                divisors=np.stack(np.broadcast_arrays(*divisors), axis=-1),
            )
        )
    return passes
