"""How well the simulator meets real serving measurements: TTFT and TPOT at a concurrency.

Each point is a benchmark of one server: so many requests in flight, prompts and answers of given
lengths, means over the run. The simulator runs the same closed loop on one replica with the bundled
calibration of the GPU; nothing is fitted on the points. Points that it does not model are counted
by reason.

Run: python benchmarks/serving_points.py [--json] [--every 1]
Source: `silicon_e2e_sample` of the shared profiles (aiconfigurator 0.12; most of it InferenceMAX).
"""

import argparse
import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from replays import shared_dir

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.hardware import Precision
from trimtab.env.knobs import Knobs
from trimtab.env.kpis import tpot_s, ttft_s
from trimtab.env.model_profile import MODELS
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.layout import FINISHED
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import compile_workload
from trimtab.traces.errors import ConfigError
from trimtab.traces.schema import RequestTrace

POINTS_FILE = "profiles/aiconfigurator/silicon_e2e_sample.csv.gz"
GPUS = {"h100_sxm": "H100-80G", "h200_sxm": "H200-141G", "b200_sxm": "B200-180G"}
MODEL_NAMES = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3-8b",
    "meta-llama/Llama-3.1-70B": "llama-3-70b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "openai/gpt-oss-120b": "gpt-oss-120b",
}
# An empty cell is a checkpoint in 16 bits.
PRECISIONS = {"bf16": Precision.BF16, "": Precision.BF16, "fp8": Precision.FP8}
# Requests of a run for each in flight, InferenceMAX's client.
REQUESTS_PER_CLIENT = 10
# Shortest prompt and answer as a share of the longest, InferenceMAX's client (random-range-ratio).
LENGTH_RATIO = 0.8
# s between the client and the engine's queue: HTTP and tokenising, BLIS fit on vLLM
CLIENT_S = 15.6e-3
# Most tokens in a batch, InferenceMAX's settings of vLLM, and of TRT-LLM; SGLang's default chunk.
MAX_BATCH_TOKENS = {"vllm": 8192, "trtllm": 16384, "sglang": 8192}
MAX_NUM_SEQS = 1024
# Iterations that TRT-LLM waits for more prompts in InferenceMAX's settings for Llama-3.1-70B at
# 1,024 tokens in and out on fewer than 8 GPUs (batch_wait_timeout_iters).
BATCH_WAIT_ITERATIONS = 20
PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One real measurement."""

    model: str
    gpu: str
    precision: Precision
    backend: str
    tensor_parallel: int
    expert_parallel: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


def why_not(row: dict[str, str]) -> str | None:
    """Return why a row cannot be simulated, or None."""
    if row["mode"] != "agg":
        return "disaggregated"
    if row["precision"] not in PRECISIONS:
        return "4-bit weights"
    if row["attention_dp_size"] not in ("", "1"):
        return "attention data parallel"
    if row["system"] not in GPUS:
        return f"GPU {row['system']}"
    if MODEL_NAMES.get(row["model_path"]) not in MODELS:
        return f"model {row['model_path']}"
    return None


def read_points(shared: Path) -> tuple[list[Point], Counter[str]]:
    """Return the points that can be simulated, and how many cannot by reason."""
    points, left_out = [], Counter[str]()
    with gzip.open(shared / POINTS_FILE, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            reason = why_not(row)
            if reason is not None:
                left_out[reason] += 1
                continue
            points.append(
                Point(
                    model=MODEL_NAMES[row["model_path"]],
                    gpu=GPUS[row["system"]],
                    precision=PRECISIONS[row["precision"]],
                    backend=row["backend"],
                    tensor_parallel=int(row["tp_size"]),
                    expert_parallel=int(row["moe_ep_size"] or 1),
                    concurrency=int(row["batch_size"]),
                    input_tokens=int(row["isl"]),
                    output_tokens=int(row["osl"]),
                    ttft_s=float(row["silicon_ttft_ms"]) / 1e3,
                    tpot_s=float(row["silicon_tpot_ms"]) / 1e3,
                )
            )
    return points, left_out


def make_cluster(point: Point) -> ClusterSpec:
    """Return one replica as the point had it."""
    num_gpus = point.tensor_parallel
    server = ServerSpec(name="server", zone="zone", gpu=point.gpu, num_gpus=num_gpus)
    replica = ReplicaSpec(
        name="engine",
        server="server",
        model=point.model,
        gpu_indices=tuple(range(num_gpus)),
        precision=point.precision,
        max_num_seqs=MAX_NUM_SEQS,
        max_batch_tokens=MAX_BATCH_TOKENS[point.backend],
        page_tokens=PAGE_TOKENS,
    )
    return ClusterSpec(name="point", servers=(server,), replicas=(replica,))


def lengths(longest: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return tokens of each request, spread evenly up to the longest; int64 [count]."""
    return rng.integers(int(LENGTH_RATIO * longest), longest, count, endpoint=True)


def has_8_bit_cache(point: Point) -> bool:
    """Whether the engine kept its KV cache in 8 bits.

    The points do not say; InferenceMAX's settings of vLLM and TRT-LLM do, for 8-bit weights.
    """
    return point.precision is Precision.FP8 and point.backend != "sglang"


