"""Times DynoSim, the offline replay of Dynamo's mocker, on a trace; prints one JSON object.

It simulates every iteration of every worker, as an engine's scheduler would run it (continuous
batching, chunked prefill, KV blocks), with its default polynomial timing; no metrics page, no
energy, no faults. Run by `benchmarks/simulator.py` with the peer's own Python.

Run: python benchmarks/peers/dynosim.py TRACE NUM_REPLICAS KV_BLOCKS
"""

import json
import sys
import time

from dynamo._core import run_mocker_trace_replay

# The second is what the peer does by itself: fewer, larger steps of prefill and larger blocks.
SETTINGS = {
    "equal": {"block_size": 16, "max_num_batched_tokens": 512, "enable_prefix_caching": False},
    "default": {},
}


def replay(path: str, num_replicas: int, engine: dict) -> tuple[float, dict]:
    """Return CPU seconds of a replay, reading the trace included, and the peer's summary."""
    start_s = time.process_time()
    result = run_mocker_trace_replay(
        [path],
        extra_engine_args={"engine": {"backend": "vllm", "max_num_seqs": 256, **engine}},
        num_workers=num_replicas,
        router_mode="round_robin",
        trace_block_size=512,
        trace_format="mooncake",
        capture_planner_details=False,
    )
    return time.process_time() - start_s, result.summary


def main() -> None:
    path, num_replicas, kv_blocks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    figures = {}
    for name, engine in SETTINGS.items():
        blocks = {"num_gpu_blocks": kv_blocks * 16 // engine.get("block_size", 64)}
        cpu_s, summary = replay(path, num_replicas, {**engine, **blocks})
        figures[f"{name}_cpu_s"] = cpu_s
        completed = summary["completed_requests"]
    print(json.dumps({"cpu_s": min(figures.values()), "completed": completed, **figures}))


if __name__ == "__main__":
    main()
