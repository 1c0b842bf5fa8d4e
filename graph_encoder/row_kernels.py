"""Compiled scaling of raw values into inputs of the network, row by row.

Shapes (N rows, F features, L of them in the logarithm): `values` float64, `is_valid` [N, F];
`rows` float32 [N, 2 F or more], values first, then flags; `logs` float32 [N, L]; what stands for
a scale, `added` among it, [F]; `columns` [L].

Does not know: what the features are.
"""

from .kernel_compiler import ONE, ZERO, compiled, index


@compiled
def scale_values(values, is_valid, low, high, shift, factor, rows):
    """Write values without their logarithms, then flags; unknown ones are 0 with flag 0."""
    num_features = index(values.shape[1])
    for row in range(index(values.shape[0])):
        # no branches, so that it runs on vector registers
        for feature in range(num_features):
            value = values[row, feature]
            is_known = is_valid[row, feature] & (value - value == 0.0)
            value = value if is_known else low[feature]
            value = low[feature] if value < low[feature] else value
            value = high[feature] if value > high[feature] else value
            rows[row, feature] = (value - shift[feature]) * factor[feature]
        for feature in range(num_features):
            value = values[row, feature]
            is_known = is_valid[row, feature] & (value - value == 0.0)
            rows[row, feature] = rows[row, feature] if is_known else ZERO
            rows[row, num_features + feature] = ONE if is_known else ZERO


@compiled
def collect_logs(values, columns, low, high, added, floor, rows, logs):
    """Write what the logarithm is to be taken of: values of some columns, clipped, plus `added`."""
    num_features = index(low.shape[0])
    for row in range(index(logs.shape[0])):
        for i in range(index(columns.shape[0])):
            feature = index(columns[i])
            is_known = rows[row, num_features + feature] > ZERO
            value = values[row, feature] if is_known else high[feature]
            value = low[feature] if value < low[feature] else value
            value = high[feature] if value > high[feature] else value
            logs[row, i] = max(value + added[feature], floor)


@compiled
def place_logs(logs, columns, shift, factor, rows):
    """Write what was taken the logarithm of to its `columns`, where the flag says it is known."""
    num_features = index(shift.shape[0])
    for row in range(index(logs.shape[0])):
        for i in range(index(columns.shape[0])):
            feature = index(columns[i])
            near = (logs[row, i] - shift[feature]) * factor[feature]
            rows[row, feature] = near * rows[row, num_features + feature]
