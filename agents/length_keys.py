"""Keys of the histograms that a request's answer belongs to, compiled.

Does not know: what is kept under a key (`output_length_kernel.py`).
"""

import numpy as np

from ..env.compiled import compiled, inlined
from ..traces.hashing import mix64


@inlined
def combine(name, first, second):
    """Return the key of a histogram: its kind and two hashes, never 0."""
    return mix64(mix64(mix64(np.uint64(name)) ^ np.uint64(first)) ^ np.uint64(second)) | np.uint64(
        1
    )


@inlined
def size_bucket(tokens):
    """Return which bucket of half an octave a number of tokens lies in."""
    return np.uint64(2.0 * np.log2(np.float64(tokens) + 1.0))


@compiled
def fill_keys(keys, model, tenant, application, session, head, tokens, limit, cluster):
    """Write the keys of a request's histograms.

    `limit` is its limit of tokens, 0 for none of its own, negative if it is greedy besides.
    """
    caller = combine(0, tenant, application)
    size = size_bucket(tokens)
    keys[0] = combine(1, model, np.uint64(0))
    keys[1] = combine(2, model, tenant)
    keys[2] = combine(3, model, caller)
    keys[3] = combine(4, caller, np.uint64(np.int64(limit)))
    keys[4] = combine(5, model, size)
    keys[5] = combine(6, caller, size)
    keys[6] = combine(7, model, cluster)
    keys[7] = combine(8, caller, cluster)
    keys[8] = combine(9, tenant, session)
    keys[9] = combine(10, tenant, head)
