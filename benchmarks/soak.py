"""Ten minutes of high load through `trimtab serve`: whether memory is flat and nothing is lost.

Four engines without a model; streams and whole answers in turn, recorded and with every 16th
decision kept in full. Requests are counted at both ends: by the clients and by the gateway. Memory
is that of the gateway's process, after each tenth of the time.

Run: python benchmarks/soak.py [--json] [--seconds 600] [--rate-rps 150]
"""

import argparse
import asyncio
import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from trimtab.runtime.launcher.fleet_plan import free_ports
from trimtab.runtime.launcher.simulated_fleet import SimulatedReplica, simulated_fleet
from trimtab.runtime.load.player import LoadConfig, LoadPlayer
from trimtab.runtime.load.results import figures
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.traces.schema import RequestTrace

PARTS = 10


def part_of(seed: int, rate_rps: float, span_s: float) -> RequestTrace:
    rng = np.random.default_rng(seed)
    number = int(rate_rps * span_s)
    return RequestTrace.from_columns(
        arrival_s=np.sort(rng.uniform(0, span_s, number)),
        input_tokens=rng.integers(50, 400, number), output_tokens=rng.integers(4, 28, number),
        ttft_slo_s=2.0, tpot_slo_s=0.2,
    )  # fmt: skip


def fetched(port: int, path: str, token: str = "") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else b""
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate-rps", type=float, default=150.0)
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stderr if arguments.json else sys.stdout)
    rows = []
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        speed = EngineSpeed(max_num_seqs=64)
        with simulated_fleet([SimulatedReplica(speed=speed)] * 4, directory / "fleet") as fleet:
            fleet.start()
            port, admin_port = free_ports(2)
            command = [
                *(sys.executable, "-m", "trimtab", "serve", "--port", str(port)),
                *("--fleet", str(directory / "fleet" / "fleet.yaml")),
                *("--admin-port", str(admin_port), "--dir", str(directory / "state")),
                *("--record", str(directory / "record")),
                *("--decisions", str(directory / "decisions")),
            ]
            with (directory / "serve.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                while b"true" not in fetched(port, "/readyz"):
                    if process.poll() is not None:
                        raise SystemExit((directory / "serve.log").read_text()[-2000:])
                    time.sleep(0.2)
                span_s = arguments.seconds / PARTS
                for number in range(PARTS):
                    trace = part_of(number, arguments.rate_rps, span_s)
                    config = LoadConfig(port=port, model="simulated", is_stream=number % 2 == 0)
                    results = asyncio.run(LoadPlayer(trace, config).play())
                    seen = figures(results)
                    rows.append(
                        {
                            "rss_mib": psutil.Process(process.pid).memory_info().rss / 2**20,
                            "sent": seen.num_requests,
                            "failed": seen.num_failed,
                            "shed": seen.num_shed,
                            "ttft_p99_ms": 1e3 * seen.ttft_p99_s,
                        }
                    )
                    console.print(rows[-1])
                time.sleep(1.0)
                token = (directory / "state" / "admin-token").read_text().strip()
                status = json.loads(fetched(admin_port, "/admin/status", token) or b"{}")
            finally:
                process.terminate()
                process.wait(30)
    sent = sum(row["sent"] for row in rows)
    result = {
        "benchmark": "soak",
        "sent": sent,
        "failed": sum(row["failed"] for row in rows),
        "shed": sum(row["shed"] for row in rows),
        "gateway": status.get("requests", {}),
        "rss_mib": [round(row["rss_mib"], 1) for row in rows],
        "growth_mib_after_first_fifth": rows[-1]["rss_mib"] - rows[1]["rss_mib"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
