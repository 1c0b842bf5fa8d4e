"""Compiled passes over a rack's cells: scaling there and back.

A row of a table of scales is (kind of normaliser, low, high, offset, scale); kinds are counted as
`NORMALISERS` lists them: 0 identity, 1 log1p, 2 log10.

Does not know: what a cell is.
"""

import math

from ...env.compiled import compiled, inlined

# As in `NORMALISERS`: what is less is taken for this before its logarithm.
_LEAST_OF_LOG10 = 1e-9


@inlined
def scaled_value(value, row):
    """Return a raw value clipped to its range, in scaled units."""
    near = min(max(value, row[1]), row[2])
    if row[0] == 1.0:
        near = math.log1p(near)
    elif row[0] == 2.0:
        near = math.log10(max(near, _LEAST_OF_LOG10))
    return (near - row[3]) / row[4]


@inlined
def raw_value(scaled, row):
    """Return a scaled value in raw units, within its range."""
    value = scaled * row[4] + row[3]
    if row[0] == 1.0:
        value = math.expm1(value)
    elif row[0] == 2.0:
        value = 10.0**value
    return min(max(value, row[1]), row[2])


@compiled
def take(values, is_valid, is_shown, table, raw, scaled):
    """Write values of a node kind into its cells, raw and scaled; NaN where absent or not shown.

    `values`, `is_valid` [rows, features]; `is_shown` [rows]; `table` [features, 5]; `raw`, `scaled`
    [rows * features].
    """
    num_rows, num_features = values.shape
    for r in range(num_rows):
        first = r * num_features
        for k in range(num_features):
            value = values[r, k]
            if is_shown[r] and is_valid[r, k] and not math.isnan(value):
                raw[first + k] = value
                scaled[first + k] = scaled_value(value, table[k])
            else:
                raw[first + k] = scaled[first + k] = math.nan


@compiled
def unscale(scaled, feature_of, table, out):
    """Bring scaled values back to raw units."""
    for i in range(scaled.shape[0]):
        out[i] = raw_value(scaled[i], table[feature_of[i]])
