"""The directory of one gateway: its socket, its token, what it has learned. One process has it.

Does not know: who serves.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ...traces.errors import ConfigError

HUB_SOCKET, TOKEN_FILE, LEARNED_FILE = "hub.sock", "admin-token", "learned.safetensors"
_LOCK_FILE = "lock"


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[Path]:
    """Make a directory and own it as long as the block lasts; the system lets go at a crash.

    Raises: ConfigError if another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            msg = (
                f"directory '{directory}' is in use by the gateway with process id {owner}; "
                "stop that one, or give this one another --dir"
            )
            raise ConfigError(msg) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield directory
