"""What changed in a rack since the frame before, in few bytes, and the way back.

Values are codes: scaled values in steps (`cell_scales.py`). A cell is sent when it is more than
its dead band away from what the receiver has, so whatever the receiver has is within the dead
band, or half a step, of the value. A key is the change from a rack without any value: it needs no
frame before it. Both sides keep a check over all codes; a receiver whose check differs has lost
something, and knows nothing until the next key.

Does not know: frames and their order (`rack_frames.py`, the hub).
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import FloatArray
from . import delta_kernel
from .cell_scales import ABSENT, STEP, CellScales, CodeArray, Float32Array, scaled_range

_LEVEL: Final = 1
"""Of zlib: more takes several times as long for a few percent."""
_CHECK_MASK: Final = 2**63 - 1  # so that a check is a number that any int64 holds


class DeltaFault(StrEnum):
    """What is wrong with a received change."""

    MALFORMED = "malformed"  # its bytes cannot be what `DeltaEncoder` made
    MISMATCH = "mismatch"  # its check differs: something before it was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Changes of a rack's cells."""

    body: bytes
    """zlib of: mask [cells / 8], int8 deltas [changed], int16 escapes [those among them]."""
    num_changed: int
    num_escapes: int
    check: int
    """Over all codes after the change."""


class DeltaEncoder:
    """Makes the changes that one receiver needs.

    Shapes: C cells.
    """

    def __init__(self, scales: CellScales, dead_band: FloatArray) -> None:
        """Start without values; `dead_band` [features], in scaled units."""
        self._feature_of = scales.feature_of
        self._low = lows_of(scales)
        self._step = scales.steps
        self._dead_band = np.maximum(dead_band / scales.steps, 0.5)
        number = len(scales.feature_of)
        self._codes: CodeArray = np.full(number, ABSENT, np.int16)
        self._mask = np.zeros((number + 7) // 8, np.uint8)
        self._deltas = np.zeros(number, np.int8)
        self._escapes = np.zeros(number, np.int16)
        self._check = np.zeros(1, np.int64)

    @property
    def largest_error(self) -> FloatArray:
        """[features]: most by which what is received differs from the value, in scaled units."""
        return self._dead_band * self._step

    def encode(self, scaled: Float32Array, *, is_key: bool) -> Delta:
        """Return what the receiver needs to know of these values, [C] in scaled units."""
        if is_key:
            self._codes[:] = ABSENT
            self._check[0] = 0
        num_deltas, num_escapes = delta_kernel.encode(
            scaled, self._feature_of, self._low, self._step, self._dead_band,
            self._codes, self._mask, self._deltas, self._escapes, self._check,
        )  # fmt: skip
        body = b"".join(
            (
                self._mask.tobytes(),
                self._deltas[:num_deltas].tobytes(),
                self._escapes[:num_escapes].astype("<i2").tobytes(),
            )
        )
        return Delta(
            body=zlib.compress(body, _LEVEL),
            num_changed=num_deltas,
            num_escapes=num_escapes,
            check=int(self._check[0]) & _CHECK_MASK,
        )


class DeltaDecoder:
    """Keeps the codes of one sender.

    Shapes: C cells.
    """

    def __init__(self, scales: CellScales) -> None:
        number = len(scales.feature_of)
        self._num_cells = number
        self._feature_of = scales.feature_of
        self._low, self._step = lows_of(scales), scales.steps
        self.codes: CodeArray = np.full(number, ABSENT, np.int16)
        """[C]."""
        self.mask = np.zeros((number + 7) // 8, np.uint8)
        """[C / 8]: a bit for each cell that the latest change changed."""
        self._check = np.zeros(1, np.int64)

    def forget(self) -> None:
        """Have no values, as at the start."""
        self.codes[:] = ABSENT
        self._check[0] = 0

    def apply(self, delta: Delta, *, is_key: bool) -> DeltaFault | None:
        """Take a change; return what is wrong with it.

        After MALFORMED nothing is changed or, as after MISMATCH, nothing is known.
        """
        parts = self._parts(delta)
        if parts is None:
            return DeltaFault.MALFORMED
        mask, deltas, escapes = parts
        if is_key:
            self.forget()
        status = delta_kernel.apply(mask, deltas, escapes, self.codes, self._check)
        if status != delta_kernel.OK or int(self._check[0]) & _CHECK_MASK != delta.check:
            self.forget()
            return DeltaFault.MALFORMED if status != delta_kernel.OK else DeltaFault.MISMATCH
        self.mask[:] = mask
        return None

    def scaled(self) -> FloatArray:
        """Return all values in scaled units, [C], NaN where absent."""
        k = self._feature_of
        values: FloatArray = self._low[k] + self.codes * self._step[k]
        values[self.codes == ABSENT] = np.nan
        return values

    def _parts(
        self, delta: Delta
    ) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.int16]] | None:
        """Return mask, deltas and escapes, or None if the bytes cannot be such."""
        num_mask, num_deltas, num_escapes = len(self.mask), delta.num_changed, delta.num_escapes
        if not 0 <= num_escapes <= num_deltas <= self._num_cells:
            return None
        expected = num_mask + num_deltas + 2 * num_escapes
        try:
            stream = zlib.decompressobj()
            body = stream.decompress(delta.body, expected + 1)
        except zlib.error:
            return None
        if len(body) != expected or not stream.eof or stream.unused_data:
            return None
        mask = np.frombuffer(body, np.uint8, num_mask)
        deltas = np.frombuffer(body, np.int8, num_deltas, num_mask)
        escapes = np.frombuffer(body, "<i2", num_escapes, num_mask + num_deltas)
        if self._num_cells % 8 and mask[-1] >> (self._num_cells % 8):
            return None
        if delta_kernel.count(mask, deltas) != (num_deltas, num_escapes):
            return None
        return mask, deltas, escapes.astype(np.int16)


def lows_of(scales: CellScales) -> FloatArray:
    """Return the low ends of the features' ranges in scaled units."""
    return np.array([scaled_range(feature.scale)[0] for feature in scales.features])


def dead_bands(scales: CellScales, *, steps: float) -> FloatArray:
    """Return a dead band of so many `STEP` for each feature, one step where steps are finer."""
    return np.where(scales.steps < STEP, scales.steps, steps * STEP)
