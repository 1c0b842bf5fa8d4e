"""A child process that is kept alive: restarted with back-off, and killed when it stands still.

Does not know: what the child is for, or what a sign of its life is: it is told.
"""

import contextlib
import logging
import math
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

_LOG = logging.getLogger(__name__)

# Wait before the first restart, s; it doubles with each short life.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
# Time that a child has to end once it was asked to, s.
_STOP_S = 5.0
# A child that lived longer begins anew with the shortest wait, s.
_LONG_LIFE_S = 60.0


class Process(Protocol):
    """What is needed of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        ...


Spawn = Callable[[Sequence[str]], Process]


def spawn_process(command: Sequence[str]) -> Process:
    """Start a process; what it writes goes where ours does."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildConfig:
    """What a child is."""

    name: str
    command: tuple[str, ...]
    silent_s: float = math.inf
    """Time without a sign of life after which it is killed."""
    start_s: float = 60.0
    """The same before its first sign of life."""
    max_restarts: int | None = None
    """Restarts in a row, each after a short life, after which it is given up; None: never."""


class Child:
    """One child. `tick` it often; it is started by the first."""

    def __init__(self, config: ChildConfig, spawn: Spawn = spawn_process) -> None:
        self.config = config
        self.num_restarts = 0
        self.num_frozen = 0
        """Times that it was killed for standing still."""
        self.is_given_up = False
        self._spawn = spawn
        self._process: Process | None = None
        self._is_stopped = False
        self._num_short_lives = 0
        self._started_at_s = -math.inf
        self._restart_at_s = -math.inf
        self._heard_at_s: float | None = None
        self._stopping_since_s: float | None = None

    @property
    def pid(self) -> int | None:
        """Of its process; None while there is none."""
        return None if self._process is None else self._process.pid

    def heard(self, now_s: float) -> None:
        """Note a sign of life."""
        self._heard_at_s = now_s

    def tick(self, now_s: float) -> None:
        """Start it, see whether it is still there, kill it if it stands still."""
        if self._is_stopped:
            self._kill_if_late(now_s)
            return
        if self._process is None:
            if not self.is_given_up and now_s >= self._restart_at_s:
                self._start(now_s)
            return
        code = self._process.poll()
        if code is not None:
            self._note_end(f"ended with code {code}", now_s)
        elif self._is_frozen(now_s):
            self.num_frozen += 1
            self._process.kill()
            self._process.wait()
            self._note_end("gave no sign of life and was killed", now_s)

    def _kill_if_late(self, now_s: float) -> None:
        """Kill a child that was asked to end some time ago and is still there."""
        self._reap()
        if self._process is None:
            return
        if self._stopping_since_s is None:
            self._stopping_since_s = now_s
        elif now_s - self._stopping_since_s > _STOP_S:
            self._process.kill()

    def _is_frozen(self, now_s: float) -> bool:
        if self._heard_at_s is None:
            return now_s - self._started_at_s > self.config.start_s
        return now_s - self._heard_at_s > self.config.silent_s

    def _start(self, now_s: float) -> None:
        if self._started_at_s > -math.inf:
            self.num_restarts += 1
        self._started_at_s, self._heard_at_s = now_s, None
        try:
            self._process = self._spawn(self.config.command)
        except OSError as error:
            self._note_end(f"could not be started ({error})", now_s)

    def _note_end(self, what: str, now_s: float) -> None:
        self._process = None
        is_short = now_s - self._started_at_s < _LONG_LIFE_S
        self._num_short_lives = self._num_short_lives + 1 if is_short else 0
        most = self.config.max_restarts
        if most is not None and self._num_short_lives > most:
            self.is_given_up = True
            _LOG.error("%s %s; it is given up after %d restarts", self.config.name, what,
                       self.num_restarts)  # fmt: skip
            return
        doublings = min(self._num_short_lives, 10)
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**doublings)
        self._restart_at_s = now_s + wait_s
        _LOG.warning("%s %s; it restarts in %.1f s", self.config.name, what, wait_s)

    def stop(self) -> None:
        """Ask it to end, and start it no more."""
        if not self._is_stopped and self._process is not None:
            # A process that was halted hears nothing else.
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        self._is_stopped = True

    @property
    def is_gone(self) -> bool:
        """Whether it was stopped and has ended."""
        self._reap()
        return self._is_stopped and self._process is None

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None

    def close(self, timeout_s: float = 2.0) -> None:
        """End it, and wait until it has ended."""
        self.stop()
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None
