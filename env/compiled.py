"""How this room compiles: cached on disk, without the GIL, dividing as NumPy does.

Does not know: what is compiled.
"""

from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy")
"""Decorator of every compiled function of the dispatch kernel and the simulator."""

inlined = njit(cache=True, nogil=True, error_model="numpy", inline="always")
"""The same for small functions on the path of every candidate; LLVM alone leaves them calls."""
