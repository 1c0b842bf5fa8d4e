"""Keeps the servers of a local fleet alive: starts, watches, restarts with back-off, stops them.

Does not know: requests, or what a fleet is made of (`fleet_plan.py`).
"""

import http.client
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ...traces.errors import TrimtabError
from .fleet_plan import LocalReplica, PlannedServer, plan_fleet
from .live_fleet_file import LiveFleetSpec
from .throttle import Throttle

_LOG = logging.getLogger(__name__)

# Waits before restarts: the first, and the longest, s. A server that has lived for `_LONG_LIFE_S`
# begins with the first again.
_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONG_LIFE_S = 0.2, 10.0, 30.0
# How often processes are looked at, s.
_WATCH_S = 0.05
# How long a server may take to end by itself, s.
_STOP_S = 3.0
_LOG_LINES = 12


class FleetError(TrimtabError):
    """A local fleet did not come up, or is not what it should be."""


@dataclass(slots=True)
class ServerProcess:
    """One server and its process of the moment."""

    plan: PlannedServer
    command: Sequence[str]
    log_path: Path
    process: "subprocess.Popen[bytes] | None" = None
    started_at_s: float = 0.0
    restart_at_s: float = 0.0
    num_restarts: int = 0
    num_short_lives: int = 0
    throttle: Throttle | None = None
    is_frozen: bool = False

    @property
    def pid(self) -> int | None:
        """Of its process; None while there is none."""
        is_running = self.process is not None and self.process.poll() is None
        return self.process.pid if self.process is not None and is_running else None

    @property
    def log_end(self) -> str:
        """The last lines that it wrote."""
        if not self.log_path.exists():
            return "(no log)"
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])


@dataclass(slots=True)
class LocalFleet:
    """Servers under watch. `close` ends them all; so does the end of this process."""

    spec: LiveFleetSpec
    servers: list[ServerProcess]
    directory: Path
    _is_closing: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start all servers and wait until they are healthy.

        Raises:
            FleetError: one was not in time; all are stopped then.
        """
        for server in self.servers:
            self._spawn(server)
        self._watcher = threading.Thread(target=self._watch, name="fleet-watcher", daemon=True)
        self._watcher.start()
        until_s = time.monotonic() + timeout_s
        try:
            for server in self.servers:
                self._wait_until_healthy(server, until_s)
        except FleetError:
            self.close()
            raise
        for server in self.servers:
            if server.plan.replica.slowdown > 1.0:
                server.throttle = Throttle(server.plan.replica.slowdown, self._pid_of(server))
                server.throttle.start()

    @staticmethod
    def _pid_of(server: ServerProcess) -> Callable[[], int | None]:
        return lambda: None if server.is_frozen else server.pid

    def _wait_until_healthy(self, server: ServerProcess, until_s: float) -> None:
        while not is_healthy(server.plan.port):
            if time.monotonic() > until_s:
                msg = (
                    f"replica '{server.plan.name}' did not become healthy on port "
                    f"{server.plan.port}; its last words:\n{server.log_end}"
                )
                raise FleetError(msg)
            time.sleep(_WATCH_S)

    def _spawn(self, server: ServerProcess) -> None:
        with server.log_path.open("ab") as log:
            # A session of its own: a Ctrl-C at the terminal is the supervisor's to pass on.
            server.process = subprocess.Popen(
                server.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        server.started_at_s = time.monotonic()

    def _watch(self) -> None:
        while not self._is_closing.wait(_WATCH_S):
            now_s = time.monotonic()
            for server in self.servers:
                if server.pid is None:
                    self._restart(server, now_s)

    def _restart(self, server: ServerProcess, now_s: float) -> None:
        """Restart a server that ended, when its wait is over."""
        if server.process is not None:
            code, lived_s = server.process.returncode, now_s - server.started_at_s
            server.process = None
            server.num_short_lives = 0 if lived_s > _LONG_LIFE_S else server.num_short_lives + 1
            doublings = min(server.num_short_lives, 10)
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**doublings)
            server.restart_at_s = now_s + wait_s
            _LOG.warning(
                "replica '%s' ended with code %s after %.1f s; it restarts in %.1f s",
                server.plan.name, code, lived_s, wait_s,
            )  # fmt: skip
        elif now_s >= server.restart_at_s:
            server.num_restarts += 1
            server.is_frozen = False
            self._spawn(server)

    def server(self, name: str) -> ServerProcess:
        """Return a server by its replica's name.

        Raises:
            FleetError: there is none of that name.
        """
        for server in self.servers:
            if server.plan.name == name:
                return server
        known = ", ".join(server.plan.name for server in self.servers)
        msg = f"the fleet has no replica '{name}'; it has {known}"
        raise FleetError(msg)

    def kill(self, name: str) -> None:
        """Kill a server; it restarts by itself."""
        self._signal(name, signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """Stop a server where it stands: it accepts and never answers."""
        self.server(name).is_frozen = True
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a frozen server go on."""
        self._signal(name, signal.SIGCONT)
        self.server(name).is_frozen = False

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.server(name).pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """End all servers."""
        self._is_closing.set()
        if self._watcher is not None:
            self._watcher.join()
        for server in self.servers:
            if server.throttle is not None:
                server.throttle.close()
            if server.pid is not None and server.process is not None:
                server.process.send_signal(signal.SIGCONT)
                server.process.terminate()
        for server in self.servers:
            if server.process is None:
                continue
            try:
                server.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()

    def __enter__(self) -> "LocalFleet":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def is_healthy(port: int, *, timeout_s: float = 1.0) -> bool:
    """Whether the server on a port of this machine says that it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def llama_command(server: PlannedServer, directory: Path) -> list[str]:
    """Return the command line of a llama.cpp server."""
    replica = server.replica
    slots = directory / "slots"
    slots.mkdir(exist_ok=True)
    return [
        *(sys.executable, "-m", "trimtab.runtime.launcher.llama_server"),
        *("--model", str(server.model_path), "--alias", "tiny", "--port", str(server.port)),
        *("--slots", str(replica.slots), "--context", str(replica.slots * replica.slot_tokens)),
        *("--slot-dir", f"{slots}/"),
    ]


def local_fleet(
    replicas: Sequence[LocalReplica], directory: Path, *, model_path: Path | None = None
) -> LocalFleet:
    """Plan a fleet of llama.cpp servers; `start` starts it."""
    spec, planned = plan_fleet(replicas, directory, model_path=model_path)
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    servers = [
        ServerProcess(
            plan=server,
            command=llama_command(server, directory),
            log_path=logs / f"replica-{number}.log",
        )
        for number, server in enumerate(planned)
    ]
    return LocalFleet(spec=spec, servers=servers, directory=directory)


@contextmanager
def running_fleet(
    replicas: Sequence[LocalReplica], directory: Path, *, model_path: Path | None = None
) -> Iterator[LocalFleet]:
    """Run a fleet of llama.cpp servers as long as the block lasts."""
    with local_fleet(replicas, directory, model_path=model_path) as fleet:
        fleet.start()
        yield fleet
