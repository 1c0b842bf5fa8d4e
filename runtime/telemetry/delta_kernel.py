"""Compiled passes of the delta code: which cells changed, and putting changes back.

Codes are as in `cell_scales.py`. Changes are a bit for each cell, eight to a byte, and a signed
byte for each cell whose bit is set: what is added to the code before, or `ESCAPE` for a cell whose
new code stands among the 16-bit ones. `check` is a sum over all codes that both sides keep.

Does not know: frames, or what a cell is.
"""

import math

import numpy as np

from ...env.compiled import compiled, inlined
from .cell_kernels import raw_value

ABSENT = -32768
ESCAPE = -128
_LARGEST = 127
_MAX_CODE = 32767

OK = 0
WRONG_SIZE = 1
WRONG_CODE = 2
"""What `apply` returns."""


@inlined
def weight(i):
    """Return the weight of a cell in the check: odd, and another for each of the neighbours."""
    return (np.int64(i) * np.int64(2654435761)) | np.int64(1)


@compiled
def encode(scaled, feature_of, low, step, dead_band, codes, mask, deltas, escapes, check):
    """Write the cells that left their dead band; update `codes` and `check[0]`.

    Returns the numbers of deltas and of escapes. A cell whose value came or went counts as
    changed. `codes` are those that the receiver has.
    """
    mask[:] = 0
    num_deltas, num_escapes = 0, 0
    for i in range(scaled.shape[0]):
        value = scaled[i]
        before = np.int64(codes[i])
        if math.isnan(value):
            if before == ABSENT:
                continue
            code = np.int64(ABSENT)
        else:
            k = feature_of[i]
            steps = (value - low[k]) / step[k]
            if before != ABSENT and abs(steps - before) <= dead_band[k]:
                continue
            code = np.int64(math.floor(min(max(steps, 0.0), _MAX_CODE) + 0.5))
        if code == before:
            continue
        mask[i >> 3] |= np.uint8(1 << (i & 7))
        change = code - before
        if before == ABSENT or code == ABSENT or abs(change) > _LARGEST:
            deltas[num_deltas] = ESCAPE
            escapes[num_escapes] = code
            num_escapes += 1
        else:
            deltas[num_deltas] = change
        num_deltas += 1
        codes[i] = code
        check[0] += change * weight(i)
    return num_deltas, num_escapes


@compiled
def count(mask, deltas):
    """Return how many bits of a mask are set, and how many deltas are escapes."""
    num_bits, num_escapes = 0, 0
    for byte in mask:
        left = int(byte)
        while left:
            left &= left - 1
            num_bits += 1
    for delta in deltas:
        num_escapes += delta == ESCAPE
    return num_bits, num_escapes


@compiled
def apply(mask, deltas, escapes, codes, check):
    """Add changes to `codes` and to `check[0]`; return `OK`, or `WRONG_CODE` for one out of range.

    The sizes must be right (`count`). What was done before a wrong code stays done.
    """
    d, e = 0, 0
    for i in range(codes.shape[0]):
        if not mask[i >> 3] & (1 << (i & 7)):
            continue
        before = np.int64(codes[i])
        if deltas[d] == ESCAPE:
            code = np.int64(escapes[e])
            e += 1
        else:
            code = before + deltas[d]
            if before == ABSENT or code < 0 or code > _MAX_CODE:
                return WRONG_CODE
        d += 1
        if code < 0 and code != ABSENT:
            return WRONG_CODE
        codes[i] = code
        check[0] += (code - before) * weight(i)
    return OK


@compiled
def show(mask, codes, owner, is_shown, place, feature_of, low, step, table, values, is_valid,
         is_put):  # fmt: skip
    """Write the cells whose bit is set, and whose owner is shown, in raw units.

    `place` [cells]: index in `values`, `is_valid` and `is_put` (another writes it), which are flat;
    negative for padding.
    """
    for i in range(codes.shape[0]):
        if not mask[i >> 3] & (1 << (i & 7)) or not is_shown[owner[i]]:
            continue
        target = place[i]
        if target < 0 or is_put[target]:
            continue
        if codes[i] == ABSENT:
            values[target], is_valid[target] = math.nan, False
        else:
            k = feature_of[i]
            values[target] = raw_value(low[k] + codes[i] * step[k], table[k])
            is_valid[target] = True
