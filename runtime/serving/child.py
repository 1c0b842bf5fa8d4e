"""What every process that another starts does first: it ends when that one ends.

Does not know: what the process is for.
"""

import ctypes
import os
import signal
import sys

# prctl(2): the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """End by SIGTERM when the parent process ends; where the system cannot do that, do nothing."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It ended before it could be watched.
        sys.exit(0)
