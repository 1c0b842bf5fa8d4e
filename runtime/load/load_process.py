"""Starts a load in a process of its own and takes what its clients saw.

Does not know: how requests are sent (`player.py`).
"""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import numpy as np

from ...traces.errors import TrimtabError
from ...traces.schema import RequestTrace
from ...traces.store import write_store
from .__main__ import KEY_VARIABLE
from .player import LoadConfig
from .results import RESULT_DTYPE


class LoadError(TrimtabError):
    """A load that did not come to its end."""


class LoadProcess:
    """One load, from the making of its requests to its results. A context manager."""

    def __init__(self, trace: RequestTrace, config: LoadConfig, directory: Path) -> None:
        """Make all requests, and wait for `begin`; `directory` must be empty or new.

        Raises:
            LoadError: the process ended before it was ready.
        """
        self._out = directory / "results.npy"
        write_store(directory / "load.trace", trace)
        self._patience_s = config.patience_s
        command = [
            *(sys.executable, "-m", "trimtab.runtime.load"),
            *("--trace", str(directory / "load.trace"), "--out", str(self._out)),
            *("--host", config.host, "--port", str(config.port), "--model", config.model),
            *("--patience", str(config.patience_s)),
        ]
        environment = dict(os.environ)
        if config.api_key is not None:
            environment[KEY_VARIABLE] = config.api_key
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.close()
            msg = f"the load's process ended with {self._process.returncode} before it was ready"
            raise LoadError(msg)

    def begin(self) -> None:
        """Let it send the first request."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"begin\n")
        self._process.stdin.close()

    @property
    def is_over(self) -> bool:
        """Whether all answers have come, or nobody waits for them any more."""
        return self._process.poll() is not None

    def results(self) -> np.ndarray:
        """Wait for the end and return what clients saw; RESULT_DTYPE [N].

        Raises:
            LoadError: the process failed.
        """
        code = self._process.wait()
        if code != 0 or not self._out.exists():
            msg = f"the load's process ended with {code} and left no results"
            raise LoadError(msg)
        found = np.load(self._out, allow_pickle=False)
        if found.dtype != RESULT_DTYPE:
            msg = f"results must be of {RESULT_DTYPE}, got {found.dtype}"
            raise LoadError(msg)
        return np.asarray(found)

    def close(self) -> None:
        """End the process, whatever it does."""
        process = self._process
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> "LoadProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
