"""The compiled pass that copies a fleet's values with their ages, masked where they are too old.

Does not know: node kinds, or who asks.
"""

import math

from ...env.compiled import compiled


@compiled
def copy_state(moment, rows, put_at_s, sampled_at_s, kept, copied):
    """Copy values and validity, and write ages.

    `moment` (now, age from which a value is masked); `rows` int64 [rows, 4]: kind, server (below 0:
    no rack has it), first cell, number of cells; `put_at_s` [kinds, features], NaN: not put;
    `sampled_at_s` [servers]; `kept` (values [cells], validity [cells]); `copied` the same to write,
    and ages [rows].
    """
    now_s, max_age_s = moment
    flat, flat_is_valid = kept
    values, is_valid, ages_s = copied
    for r in range(rows.shape[0]):
        kind, server, first, number = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        if server >= 0:
            heard_at_s = sampled_at_s[server]
        else:
            heard_at_s = math.nan
            for k in range(number):
                at_s = put_at_s[kind, k]
                if not math.isnan(at_s) and not heard_at_s >= at_s:
                    heard_at_s = at_s
        age_s = math.inf if math.isnan(heard_at_s) else max(now_s - heard_at_s, 0.0)
        ages_s[r] = age_s
        is_old = age_s > max_age_s
        for k in range(number):
            at_s, cell = put_at_s[kind, k], first + k
            is_gone = is_old if math.isnan(at_s) else now_s - at_s > max_age_s
            values[cell] = flat[cell]
            is_valid[cell] = flat_is_valid[cell] and not is_gone
