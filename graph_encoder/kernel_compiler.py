"""How this room compiles: as the simulator does, but sums may be taken in any order.

That lets them run on vector registers; NaN and infinity still count as they should.

Does not know: what is compiled.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

compiled: Callable[[Callable[..., None]], Callable[..., None]] = njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz", "arcp"},
)
"""Decorator of every compiled function of the encoder."""

index = np.uintp
"""Type of all indices: signed ones are checked for being negative at every access."""

ZERO = np.float32(0.0)
ONE = np.float32(1.0)
