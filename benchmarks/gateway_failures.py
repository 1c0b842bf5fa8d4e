"""What becomes of requests when one of four engines is killed, or frozen where it stands.

200 requests a second for 12 s; the trouble comes after 4 s. A killed engine refuses connections, a
frozen one (SIGSTOP) accepts them and never answers. Failed are requests with no answer or another
than 200; hung are those without an answer 5 s after the last was sent. Engines are the mocks of
`benchmarks/gateway.py`, each a process of its own, and routers are started as there.

Run: python benchmarks/gateway_failures.py [--json] [--peers-venv DIR] [--only WORDS]
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway_path.bodies import KINDS, write_requests
from gateway_path.measures import LOAD_CORE, running
from gateway_path.programs import compiled, pinned
from gateway_path.routers import MODEL, Router, floors, ours, peers
from rich.console import Console
from rich.table import Table

FIRST_ENGINE_PORT, FIRST_ROUTER_PORT, NUM_ENGINES = 23000, 24000, 4
RATE_RPS, SPAN_S, TROUBLE_AT_S = 200, 12, 4.0
TROUBLES = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}


@contextlib.contextmanager
def engines(program: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run four mock engines, each a process, as long as the block lasts."""
    processes = [
        subprocess.Popen(
            pinned(LOAD_CORE, [str(program), str(FIRST_ENGINE_PORT + i), "1"]),
            stdout=subprocess.PIPE,
        )
        for i in range(NUM_ENGINES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def run(
    router: Router, trouble: str, programs: tuple[Path, Path], requests: Path
) -> dict[str, Any]:
    """Return what became of the requests."""
    load, mock = programs
    with engines(mock) as processes, running(router, requests.with_suffix(".log")):
        time.sleep(3.0)
        command = [str(load), str(router.port), str(requests), "open"]
        command += [str(RATE_RPS), str(SPAN_S), "0"]
        loading = subprocess.Popen(pinned(LOAD_CORE, command), stdout=subprocess.PIPE, text=True)
        time.sleep(TROUBLE_AT_S)
        os.kill(processes[1].pid, TROUBLES[trouble])
        out, _ = loading.communicate(timeout=SPAN_S + 30)
        figures: dict[str, Any] = json.loads(out)
    sent = figures["num_done"] + figures["num_errors"] + figures["unanswered"]
    return {
        "sent": sent,
        "failed": figures["num_errors"],
        "hung": figures["unanswered"],
        "hung_frac": figures["unanswered"] / max(1, sent),
        "p99_ms": figures["p99_ms"],
        "worst_ms": figures["max_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--peers-venv", type=Path, help="where the routers of others are installed")
    parser.add_argument("--only", default="", help="rows whose names hold one of these words")
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stderr if arguments.json else sys.stdout)
    ports = [FIRST_ENGINE_PORT + i for i in range(NUM_ENGINES)]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        programs = compiled("load", directory), compiled("mock_engines", directory)
        requests = directory / "requests.bin"
        write_requests(KINDS[0], MODEL, requests)
        routers = [ours(directory, ports, FIRST_ROUTER_PORT, name="trimtab full scorer")]
        if arguments.peers_venv is not None:
            routers += peers(arguments.peers_venv.absolute(), ports, FIRST_ROUTER_PORT + 10)
        routers += floors(ports, FIRST_ROUTER_PORT + 2)[1:]
        words = arguments.only.split(",") if arguments.only else [""]
        table = Table("router", "trouble", "sent", "failed", "hung", "p99 ms", "worst ms", box=None)
        for router in (row for row in routers if any(word in row.name for word in words)):
            for trouble in TROUBLES:
                with console.status(f"{router.name}, one engine {trouble}"):
                    try:
                        row = run(router, trouble, programs, requests)
                    except RuntimeError as error:
                        console.print(f"left out: {str(error)[-400:]}", markup=False)
                        continue
                results.setdefault(router.name, {})[trouble] = row
                table.add_row(
                    router.name, trouble, str(row["sent"]), str(row["failed"]),
                    f"{row['hung']} ({row['hung_frac']:.1%})", f"{row['p99_ms']:.1f}",
                    f"{row['worst_ms']:.0f}",
                )  # fmt: skip
    console.print(table)
    print(json.dumps({"benchmark": "gateway_failures", "results": results}))


if __name__ == "__main__":
    main()
