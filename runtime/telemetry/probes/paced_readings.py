"""Decides which of many readings are taken in a sample, so that a sample never takes too long.

Each reading has a period. Due readings are taken in the order in which they fell due, until the
time of the sample is used up; the rest come first in the next one. A reading that takes more than
a tenth of its period (of a sample's time, if it is taken in every sample) is taken less often.
Between two readings the last values hold.

Does not know: what is read (`nvml.py`), or what a value means.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .probe import FloatArray

_LOG = logging.getLogger(__name__)
# A reading may take this share of the time.
_MAX_SHARE = 0.1
# From the loss of a device to the next attempt to read it.
_RETRY_LOST_S = 10.0
# Values hold for so many periods of their reading, and at least this long.
_HOLD_PERIODS = 3.0
_HOLD_S = 1.0


class ReadingError(Exception):
    """A value could not be read this time."""


class UnsupportedError(ReadingError):
    """A value can never be read here: do not ask again."""


class LostError(ReadingError):
    """The whole device can no longer be read."""

    def __init__(self, detail: str, values: Mapping[int, float]) -> None:
        self.values = values
        """What the loss itself says, by column."""
        super().__init__(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One call to a device, which yields one or more values of a row."""

    name: str
    row: int
    period_s: float
    """Least time from one call to the next; 0: in every sample."""
    read: Callable[[], Mapping[int, float] | None]
    """Returns values by column, or None where the last ones still hold.

    Raises: ReadingError.
    """


@dataclass(slots=True)
class _Paced:
    reading: Reading
    due_at_s: float
    period_s: float
    cost_s: float = 0.0
    values: Mapping[int, float] = field(default_factory=dict)
    read_at_s: float = -np.inf
    is_slow: bool = False

    def hold_s(self) -> float:
        return max(_HOLD_S, _HOLD_PERIODS * self.period_s)


class PacedReadings:
    """The readings of several devices, each a row of a matrix."""

    def __init__(
        self,
        readings: Iterable[Reading],
        *,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_s = budget_s
        self._clock = clock
        now_s = clock()
        self._paced = [
            _Paced(reading=reading, due_at_s=now_s, period_s=reading.period_s)
            for reading in readings
        ]
        self._lost: dict[int, Mapping[int, float]] = {}
        self.num_failed = 0
        """Readings that failed for the moment."""
        self.num_deferred = 0
        """Readings that were due and had to wait for the next sample."""

    def sample(self, matrix: FloatArray) -> None:
        """Take the readings that are due, and write what is known into the matrix, in place.

        Shapes: [rows, columns].
        """
        started_at_s = self._clock()
        due = sorted(
            (paced for paced in self._paced if paced.due_at_s <= started_at_s),
            key=lambda paced: paced.due_at_s,
        )
        for i, paced in enumerate(due):
            spent_s = self._clock() - started_at_s
            if i and spent_s + paced.cost_s > self._budget_s:
                self.num_deferred += len(due) - i
                break
            if paced.due_at_s <= started_at_s:  # not put off by a loss in this very sample
                self._take(paced)
        self._write(matrix, self._clock())

    def _take(self, paced: _Paced) -> None:
        reading = paced.reading
        began_at_s = self._clock()
        paced.due_at_s = began_at_s + paced.period_s
        try:
            values = reading.read()
        except UnsupportedError as error:
            self._paced.remove(paced)
            _LOG.info("%s is not read: %s", reading.name, error)
            return
        except LostError as error:
            self._lose(reading.row, error, began_at_s)
            return
        except ReadingError:
            self.num_failed += 1
            paced.values = {}
            return
        finally:
            self._pace(paced, self._clock() - began_at_s)
        self._lost.pop(reading.row, None)
        if values is not None:
            paced.values, paced.read_at_s = values, began_at_s

    def _pace(self, paced: _Paced, took_s: float) -> None:
        paced.cost_s = took_s if paced.cost_s == 0 else (paced.cost_s + took_s) / 2
        if took_s > self._budget_s and not paced.is_slow:
            paced.is_slow = True
            _LOG.warning(
                "%s took %.1f ms, a whole sample may take %.1f ms: it is read less often",
                paced.reading.name, took_s * 1e3, self._budget_s * 1e3,
            )  # fmt: skip
        if paced.cost_s > _MAX_SHARE * max(paced.reading.period_s, self._budget_s):
            paced.period_s = max(paced.reading.period_s, paced.cost_s / _MAX_SHARE)
        else:
            paced.period_s = paced.reading.period_s

    def _lose(self, row: int, error: LostError, now_s: float) -> None:
        if row not in self._lost:
            _LOG.warning("row %d is lost, next attempt in %.0f s: %s", row, _RETRY_LOST_S, error)
        self.num_failed += 1
        self._lost[row] = error.values
        for paced in self._paced:
            if paced.reading.row == row:
                paced.values = {}
                paced.due_at_s = now_s + _RETRY_LOST_S

    def _write(self, matrix: FloatArray, now_s: float) -> None:
        for row, values in self._lost.items():
            for column, value in values.items():
                matrix[row, column] = value
        for paced in self._paced:
            if now_s - paced.read_at_s <= paced.hold_s():
                for column, value in paced.values.items():
                    matrix[paced.reading.row, column] = value
