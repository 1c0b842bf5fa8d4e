"""How well the simulator replays three real vLLM 0.19 runs, request by request.

Each run sent 300 ShareGPT requests at 10 a second to an engine on RTX PRO 6000 GPUs. The simulator
gets the engine's settings, the requests' times and lengths, and the bundled calibration; nothing
is fitted on the runs. TTFT and E2E begin where the engine's log does: when its scheduler first
sees a request, which is at the end of the iteration that runs when the request arrives.

Run: python benchmarks/replays.py [--json]
Source: `vllm_e2e` of the shared profiles (LLMServingSim's recordings).
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.hardware import GPUS
from trimtab.env.knobs import Knobs
from trimtab.env.latency import COMMUNICATION_TOKENS, linear_time_s
from trimtab.env.model_profile import MODELS
from trimtab.env.roofline import ACTIVATION_BYTES, ALL_REDUCES_PER_LAYER, latency_coefficients
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.layout import FINISHED, WAITING
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload, compile_workload
from trimtab.traces.schema import RequestTrace

GPU = "RTXPRO6000-96G"
RUNS_DIR = "profiles/llmservingsim/vllm_e2e/RTXPRO6000"
# Engine settings of all three runs, `vllm/meta.json`.
MAX_NUM_SEQS = 128
MAX_BATCH_TOKENS = 2048
# bytes/s and s of one transfer between the two GPUs, `link_bw` and `link_latency` in `config.json`
LINK_BYTES_PER_S = 16e9
LINK_S = 20e-6
# s after an arrival at which the replay looks whether an iteration is in progress
GLANCE_S = 1e-6
STATISTICS = {
    "mean": np.mean,
    "p50": np.median,
    "p99": lambda values: np.percentile(values, 99),
}
# Largest error allowed, by metric and statistic.
TARGETS = {
    ("tpot", "mean"): 0.05,
    ("e2e", "mean"): 0.05,
    ("e2e", "p99"): 0.10,
    ("ttft", "mean"): 0.15,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recorded run: what was served, and on how many GPUs."""

    folder: str
    """Below `RUNS_DIR`."""
    model: str
    """Name in the model catalogue."""
    tensor_parallel: int = 1
    """GPUs of an engine."""
    num_engines: int = 1
    """Data-parallel engines in lock-step, with the experts spread over all of them."""


