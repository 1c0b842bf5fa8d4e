"""What a gateway costs: added latency at 200 requests a second, CPU a request when busy, memory.

Ours with the full scorer over 4 and 64 replicas, as users start it, beside the routers of others, a
plain aiohttp proxy and a raw proxy that only passes bytes, all in front of the same mock engines in
one sitting, in rounds. The router has a core of its own; load and engines share the other. CPU is
that of the router's processes, all of them (`cpu_us`) and of the one that carries requests alone
(`serving_cpu_us`). Latency counts from the moment that a request was due; "added" is that minus the
engines' own, which is a convention and not the router's own percentile. Of several rounds the one
with the least CPU a request counts; of latencies the least one, of the engines' own too, beside
the medians of both. `foreign` is the share of the router's core that other programs had meanwhile.

Run: python benchmarks/gateway.py [--json] [--rounds 3] [--peers-venv DIR] [--kinds 2KB,32KB]
     where DIR is made by: python -m venv DIR && DIR/bin/pip install vllm-router sglang-router smg
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gateway_path.bodies import KINDS, write_requests
from gateway_path.measures import LOAD_CORE, Spans, measured, running
from gateway_path.programs import compiled, pinned
from gateway_path.routers import MODEL, Router, floors, ours, peers
from rich.console import Console
from rich.table import Table

FIRST_ENGINE_PORT, FIRST_ROUTER_PORT, NUM_ENGINES = 21000, 22000, 64
_TABLE_COLUMNS = 140


@contextlib.contextmanager
def engines(program: Path) -> Any:
    """Run the mock engines as long as the block lasts."""
    command = pinned(LOAD_CORE, [str(program), str(FIRST_ENGINE_PORT), str(NUM_ENGINES)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            msg = f"the mock engines cannot listen on ports from {FIRST_ENGINE_PORT}"
            raise SystemExit(msg)
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def all_routers(arguments: argparse.Namespace, directory: Path) -> list[Router]:
    ports = [FIRST_ENGINE_PORT + i for i in range(NUM_ENGINES)]
    few = ports[:4]
    rows = [ours(directory, few, FIRST_ROUTER_PORT), ours(directory, ports, FIRST_ROUTER_PORT + 1)]
    rows += floors(few, FIRST_ROUTER_PORT + 2)
    if arguments.peers_venv is not None:
        rows += peers(arguments.peers_venv.absolute(), few, FIRST_ROUTER_PORT + 10)
    wanted = arguments.only.split(",") if arguments.only else [""]
    return [row for row in rows if any(part in row.name for part in wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-venv", type=Path, help="where the routers of others are installed")
    parser.add_argument("--kinds", default=",".join(kind.name for kind in KINDS))
    parser.add_argument("--only", default="", help="rows whose names hold one of these words")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each closed load")
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stderr if arguments.json else sys.stdout)
    console.width = max(console.width, _TABLE_COLUMNS)
    spans = Spans(closed_s=arguments.seconds, open_s=2 * arguments.seconds)
    kinds = [kind for kind in KINDS if kind.name in arguments.kinds.split(",")]
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {kind.name: {} for kind in kinds}
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        load = compiled("load", directory)
        requests = {kind.name: directory / f"{kind.name}.bin" for kind in kinds}
        for kind in kinds:
            write_requests(kind, MODEL, requests[kind.name])
        routers = all_routers(arguments, directory)
        with engines(compiled("mock_engines", directory)), console.status("") as status:
            for number in range(arguments.rounds):
                for kind in kinds:
                    row = measured(FIRST_ENGINE_PORT, None, load, requests[kind.name], spans)
                    rounds[kind.name].setdefault("direct", []).append(row)
                for router in routers:
                    status.update(f"round {number + 1} of {arguments.rounds}: {router.name}")
                    log = directory / f"{router.port}.log"
                    try:
                        with running(router, log) as process:
                            for kind in kinds:
                                row = measured(
                                    router.port, process, load, requests[kind.name], spans
                                )
                                rounds[kind.name].setdefault(router.name, []).append(row)
                    except RuntimeError as error:
                        console.print(f"left out: {str(error)[-400:]}", markup=False)
    results = {kind: summary(by_router) for kind, by_router in rounds.items()}
    for kind, rows in results.items():
        console.print(table(kind, rows))
    if arguments.peers_venv is None:
        console.print("routers of others are left out: see --peers-venv")
    print(json.dumps({"benchmark": "gateway", "cores": os.cpu_count(), "results": results}))


def summary(by_router: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the best round of each router, with its latency beyond the engines' own."""
    direct = by_router["direct"]
    summed = {}
    for name, rows in by_router.items():
        best = min(rows, key=lambda row: (row["cpu_us"], -row["max_rps"]))
        figures = dict(best)
        figures["median_cpu_us"] = float(np.median([row["cpu_us"] for row in rows]))
        for quantile in ("p50_ms", "p99_ms"):
            of_router = [row[quantile] for row in rows]
            of_engines = [row[quantile] for row in direct]
            figures[f"added_{quantile}"] = min(of_router) - min(of_engines)
            figures[f"median_added_{quantile}"] = float(
                np.median(of_router) - np.median(of_engines)
            )
        figures["rps_per_core"] = 1e6 / best["cpu_us"] if best["cpu_us"] else 0.0
        figures["errors"] = sum(row["errors"] for row in rows)
        summed[name] = figures
    return summed


def table(kind: str, rows: dict[str, dict[str, float]]) -> Table:
    made = Table(title=f"{kind} bodies", box=None, title_justify="left")
    made.add_column("router")
    for name in ("max rps", "CPU us", "(median)", "serving us", "rps/core", "+p50 ms", "(median)",
                 "+p99 ms", "(median)", "RSS MiB", "errors", "foreign"):  # fmt: skip
        made.add_column(name, justify="right")
    for name, row in rows.items():
        made.add_row(
            name, f"{row['max_rps']:.0f}", f"{row['cpu_us']:.0f}", f"{row['median_cpu_us']:.0f}",
            f"{row['serving_cpu_us']:.0f}", f"{row['rps_per_core']:.0f}",
            f"{row['added_p50_ms']:+.2f}", f"{row['median_added_p50_ms']:+.2f}",
            f"{row['added_p99_ms']:+.2f}", f"{row['median_added_p99_ms']:+.2f}",
            f"{row['rss_mib']:.0f}", f"{row['errors']:.0f}", f"{row['foreign_frac']:.2f}",
        )  # fmt: skip
    return made


if __name__ == "__main__":
    main()
