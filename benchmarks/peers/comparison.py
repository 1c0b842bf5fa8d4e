"""Runs other simulators on one workload beside ours, each in its own process and environment.

The environments are made once, under build/peers, with pinned versions from the package index. The
workload: lengths of the bundled Azure conversation trace (prompt and output at most 4,096 tokens
together), Poisson arrivals of 2 requests/s a replica, on 8 replicas of Llama-3-8B on an A100 each,
next in turn. A ratio compares requests per CPU second, of the same requests in the same sitting.

Does not know: the figures of our own simulator on other workloads (`../simulator.py`).
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.agents.heuristics import ANALYTIC_SCORER, HEURISTICS
from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec, kv_pages
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import run_workload
from trimtab.env.simulator.workload import compile_workload
from trimtab.traces.bundled import load_bundled
from trimtab.traces.schema import RequestTrace

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / "build" / "peers"
NUM_REPLICAS = 8
RATE_RPS = 16.0
MAX_TOKENS = 4096
TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Peer:
    """Another simulator: its package, and the script that times it."""

    name: str
    requirement: str
    script: str


PEERS = (
    Peer("dynosim", "ai-dynamo-runtime==1.6.1", "dynosim.py"),
    Peer("sr_sim", "vllm-sr-sim==0.1.0.dev20260713123629", "sr_sim.py"),
)


class PeerError(RuntimeError):
    """A peer could not be installed or run."""


def python_of(peer: Peer) -> Path:
    """Return the Python of a peer's environment, made if need be.

    Raises:
        PeerError: it cannot be installed.
    """
    folder = ENVIRONMENTS / peer.requirement
    python, stamp = folder / "bin" / "python", folder / "installed"
    if stamp.exists():
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)],
                    [*pip, peer.requirement]):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            msg = f"{peer.requirement} could not be installed: {reason}; or use --without-peers"
            raise PeerError(msg)
    stamp.touch()
    return python


def make_cluster() -> ClusterSpec:
    server = ServerSpec(name="a100", zone="a", gpu="A100-80G", num_gpus=NUM_REPLICAS)
    replicas = tuple(
        ReplicaSpec(name=f"r{i}", server="a100", model="llama-3-8b", gpu_indices=(i,))
        for i in range(NUM_REPLICAS)
    )
    return ClusterSpec(name="peers", servers=(server,), replicas=replicas)


def make_trace(num_requests: int) -> RequestTrace:
    recorded = load_bundled("azure-conv")
    lengths = np.stack([recorded.input_tokens, recorded.output_tokens], axis=1)
    lengths = lengths[lengths.sum(axis=1) <= MAX_TOKENS]
    rng = np.random.default_rng(0)
    drawn = lengths[rng.integers(len(lengths), size=num_requests)]
    return RequestTrace.from_columns(
        arrival_s=np.cumsum(rng.exponential(1.0 / RATE_RPS, num_requests)),
        input_tokens=drawn[:, 0],
        output_tokens=drawn[:, 1],
        block_tokens=TRACE_BLOCK_TOKENS,
    )


def write_mooncake(trace: RequestTrace, path: Path) -> None:
    """Write a trace as Mooncake's JSON lines, with no block in common between requests."""
    blocks = -(-trace.input_tokens.astype(np.int64) // TRACE_BLOCK_TOKENS)
    firsts = np.cumsum(blocks) - blocks
    columns = (trace.arrival_s, trace.input_tokens, trace.output_tokens, firsts, blocks)
    with path.open("w") as file:
        for at_s, input_tokens, output_tokens, first, count in zip(*columns, strict=True):
            row = {
                "timestamp": round(float(at_s) * 1000.0, 3),
                "input_length": int(input_tokens),
                "output_length": int(output_tokens),
                "hash_ids": list(range(first, first + count)),
            }
            file.write(json.dumps(row) + "\n")


def run_peer(peer: Peer, trace_path: Path, num_requests: int) -> float:
    """Return the CPU seconds of a peer.

    Raises:
        PeerError: it failed, or lost requests.
    """
    cluster = make_cluster()
    blocks = kv_pages(cluster, cluster.replicas[0])
    command = [python_of(peer), HERE / peer.script, trace_path, str(NUM_REPLICAS), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        msg = f"{peer.name} failed: {reason}"
        raise PeerError(msg)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    if figures["completed"] != num_requests:
        msg = f"{peer.name} completed {figures['completed']} of {num_requests} requests"
        raise PeerError(msg)
    return float(figures["cpu_s"])


def run_ours(trace: RequestTrace, knobs: Knobs) -> float:
    """Return the CPU seconds of our simulator, reading the trace included."""
    start_s = time.process_time()
    fleet = run_workload(make_cluster(), compile_workload(trace, name="peers"), knobs)
    cpu_s = time.process_time() - start_s
    if fleet.num_open:
        msg = f"our simulator left {fleet.num_open} requests open"
        raise PeerError(msg)
    return cpu_s


def compare(sizes: tuple[int, ...], num_runs: int) -> dict[str, float]:
    """Return requests per CPU second of ours and of the peers, and their ratios, best of the runs.

    Raises:
        PeerError: a peer cannot be installed or run.
    """
    figures: dict[str, float] = {}
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    policies = {"round_robin": HEURISTICS["round-robin"].knobs, "scorer": ANALYTIC_SCORER.knobs}
    run_ours(make_trace(100), ANALYTIC_SCORER.knobs)  # compile
    for size in sizes:
        trace, path = make_trace(size), ENVIRONMENTS / f"trace-{size}.jsonl"
        write_mooncake(trace, path)
        ours = {name: min(run_ours(trace, knobs) for _ in range(num_runs))
                for name, knobs in policies.items()}  # fmt: skip
        label = f"{size // 1000}k"
        figures |= {f"peers_ours_{name}_{label}": size / s for name, s in ours.items()}
        for peer in PEERS:
            peer_s = min(run_peer(peer, path, size) for _ in range(num_runs))
            figures[f"peers_{peer.name}_{label}"] = size / peer_s
            figures[f"ratio_vs_{peer.name}_{label}"] = peer_s / ours["round_robin"]
            figures[f"ratio_vs_{peer.name}_scorer_{label}"] = peer_s / ours["scorer"]
        path.unlink()
    largest = f"{max(sizes) // 1000}k"
    for peer in PEERS:
        figures[f"ratio_vs_{peer.name}"] = figures[f"ratio_vs_{peer.name}_{largest}"]
    return figures
