"""Makes a process slower on purpose: it is stopped for part of every few milliseconds.

Does not know: what the process does.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

# One turn of running and standing still, s: short against an answer, long against a signal.
_TURN_S = 0.02


class Throttle:
    """Slows one process down by a factor, in a thread."""

    def __init__(self, slowdown: float, pid: Callable[[], int | None]) -> None:
        """`pid` says who is slowed at this moment; None for nobody."""
        self._run_s = _TURN_S / slowdown
        self._pid = pid
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._turn, name="throttle", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Let the process run freely again."""
        self._is_closing.set()
        self._thread.join()

    def _turn(self) -> None:
        while not self._is_closing.is_set():
            pid = self._pid()
            if pid is None:
                self._is_closing.wait(_TURN_S)
                continue
            self._is_closing.wait(self._run_s)
            if self._pid() != pid:
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            self._is_closing.wait(_TURN_S - self._run_s)
            # Someone may have frozen it meanwhile; then it is to stand still.
            if self._pid() == pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
