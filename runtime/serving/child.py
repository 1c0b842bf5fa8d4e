"""What every process that a gateway starts does first: it ends with it, and stands back behind it.

Does not know: what the process is for.
"""

import ctypes
import os
import signal
import sys

# prctl(2): the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


# nice(2): how far a child stands back behind the gateway where cores are few.
_NICENESS = 5


def stand_back() -> None:
    """Let the gateway's process run first where both want a core."""
    os.nice(_NICENESS)


def die_with_parent() -> None:
    """End by SIGTERM when the parent process ends; where the system cannot do that, do nothing."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It ended before it could be watched.
        sys.exit(0)