RUNS = {
    "llama-3.1-8b": Run(folder="Llama-3.1-8B", model="llama-3-8b"),
    "qwen3-32b-tp2": Run(folder="Qwen3-32B", model="qwen3-32b", tensor_parallel=2),
    "qwen3-30b-a3b-dp2": Run(
        folder="Qwen3-30B-A3B-Instruct-2507", model="qwen3-30b-a3b", num_engines=2
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When things happened to each request, s [N]."""

    queued_s: np.ndarray
    first_token_s: np.ndarray
    last_token_s: np.ndarray

    def metrics(self, output_tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Return TTFT, TPOT and E2E of each request, s [N]."""
        return {
            "ttft": self.first_token_s - self.queued_s,
            "tpot": (self.last_token_s - self.first_token_s) / (output_tokens - 1),
            "e2e": self.last_token_s - self.queued_s,
        }


def shared_dir() -> Path | None:
    """Return the folder of shared data, or None where there is none."""
    default = Path(__file__).resolve().parent.parent.parent / "shared"
    path = Path(os.environ.get("TRIMTAB_SHARED", default))
    return path if (path / "profiles").is_dir() else None


def load_run(run: Run, shared: Path) -> tuple[Workload, Moments]:
    """Return the requests of a run, from 0 on, and what really happened to them."""
    path = shared / RUNS_DIR / run.folder / "vllm" / "requests.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    # Arrivals are on another clock; the quickest request is taken to have been seen at once.
    offset_s = (column["queued_ts"] - column["arrival_time"]).min()
    arrival_s = column["arrival_time"] + offset_s
    start_s = arrival_s[0]
    trace = RequestTrace.from_columns(
        arrival_s=arrival_s - start_s,
        input_tokens=column["input_toks"],
        output_tokens=column["output_toks"],
    )
    real = Moments(
        queued_s=column["queued_ts"] - start_s,
        first_token_s=column["first_token_ts"] - start_s,
        last_token_s=column["last_token_ts"] - start_s,
    )
    return compile_workload(trace, name=run.folder), real


def make_cluster(run: Run) -> ClusterSpec:
    """Return the engines as one replica."""
    num_gpus = run.tensor_parallel * run.num_engines
    server = ServerSpec(name="server", zone="zone", gpu=GPU, num_gpus=num_gpus)
    replica = ReplicaSpec(
        name="engine",
        server="server",
        model=run.model,
        gpu_indices=tuple(range(num_gpus)),
        max_num_seqs=MAX_NUM_SEQS * run.num_engines,
        max_batch_tokens=MAX_BATCH_TOKENS * run.num_engines,
    )
    return ClusterSpec(name=run.folder, servers=(server,), replicas=(replica,))


def pair_layers_s(engine: np.ndarray, run: Run, num_tokens: int) -> np.ndarray:
    """Return the layers' time of two engines in lock-step by the tokens of both, s [num_tokens].

    The engines share the experts, so they meet at every layer and the busier one sets the pace:
    it has half of all tokens, or all of a prompt's chunk beside half of the decodes. Of the
    experts each has half, for the tokens of both.

    Shapes: `engine` LATENCY_DTYPE [1], one engine with all experts.
    """
    tokens = np.arange(num_tokens, dtype=np.float64)
    busier_tokens = np.maximum(tokens / 2, tokens - MAX_NUM_SEQS)
    dense = engine.copy()
    dense["expert_s"] = dense["expert_token_s"] = 0.0
    dense_s = np.array([linear_time_s(dense[0], count) for count in busier_tokens])
    experts_s = np.array(
        [linear_time_s(engine[0], count) - linear_time_s(dense[0], count) for count in tokens]
    )
    model = MODELS[run.model]
    moved_bytes = busier_tokens * model.hidden_size * ACTIVATION_BYTES
    # The hidden states are gathered before the experts and scattered after them.
    moved_s = 2 * model.num_layers * (LINK_S + moved_bytes / LINK_BYTES_PER_S)
    return dense_s + experts_s / 2 + moved_s


def use_pair(fleet: SimulatedFleet, run: Run) -> None:
    """Make the fleet's replica of two GPUs two engines in lock-step."""
    engine = latency_coefficients(GPUS[GPU], MODELS[run.model])
    arrays = fleet.arrays
    arrays.linear_s[:] = pair_layers_s(engine, run, arrays.linear_s.shape[1])
    # Each engine decodes half of the sequences; a prompt is on one of them.
    for name in ("request_s", "head_seq_s", "decode_context_s"):
        engine[name] /= 2
    arrays.actual[:] = arrays.nominal[:] = engine


def use_link(fleet: SimulatedFleet, run: Run) -> None:
    """Give a replica's all-reduces the link of the recorded machine."""
    model = MODELS[run.model]
    # A ring of two moves each byte once; `ALL_REDUCES_PER_LAYER` of them a layer.
    moved_bytes = COMMUNICATION_TOKENS * model.hidden_size * ACTIVATION_BYTES
    calls = ALL_REDUCES_PER_LAYER * model.num_layers
    arrays = fleet.arrays
    for coefficients in (arrays.actual, arrays.nominal):
        coefficients["communication_s"] = calls * (LINK_S + moved_bytes / LINK_BYTES_PER_S)
    arrays.linear_s[:] = np.nan


def simulate(
    run: Run, workload: Workload, *, is_async_scheduling: bool = True
) -> tuple[SimulatedFleet, Moments]:
    """Replay a run and return the fleet at its end, and when things happened."""
    # Single steps, so that the end of the iteration in progress can be read at any moment.
    config = FleetConfig(
        is_async_scheduling=is_async_scheduling, is_single_step=True, scrape_interval_s=1.0
    )
    fleet = SimulatedFleet(make_cluster(run), workload, config)
    fleet.reset(seed=0, knobs=Knobs.of())
    if run.num_engines == 2:
        use_pair(fleet, run)
    if run.tensor_parallel == 2:
        use_link(fleet, run)
    queued_s = workload.requests["arrival_s"].copy()
    for index, arrival_s in enumerate(queued_s):
        fleet.advance(max(arrival_s - fleet.now_s, 0.0) + GLANCE_S)
        if fleet.requests["status"][index] == WAITING:
            queued_s[index] = next_event_s(fleet)
    fleet.drain()
    requests = fleet.requests
    if not (requests["status"] == FINISHED).all():
        msg = f"replay of {run.folder!r}: not all requests finished"
        raise RuntimeError(msg)
    return fleet, Moments(
        queued_s=queued_s,
        first_token_s=requests["first_token_s"],
        last_token_s=requests["finish_s"],
    )


def compare(real: Moments, simulated: Moments, output_tokens: np.ndarray) -> dict[str, float]:
    """Return real and simulated statistics (s) and their relative error, by name."""
    row: dict[str, float] = {}
    metrics = simulated.metrics(output_tokens)
    for metric, values in real.metrics(output_tokens).items():
        for name, statistic in STATISTICS.items():
            truth, guess = float(statistic(values)), float(statistic(metrics[metric]))
            row[f"{metric}_{name}_real_s"] = truth
            row[f"{metric}_{name}_simulated_s"] = guess
            row[f"{metric}_{name}_error_frac"] = guess / truth - 1.0
    return row


def kv_peak_frac(fleet: SimulatedFleet, workload: Workload) -> float:
    """Return the share of KV pages that the longest requests would fill, all slots taken."""
    limits = fleet.arrays.replicas[0]
    tokens = np.sort(
        workload.requests["query"]["input_tokens"] + workload.requests["output_tokens"]
    )
    most = int(tokens[-int(limits["max_num_seqs"]) :].sum())
    return most / float(limits["total_pages"] * fleet.arrays.fleet[0]["page_tokens"])


def next_event_s(fleet: SimulatedFleet) -> float:
    """When the only replica next changes, the root of the tree of moments."""
    return float(fleet.arrays.event_tree[1])


def replay_all(shared: Path) -> dict[str, dict[str, float]]:
    """Return the comparison of every run, by its name."""
    rows = {}
    for name, run in RUNS.items():
        workload, real = load_run(run, shared)
        fleet, simulated = simulate(run, workload)
        rows[name] = compare(real, simulated, workload.requests["output_tokens"])
        rows[name]["kv_peak_frac"] = kv_peak_frac(fleet, workload)
    return rows


def misses(row: dict[str, float]) -> list[str]:
    """Return the targets that a run misses, as text."""
    return [
        f"{metric} {name} {row[f'{metric}_{name}_error_frac']:+.1%} (allowed {limit:.0%})"
        for (metric, name), limit in TARGETS.items()
        if abs(row[f"{metric}_{name}_error_frac"]) > limit
    ]


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the comparison as text: real, simulated (ms) and error of each statistic."""
    lines = [f"{'run':18} {'metric':6}" + "".join(f"{name:>30}" for name in STATISTICS)]
    for run, row in rows.items():
        for metric in ("ttft", "tpot", "e2e"):
            cells = []
            for name in STATISTICS:
                real, simulated, error = (
                    row[f"{metric}_{name}_{kind}"]
                    for kind in ("real_s", "simulated_s", "error_frac")
                )
                cells.append(f"{1e3 * real:11.1f}{1e3 * simulated:11.1f}{error:+8.1%}")
            lines.append(f"{run:18} {metric:6}" + "".join(cells))
        lines.append(f"{run:18} misses: {'; '.join(misses(row)) or 'none'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    shared = shared_dir()
    if shared is None:
        parser.error("no shared data; set TRIMTAB_SHARED to the folder that holds profiles/")
    rows = replay_all(shared)
    print(json.dumps(rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
