"""How far the simulator is from real engines: fitted to one recorded run, it foretells a second.

Three llama.cpp servers with a tiny random model, two of them slowed twofold. Azure traffic, cut to
what they can bear, goes through `trimtab serve` (round robin) and is recorded twice, with other
requests. The simulator's times are measured on an idle engine, then fitted to the first run, one
factor a replica; the second run is simulated with each request at the replica that it had. Errors
are shares of what was measured: of the median and the 95th percentile of all requests, and the
median and 95th percentile over requests of each one's own error.

Run: python benchmarks/live_fidelity.py [--json] [--seconds 60] [--rate-rps 8]
"""

import argparse
import asyncio
import http.client
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trimtab.env.scenario import azure_trace
from trimtab.runtime.fidelity.engine_times import MeasurePlan, measure_engine
from trimtab.runtime.fidelity.live_fit import fit_run, read_run, time_errors, with_times
from trimtab.runtime.launcher.fleet_plan import LocalReplica, free_ports, set_measured
from trimtab.runtime.launcher.live_fleet_file import LiveFleetSpec
from trimtab.runtime.launcher.supervisor import local_fleet
from trimtab.runtime.load.player import LoadConfig, play
from trimtab.runtime.load.results import figures
from trimtab.traces.superposition import superpose
from trimtab.traces.transform import shortened, with_service

SLOWDOWNS = (1.0, 2.0, 2.0)
MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS = 320, 24


def record(
    spec: LiveFleetSpec, fleet: Path, out: Path, arguments: argparse.Namespace, seed: int
) -> float:
    """Play and record one run; return its goodput."""
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "trimtab", "serve", "--fleet", str(fleet), "--port", str(port)),
        *("--admin-port", "0", "--scheduler", "round-robin", "--record", str(out)),
    ]
    trace = with_service(
        shortened(azure_trace(0), MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS), ttft_slo_s=2.0,
        tpot_slo_s=0.2,
    )  # fmt: skip
    played = superpose(trace, rate_rps=arguments.rate_rps, span_s=arguments.seconds, seed=seed)
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not _is_ready(port):
                if process.poll() is not None:
                    raise SystemExit(out.with_suffix(".log").read_text()[-2000:])
                time.sleep(0.2)
            time.sleep(1.0)
            results = asyncio.run(play(played, LoadConfig(port=port, model=spec.replicas[0].model)))
        finally:
            process.terminate()
            process.wait(30)
    return figures(results).goodput_frac


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate-rps", type=float, default=8.0)
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stderr if arguments.json else sys.stdout)
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        replicas = [LocalReplica(slowdown=times) for times in SLOWDOWNS]
        with local_fleet(replicas, directory / "fleet") as fleet:
            fleet.start()
            times = asyncio.run(measure_engine(fleet.spec.replicas[0], MeasurePlan()))
            spec = set_measured(directory / "fleet", times)
            for number in (1, 2):
                goodput = record(
                    spec, directory / "fleet" / "fleet.yaml", directory / f"run{number}",
                    arguments, number,
                )  # fmt: skip
                console.print(f"run {number} recorded, goodput {goodput:.1%}")
        names = [replica.name for replica in spec.cluster.replicas]
        first, second = (read_run(directory / f"run{number}", names) for number in (1, 2))
        idle = with_times(spec.cluster, times, [1.0] * len(names))
        fitted = fit_run(first, spec.cluster, times)
        rows = {
            "second run, times of an idle engine": time_errors(second, idle),
            "first run, fitted to it": time_errors(first, fitted),
            "second run, fitted to the first": time_errors(second, fitted),
        }
    table = Table(
        "", *(name.replace("_", " ") for name in asdict(rows[next(iter(rows))])), box=None
    )
    for name, row in rows.items():
        table.add_row(name, *(f"{100 * value:+.0f} %" for value in asdict(row).values()))
    console.print(table)
    results = {
        "benchmark": "live_fidelity",
        "measured": asdict(times),
        "fitted": [asdict(r.measured) for r in fitted.replicas if r.measured is not None],
        "num_requests": [len(first.trace), len(second.trace)],
        "errors": {name: asdict(row) for name, row in rows.items()},
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
