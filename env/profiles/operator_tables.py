"""Reader of LLMServingSim's operator tables: layers and attention as vLLM 0.19 ran them.

Its attention was measured with prefill and decode in one batch, so mixed iterations are measured
and not composed. Layers are added up: two norms, projections, MLP or experts, positions; then the
output head for every sequence. Tensor-parallel tables hold one GPU's kernels without transfers.

Does not know: how a calibration is fitted.
Source: LLMServingSim, `profiler/perf`; layout in `profiles/README.md` of the shared data.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
from numpy.typing import NDArray

from ...traces.errors import ConfigError
from ..hardware import GPUS, Precision
from ..model_shape import ModelProfile
from .composition import kv_capacity_tokens
from .samples import IterationSamples

Array = NDArray[np.float64]

# folder of each GPU and model of the catalogues
SYSTEMS = {"RTXPRO6000-96G": "RTXPRO6000"}
FOLDERS = {
    "llama-3-8b": "meta-llama/Llama-3.1-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B-Instruct-2507",
}
# the operator runs once before attention and once before the MLP
_TWICE = "layernorm"
# once an iteration, not in the layers
_OUTSIDE = ("embedding", "final_layernorm")
_PREFILL_TOKENS = (64, 128, 256, 512, 1024, 2048)
_MIXED_TOKENS = (128, 256, 512, 1024, 2048)
_MIXED_CONTEXTS = (128, 512, 1024, 2048, 4096, 8192)
_STARTS = (0, 512, 2048, 8192)


def operator_samples(
    profiles: Path, gpu_name: str, model: ModelProfile, tensor_parallel: int = 1
) -> IterationSamples | None:
    """Iterations of a model on a GPU, or None where its tables are incomplete.

    Raises: `ConfigError` for a GPU without tables.
    """
    if gpu_name not in SYSTEMS:
        msg = f"no operator tables for GPU {gpu_name!r}; known: {', '.join(SYSTEMS)}"
        raise ConfigError(msg)
    root = profiles / "llmservingsim" / "profiler" / SYSTEMS[gpu_name]
    folder = root / FOLDERS.get(model.name, "none") / "bf16" / f"tp{tensor_parallel}"
    if not folder.is_dir() or (model.is_moe and not (folder / "moe.csv.gz").is_file()):
        return None
    attention = _columns(folder / "attention.csv.gz")
    capacity = kv_capacity_tokens(GPUS[gpu_name], model, tensor_parallel, Precision.BF16)
    held = attention["n_decode"] * attention["kv_decode"] + attention["kv_prefill"]
    chosen = _chosen(attention) & (held <= capacity)
    chunk, start, seqs, context = (
        attention[name][chosen].astype(np.float64)
        for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    )
    layers_s, rest_s = _layers_s(folder, model, chunk + seqs, np.maximum(seqs, 1) + (chunk > 0))
    attention_s = 1e-6 * model.num_layers * attention["time_us"][chosen]
    times_s = layers_s + rest_s + attention_s
    nothing = np.full(times_s.size, np.nan)
    parts = [
        layers_s,
        np.where(seqs == 0, attention_s, np.where(chunk == 0, 0.0, nothing)),
        np.where(chunk == 0, attention_s, np.where(seqs == 0, 0.0, nothing)),
        rest_s,
    ]
    positions = chunk * start + chunk * (chunk + 1) / 2
    zeros = np.zeros(times_s.size)
    return IterationSamples(
        model=model,
        tensor_parallel=tensor_parallel,
        precision=Precision.BF16,
        batches=np.stack([chunk, positions, seqs, seqs * context, zeros, zeros], axis=1),
        times_s=times_s,
        parts_s=np.stack(parts, axis=1),
        has_communication=False,
        is_mixed_measured=True,
    )


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    table = pyarrow.csv.read_csv(path)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _chosen(table: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Rows that stand for a server's batches; each kind about as many as composed ones have."""
    chunk, start = table["prefill_chunk"], table["kv_prefill"]
    seqs, context = table["n_decode"], table["kv_decode"]
    prefill = (seqs == 0) & np.isin(chunk, _PREFILL_TOKENS)
    decode = (chunk == 0) & (seqs > 0) & (context >= 64)
    mixed = np.isin(chunk, _MIXED_TOKENS) & (seqs >= 4) & np.isin(context, _MIXED_CONTEXTS)
    return np.asarray(prefill | decode | (mixed & np.isin(start, _STARTS)))


def _layers_s(folder: Path, model: ModelProfile, tokens: Array, seqs: Array) -> tuple[Array, Array]:
    """Layers without attention, and what an iteration adds to them, seconds."""
    dense = _columns(folder / "dense.csv.gz")
    layers_us, rest_us = np.zeros(tokens.size), np.zeros(tokens.size)
    for name in np.unique(dense["layer"].astype(str)):
        rows = dense["layer"] == name
        time_us = np.interp(tokens, dense["tokens"][rows], dense["time_us"][rows])
        if name in _OUTSIDE:
            rest_us += time_us
        else:
            layers_us += model.num_layers * time_us * (2 if name == _TWICE else 1)
    if model.is_moe:
        layers_us += model.num_layers * _experts_us(folder, model, tokens)
    heads = _columns(folder / "per_sequence.csv.gz")
    rows = heads["layer"] == "lm_head"
    rest_us += np.interp(seqs, heads["sequences"][rows], heads["time_us"][rows])
    return 1e-6 * layers_us, 1e-6 * rest_us


def _experts_us(folder: Path, model: ModelProfile, tokens: Array) -> Array:
    """Experts of one layer, for as many experts as independent tokens would touch.

    Interpolated in logarithms of both; the tables hold powers of two.
    """
    table = _columns(folder / "moe.csv.gz")
    sizes, counts = np.unique(table["tokens"]), np.unique(table["activated_experts"])
    grid = np.full((sizes.size, counts.size), np.nan)
    grid[
        np.searchsorted(sizes, table["tokens"]),
        np.searchsorted(counts, table["activated_experts"]),
    ] = np.log(table["time_us"].astype(float))
    touched = model.num_experts * (1.0 - (1.0 - model.expert_use_frac) ** tokens)
    by_size = np.stack(
        [
            np.interp(np.log(touched), np.log(counts[known]), row[known])
            for row, known in ((row, np.isfinite(row)) for row in grid)
        ]
    )
    place = np.interp(np.log(tokens), np.log(sizes.astype(float)), np.arange(sizes.size))
    low = np.minimum(place.astype(int), sizes.size - 2)
    share, column = place - low, np.arange(tokens.size)
    logs = (1 - share) * by_size[low, column] + share * by_size[low + 1, column]
    return np.asarray(np.exp(logs))
