"""A local fleet that goes on when the command that started it has ended.

A supervisor process keeps the servers; a state file in the fleet's directory says who it is. A
process is known by its number and the moment it began, so a number that was given to another
process later is never killed.

Does not know: how servers are watched (`supervisor.py`).
Run: `python -m trimtab.runtime.launcher.detached DIR`, by `trimtab fleet up`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from .fleet_plan import LocalReplica
from .supervisor import FleetError, LocalFleet, local_fleet
from .tiny_model import TinyModel

STATE_FILE = "state.json"
_PLAN_FILE = "plan.json"
_LOG_FILE = "supervisor.log"
_STATE_S = 0.2
_STOP_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """What a supervisor last said."""

    supervisor_pid: int
    supervisor_began_at: float
    phase: str
    """`starting`, `up`, or `failed`."""
    message: str
    replicas: tuple[dict[str, Any], ...]
    """Name, port, pid, number of restarts."""


def _write(path: Path, content: object) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def read_state(directory: Path) -> FleetState | None:
    """Return what the supervisor of a directory last said; None if none is alive."""
    path = directory / STATE_FILE
    try:
        content = json.loads(path.read_text())
        state = FleetState(**{**content, "replicas": tuple(content["replicas"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if _is_alive(state.supervisor_pid, state.supervisor_began_at) else None


def _is_alive(pid: int, began_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - began_at) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(
    replicas: Sequence[LocalReplica],
    directory: Path,
    *,
    model_path: Path | None = None,
    timeout_s: float = 60.0,
) -> FleetState:
    """Start a fleet that outlives this process; return when all its replicas are healthy.

    Raises:
        FleetError: a fleet is up in that directory already, or this one did not come up.
    """
    if read_state(directory) is not None:
        msg = f"a fleet is up in '{directory}' already; end it with: trimtab fleet down"
        raise FleetError(msg)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / STATE_FILE).unlink(missing_ok=True)
    plan = {
        "replicas": [asdict(replica) for replica in replicas],
        "model_path": None if model_path is None else str(model_path.absolute()),
        "timeout_s": timeout_s,
    }
    _write(directory / _PLAN_FILE, plan)
    with (directory / _LOG_FILE).open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", __name__, str(directory)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    while True:
        state = read_state(directory)
        if state is not None and state.phase == "up":
            # It goes on without this process.
            supervisor.returncode = 0
            return state
        if supervisor.poll() is not None:
            break
        time.sleep(0.05)
    said = _last_message(directory) or (directory / _LOG_FILE).read_text()[-2000:]
    raise FleetError(said)


def _last_message(directory: Path) -> str:
    try:
        return str(json.loads((directory / STATE_FILE).read_text())["message"])
    except (OSError, ValueError, KeyError):
        return ""


def stop(directory: Path) -> int:
    """End the fleet of a directory; return how many replicas it had.

    Raises:
        FleetError: none is up there, or it does not end.
    """
    state = read_state(directory)
    if state is None:
        msg = f"no fleet is up in '{directory}'; nothing to end"
        raise FleetError(msg)
    with suppress(ProcessLookupError):
        os.kill(state.supervisor_pid, signal.SIGTERM)
    until_s = time.monotonic() + _STOP_S
    while _is_alive(state.supervisor_pid, state.supervisor_began_at):
        if time.monotonic() > until_s:
            msg = f"the supervisor (pid {state.supervisor_pid}) does not end; kill it"
            raise FleetError(msg)
        time.sleep(0.05)
    return len(state.replicas)


def _state_of(fleet: LocalFleet | None, phase: str, message: str = "") -> dict[str, Any]:
    servers = [] if fleet is None else fleet.servers
    return {
        "supervisor_pid": os.getpid(),
        "supervisor_began_at": psutil.Process().create_time(),
        "phase": phase,
        "message": message,
        "replicas": [
            {
                "name": server.plan.name,
                "port": server.plan.port,
                "pid": server.pid,
                "num_restarts": server.num_restarts,
            }
            for server in servers
        ],
    }


def main(directory: Path) -> int:
    """Keep the fleet of a directory until SIGTERM; return the exit code."""
    plan = json.loads((directory / _PLAN_FILE).read_text())
    replicas = [
        LocalReplica(**{**item, "model": TinyModel(**item["model"])}) for item in plan["replicas"]
    ]
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    state_path = directory / STATE_FILE
    model_path = None if plan["model_path"] is None else Path(plan["model_path"])
    try:
        fleet = local_fleet(replicas, directory, model_path=model_path)
        _write(state_path, _state_of(fleet, "starting"))
        fleet.start(timeout_s=plan["timeout_s"])
    except Exception as error:
        _write(state_path, _state_of(None, "failed", str(error)))
        return 1
    with fleet:
        while not ended.wait(_STATE_S):
            _write(state_path, _state_of(fleet, "up"))
    for name in (STATE_FILE, _PLAN_FILE):
        (directory / name).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