def use_8_bit_cache(fleet: SimulatedFleet) -> None:
    """Let a fleet that has not begun keep its KV cache in 8 bits: half the bytes a token."""
    arrays = fleet.arrays
    arrays.replicas["total_pages"] *= 2
    arrays.replicas["free_pages"] *= 2
    arrays.views["kv_capacity_tokens"] *= 2
    for coefficients in (arrays.actual, arrays.nominal):
        coefficients["decode_context_s"] /= 2
        coefficients["window_context_s"] /= 2


def waits_for_prompts(point: Point) -> bool:
    """Whether the engine let prompts wait for others, to prefill them together."""
    lengths_tokens = (point.input_tokens, point.output_tokens)
    return (
        point.backend == "trtllm"
        and point.model == "llama-3-70b"
        and lengths_tokens == (1024, 1024)
        and point.tensor_parallel < 8
    )


def simulate(point: Point) -> tuple[float, float]:
    """Return mean TTFT and TPOT, s."""
    count = REQUESTS_PER_CLIENT * point.concurrency
    rng = np.random.default_rng(0)
    trace = RequestTrace.from_columns(
        arrival_s=np.zeros(count),
        input_tokens=lengths(point.input_tokens, count, rng),
        output_tokens=lengths(point.output_tokens, count, rng),
    )
    config = FleetConfig(
        closed_loop_requests=point.concurrency,
        closed_loop_gap_s=CLIENT_S,
        is_async_scheduling=True,
        scrape_interval_s=1.0,
    )
    fleet = SimulatedFleet(make_cluster(point), compile_workload(trace, name="point"), config)
    fleet.reset(seed=0, knobs=Knobs.of())
    if has_8_bit_cache(point):
        use_8_bit_cache(fleet)
    while fleet.requests.size < count or fleet.num_open > 0:
        fleet.drain()
    requests = fleet.requests
    if not (requests["status"] == FINISHED).all():
        msg = f"not all requests of {point} finished"
        raise RuntimeError(msg)
    mean_ttft_s, mean_tpot_s = float(ttft_s(requests).mean()), float(tpot_s(requests).mean())
    if waits_for_prompts(point):
        mean_ttft_s += BATCH_WAIT_ITERATIONS * mean_tpot_s
    return mean_ttft_s + CLIENT_S, mean_tpot_s


def run_points(points: Iterable[Point], left_out: Counter[str]) -> list[tuple[Point, float, float]]:
    """Return each point with its relative errors of TTFT and TPOT; count what does not fit."""
    rows = []
    for point in points:
        try:
            simulated_ttft_s, simulated_tpot_s = simulate(point)
        except ConfigError:
            left_out["weights do not fit the GPUs as modelled"] += 1
            continue
        rows.append(
            (point, simulated_ttft_s / point.ttft_s - 1, simulated_tpot_s / point.tpot_s - 1)
        )
    return rows


GROUPS: dict[str, Callable[[Point], str]] = {
    "all": lambda point: "all",
    "gpu": lambda point: point.gpu,
    "backend": lambda point: point.backend,
    "model": lambda point: f"{point.model} {point.precision.value} {point.gpu} {point.backend}",
}


def summary(
    rows: Sequence[tuple[Point, float, float]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Return median absolute error and bias of TTFT and TPOT, by grouping and group."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for grouping, key in GROUPS.items():
        result[grouping] = {}
        for group in sorted({key(point) for point, _, _ in rows}):
            errors = np.array([row[1:] for row in rows if key(row[0]) == group])
            result[grouping][group] = {
                "num_points": errors.shape[0],
                "ttft_median_frac": float(np.median(np.abs(errors[:, 0]))),
                "ttft_bias_frac": float(np.median(errors[:, 0])),
                "tpot_median_frac": float(np.median(np.abs(errors[:, 1]))),
                "tpot_bias_frac": float(np.median(errors[:, 1])),
            }
    return result


def table(groups: dict[str, dict[str, dict[str, float]]], left_out: Counter[str]) -> str:
    """Return the summary as text: median absolute error and median signed error."""
    lines = [f"{'group':48}{'points':>7}{'TTFT':>9}{'bias':>9}{'TPOT':>9}{'bias':>9}"]
    for grouping, members in groups.items():
        for group, row in members.items():
            name = f"{grouping}: {group}" if grouping != "all" else group
            lines.append(
                f"{name:48}{row['num_points']:>7}"
                f"{row['ttft_median_frac']:>9.1%}{row['ttft_bias_frac']:>+9.1%}"
                f"{row['tpot_median_frac']:>9.1%}{row['tpot_bias_frac']:>+9.1%}"
            )
    lines += [f"left out: {count:5} {reason}" for reason, count in left_out.most_common()]
    return "\n".join(lines)


def measure(shared: Path, every: int = 1) -> tuple[dict[str, object], str]:
    """Simulate the points, or each so many-th of them in the file's order; figures and text."""
    points, left_out = read_points(shared)
    groups = summary(run_points(points[::every], left_out))
    figures: dict[str, object] = {"groups": groups, "left_out": dict(left_out)}
    return figures, table(groups, left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--every", type=int, default=1, help="simulate each so many-th point")
    arguments = parser.parse_args()
    shared = shared_dir()
    if shared is None:
        parser.error("no shared data; set TRIMTAB_SHARED to the folder that holds profiles/")
    figures, text = measure(shared, arguments.every)
    print(json.dumps(figures) if arguments.json else text)


if __name__ == "__main__":
    main()
