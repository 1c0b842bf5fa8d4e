"""A NATS server of our own on the loopback interface, for one machine and for tests.

In a fleet the server is run by whoever runs the fleet; see `server_config` for what it must allow.
Does not know: who connects to it (`nats_transport.py`).
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ...traces.errors import MissingExtraError
from .frames import MAX_FRAME_BYTES

_READY_WITHIN_S: Final = 10.0
_STOPPED_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.005


def find_nats_server() -> Path | None:
    """Return the server's program, of this environment or of the system; None if there is none."""
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("nats-server")
    return Path(found) if found else None


def server_config(port: int, ports_dir: Path) -> str:
    """Return the configuration of a server that carries our frames, on loopback only.

    A subscriber that does not read for two seconds, or lets 64 MiB pile up, is disconnected.
    """
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "max_payload": MAX_FRAME_BYTES,
        "max_pending": 16 * MAX_FRAME_BYTES,
        "write_deadline": "2s",
        "ports_file_dir": str(ports_dir),
    }
    return json.dumps(settings)  # the format of NATS's configuration contains JSON


class NatsServer:
    """A server that runs while the `with` block does, or until `stop`, or until Python exits.

    Raises:
        MissingExtraError: the program nats-server is not installed.
        RuntimeError: it ended, or was not ready in time; what it printed is in the message.
    """

    def __init__(self, port: int | None = None) -> None:
        program = find_nats_server()
        if program is None:
            msg = "the program nats-server is not installed: pip install 'trimtab[cluster]'"
            raise MissingExtraError(msg)
        self._folder = tempfile.TemporaryDirectory(prefix="trimtab-nats-")
        folder = Path(self._folder.name)
        config = folder / "server.conf"
        # -1 lets the server choose a free port
        config.write_text(server_config(-1 if port is None else port, folder), encoding="utf-8")
        log = folder / "server.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, "-c", config], stdout=output, stderr=subprocess.STDOUT
            )
        self._stop = weakref.finalize(self, _stop, self._process, self._folder)
        try:
            self.url = self._wait_until_ready(
                folder / f"nats-server_{self._process.pid}.ports", log
            )
        except RuntimeError:
            self.stop()
            raise

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return int(self.url.rsplit(":", 1)[1])

    def stop(self) -> None:
        """End the server and wait for it; once more does nothing."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_ready(self, ports: Path, log: Path) -> str:
        """Return the URL from the file that the server writes once it listens."""
        give_up_at_s = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < give_up_at_s and self._process.poll() is None:
            try:
                return str(json.loads(ports.read_text(encoding="utf-8"))["nats"][0])
            except (OSError, ValueError):  # not there yet, or half written
                time.sleep(_POLL_S)
        printed = log.read_text(encoding="utf-8", errors="replace")[-1000:]
        msg = (
            f"nats-server was not ready within {_READY_WITHIN_S:g} s "
            f"(exit code {self._process.poll()}); it printed: {printed}"
        )
        raise RuntimeError(msg)


def _stop(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    # SIGTERM lets the server wait for its clients; an interrupt ends it at once
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    folder.cleanup()
