"""One router under load: rate and CPU at saturation, latency at a rate, memory.

Does not know: which router it is.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .programs import pinned
from .routers import Router

ROUTER_CORE, LOAD_CORE = 0, 1
_START_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """How long each measure takes, s."""

    closed_s: float = 3.0
    open_s: float = 6.0
    warm_up_s: float = 0.7
    connections: int = 32
    rate_rps: float = 200.0


@contextlib.contextmanager
def running(router: Router, log: Path) -> Iterator[psutil.Process]:
    """Run a router as long as the block lasts; it answers when the block begins."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            pinned(ROUTER_CORE, list(router.command)), stdout=file, stderr=file,
            stdin=subprocess.DEVNULL, start_new_session=True, env=environment,
        )  # fmt: skip
    try:
        _wait_until_it_answers(router, process, log)
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_it_answers(router: Router, process: "subprocess.Popen[bytes]", log: Path) -> None:
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hi"}]})
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=5)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    msg = f"{router.name} does not answer; its last words: {log.read_text()[-1500:]}"
    raise RuntimeError(msg)


def _cpu_s(process: psutil.Process) -> float:
    """CPU time of a process and all that it started."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def _serving_cpu_s(process: psutil.Process) -> float:
    """The same of the process alone that carries requests."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _load(program: Path, port: int, requests: Path, arguments: list[str]) -> dict[str, Any]:
    command = pinned(LOAD_CORE, [str(program), str(port), str(requests), *arguments])
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(out)
    return result


def _busy_s(core: int) -> float:
    times = psutil.cpu_times(percpu=True)[core]
    return float(times.user + times.system + times.nice + times.irq + times.softirq + times.steal)


def measured(
    port: int, process: psutil.Process | None, load: Path, requests: Path, spans: Spans
) -> dict[str, float]:
    """Return the figures of one round; without a process, of the engines alone."""
    before, began_s = (_cpu_s(process) if process else 0.0), time.monotonic()
    busy = _busy_s(ROUTER_CORE)
    serving = _serving_cpu_s(process) if process else 0.0
    closed = _load(load, port, requests, [
        "closed", str(spans.connections), str(spans.closed_s), str(spans.warm_up_s),
    ])  # fmt: skip
    cpu_s = (_cpu_s(process) - before) if process else 0.0
    serving_s = (_serving_cpu_s(process) - serving) if process else 0.0
    others_s = max(0.0, _busy_s(ROUTER_CORE) - busy - cpu_s)
    span_s = time.monotonic() - began_s
    # What was done in the warm-up took CPU too.
    share = (spans.closed_s + spans.warm_up_s) / spans.closed_s
    num = max(1.0, closed["num_done"] * share)
    opened = _load(load, port, requests, [
        "open", str(spans.rate_rps), str(spans.open_s), str(spans.warm_up_s),
    ])  # fmt: skip
    return {
        "max_rps": closed["rps"],
        "cpu_us": 1e6 * cpu_s / num,
        "serving_cpu_us": 1e6 * serving_s / num,
        "foreign_frac": others_s / span_s,
        "p50_ms": opened["p50_ms"],
        "p99_ms": opened["p99_ms"],
        "errors": closed["num_errors"] + opened["num_errors"] + opened["unanswered"],
        "rss_mib": process.memory_info().rss / 2**20 if process else 0.0,
    }
