"""Times vllm-sr-sim's fleet simulation on a trace; prints one JSON object.

It simulates requests, not iterations: a request's service time is fixed when it is admitted, from
the number of slots in use then. Run by `benchmarks/simulator.py` with the peer's own Python.

Run: python benchmarks/peers/sr_sim.py TRACE NUM_REPLICAS
"""

import json
import sys
import time
from pathlib import Path

from fleet_sim.core.fleet import Fleet, FleetConfig, PoolConfig
from fleet_sim.core.request import Request
from fleet_sim.gpu_profiles.builder import ProfileBuilder, ServingConfig
from fleet_sim.hardware.catalog import A100_SXM
from fleet_sim.models.catalog import LLAMA_3_1_8B

MAX_CONTEXT_TOKENS = 8192


def read_requests(path: str) -> list[tuple[float, Request]]:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    moments = [row["timestamp"] / 1000.0 for row in rows]
    return [
        (at_s, Request(i, at_s, row["input_length"], row["output_length"]))
        for i, (at_s, row) in enumerate(zip(moments, rows, strict=True))
    ]


def main() -> None:
    path, num_replicas = sys.argv[1], int(sys.argv[2])
    profile = ProfileBuilder().build(A100_SXM, LLAMA_3_1_8B, ServingConfig(chunk=512))
    pool = PoolConfig("all", profile, num_replicas, MAX_CONTEXT_TOKENS, lb_strategy="round_robin")
    requests = read_requests(path)
    start_s = time.process_time()
    result = Fleet(FleetConfig(pools=[pool])).run(requests)
    cpu_s = time.process_time() - start_s
    print(json.dumps({"cpu_s": cpu_s, "completed": len(result.completed)}))


if __name__ == "__main__":
    main()
