"""Gathers the samples of a rack between two ticks, and refuses values that cannot be.

Does not know: which frames are to be taken (`aggregator.py`), or what the signals mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.compiled import compiled
from .raw_window import RawArray, RawWindow
from .signals import SIGNALS_BY_SCOPE, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of the values of a sample."""

    num_values: int
    num_not_finite: int
    num_out_of_range: int
    num_repeated: int
    """Equal to the sample before, to the last bit."""


class WindowRecorder:
    """The window of a rack's samples that is being filled.

    Shapes (S servers, E entities of the largest server, K signals): blocks [E, K].
    """

    def __init__(self, num_servers: int, num_entities: Mapping[Scope, int]) -> None:
        shapes = {
            scope: (num_servers, num_entities[scope], len(signals))
            for scope, signals in SIGNALS_BY_SCOPE.items()
        }
        self._low = {s: _bounds([x.low for x in SIGNALS_BY_SCOPE[s]]) for s in shapes}
        self._high = {s: _bounds([x.high for x in SIGNALS_BY_SCOPE[s]]) for s in shapes}
        self._last = {scope: _absent(shape) for scope, shape in shapes.items()}
        self._previous = {scope: _absent(shape) for scope, shape in shapes.items()}
        self._minimum = {scope: _absent(shape) for scope, shape in shapes.items()}
        self._maximum = {scope: _absent(shape) for scope, shape in shapes.items()}
        self._total = {scope: np.zeros(shape, np.float32) for scope, shape in shapes.items()}
        self._count = {scope: np.zeros(shape, np.float32) for scope, shape in shapes.items()}
        self._last_at_s = np.full(num_servers, np.nan)
        self._previous_at_s = np.full(num_servers, np.nan)
        self.is_new: NDArray[np.bool_] = np.zeros(num_servers, np.bool_)
        """[S]: servers with a sample in the window."""

    def add(self, server: int, blocks: Mapping[Scope, RawArray], at_s: float) -> Taken:
        """Take the sample of a server; values that cannot be become absent."""
        is_first = not self.is_new[server]
        values = np.zeros(4, np.int64)
        for scope, block in blocks.items():
            _take(
                block,
                self._low[scope],
                self._high[scope],
                self._last[scope][server],
                self._minimum[scope][server],
                self._maximum[scope][server],
                self._total[scope][server],
                self._count[scope][server],
                is_first,
                values,
            )
        self.is_new[server] = True
        self._last_at_s[server] = at_s
        return Taken(
            num_values=int(values[0]),
            num_not_finite=int(values[1]),
            num_out_of_range=int(values[2]),
            num_repeated=int(values[3]),
        )

    def forget(self, server: int) -> None:
        """A server's counters begin anew: what came before says nothing of them."""
        for scope in self._last:
            self._last[scope][server] = np.nan
            self._previous[scope][server] = np.nan
        self._previous_at_s[server] = np.nan
        self._last_at_s[server] = np.nan
        self.is_new[server] = False

    def window(self) -> RawWindow:
        """Return what came since `begin`; its arrays are good until then."""
        mean = {}
        for scope, count in self._count.items():
            mean[scope] = np.empty_like(self._total[scope])
            _mean(self._total[scope], count, self._last[scope], self.is_new, mean[scope])
        return RawWindow(
            last=self._last,
            minimum=self._minimum,
            maximum=self._maximum,
            mean=mean,
            previous_last=self._previous,
            last_at_s=self._last_at_s,
            previous_at_s=self._previous_at_s,
        )

    def begin(self) -> None:
        """Begin the next window."""
        for scope, last in self._last.items():
            np.copyto(self._previous[scope], last)
        np.copyto(self._previous_at_s, self._last_at_s)
        self.is_new[:] = False


def _absent(shape: tuple[int, ...]) -> RawArray:
    return np.full(shape, np.nan, np.float32)


def _bounds(values: list[float]) -> RawArray:
    return np.array(values, np.float32)


@compiled
def _take(block, low, high, last, minimum, maximum, total, count, is_first, numbers):
    """Take a block of one server; `numbers`: values, not finite, out of range, repeated."""
    for e in range(block.shape[0]):
        for k in range(block.shape[1]):
            value = block[e, k]
            if is_first:
                minimum[e, k] = np.nan
                maximum[e, k] = np.nan
                total[e, k] = 0.0
                count[e, k] = 0.0
            if np.isinf(value):
                numbers[1] += 1
                value = np.float32(np.nan)
            elif value < low[k] or value > high[k]:
                numbers[2] += 1
                value = np.float32(np.nan)
            if not np.isnan(value):
                numbers[0] += 1
                numbers[3] += last[e, k] == value
                total[e, k] += value
                count[e, k] += 1.0
                if not minimum[e, k] <= value:
                    minimum[e, k] = value
                if not maximum[e, k] >= value:
                    maximum[e, k] = value
            last[e, k] = value


@compiled
def _mean(total, count, last, is_new, mean):
    """Fill the means of servers with a sample; the others keep their last value."""
    for s in range(total.shape[0]):
        for e in range(total.shape[1]):
            for k in range(total.shape[2]):
                if not is_new[s]:
                    mean[s, e, k] = last[s, e, k]
                elif count[s, e, k] > 0:
                    mean[s, e, k] = total[s, e, k] / count[s, e, k]
                else:
                    mean[s, e, k] = np.nan
