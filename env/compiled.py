"""How this room compiles: cached on disk, without the GIL, dividing as NumPy does.

Does not know: what is compiled.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy")
"""Decorator of every compiled function of the dispatch kernel and the simulator."""

inlined = njit(cache=True, nogil=True, error_model="numpy", inline="always")
"""The same for small functions on the path of every candidate; LLVM alone leaves them calls."""


def source_tag(files: Iterable[Path]) -> str:
    """Return a hash of compiled code's source files, to be part of the name of a record's field.

    numba's cache looks only at the file of the function that it compiled, so a change in a file
    that this one calls would go unnoticed. With the tag in an argument's type it does not.
    """
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
