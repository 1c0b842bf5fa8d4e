"""Reader of aiconfigurator's kernel tables: times of single kernels, interpolated.

Matrix multiplications are interpolated linearly in m, n and k (a step between two measured sizes
becomes a slope), attention, experts and transfers in logarithms. Where several kernels were
measured for one size, the fastest counts.

Does not know: iterations (`composition.py`).
Source: layout of aiconfigurator 0.12, `systems/data`; see `profiles/README.md` of the shared data.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.csv
from numpy.typing import ArrayLike, NDArray

from ...traces.errors import ConfigError
from ..calibration import TransferTable
from ..hardware import Precision

Columns = dict[str, NDArray[np.generic]]
Array = NDArray[np.float64]

# folder of each GPU of the catalogue
SYSTEMS = {
    "A100-80G": "a100_sxm",
    "H100-80G": "h100_sxm",
    "H200-141G": "h200_sxm",
    "B200-180G": "b200_sxm",
}
# routing of the expert tables that is nearest to a trained router
ROUTING = "power_law_1.2"
_DTYPES = {Precision.BF16: "bfloat16", Precision.FP8: "fp8"}
# DeepEP's kernels for small and for large batches
_DISPATCH_BACKENDS = ("deepep_ll", "deepep_ht")


@dataclass(frozen=True)
class AttentionTable:
    """Seconds by batch size and tokens, for one shape of attention."""

    batch_sizes: Array
    tokens: Array
    seconds: Array

    def time_s(self, batch_size: ArrayLike, tokens: ArrayLike) -> Array:
        """Interpolate in logarithms; NaN outside the measured sizes."""
        b, t = np.log(np.asarray(batch_size, float)), np.log(np.asarray(tokens, float))
        i, u = _place(np.log(self.batch_sizes), b)
        j, v = _place(np.log(self.tokens), t)
        logs = np.log(self.seconds)
        total = np.zeros(np.broadcast(b, t).shape)
        for di, wi in ((0, 1 - u), (1, u)):
            for dj, wj in ((0, 1 - v), (1, v)):
                weight = wi * wj
                total += np.where(weight > 0, weight * logs[i + di, j + dj], 0.0)
        inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
        return np.where(inside, np.exp(total), np.nan)


class KernelTables:
    """All tables of one GPU."""

    def __init__(self, profiles: Path, gpu_name: str) -> None:
        """Raises: `ConfigError` when the folder holds no tables for this GPU."""
        if gpu_name not in SYSTEMS:
            msg = f"no kernel tables for GPU {gpu_name!r}; known: {', '.join(SYSTEMS)}"
            raise ConfigError(msg)
        self.root = profiles / "aiconfigurator" / SYSTEMS[gpu_name]
        if not self.root.is_dir():
            msg = f"no kernel tables in '{self.root}'; give the folder that holds aiconfigurator/"
            raise ConfigError(msg)
        self._grids: dict[str, tuple[Array, Array, Array, Array]] = {}

    def _read(self, pattern: str) -> Columns:
        """The newest file that matches, by version folder."""
        files = sorted(self.root.glob(pattern))
        if not files:
            msg = f"no file '{pattern}' in '{self.root}'"
            raise ConfigError(msg)
        table = pyarrow.csv.read_csv(files[-1])
        return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}

    @cached_property
    def _gemm(self) -> Columns:
        return self._read("gemm/vllm/*/gemm_perf.csv.gz")

    @cached_property
    def _prefill(self) -> Columns:
        return self._read("attention/vllm/*/context_attention_perf.csv.gz")

    @cached_property
    def _decode(self) -> Columns:
        return self._read("attention/vllm/*/generation_attention_perf.csv.gz")

    @cached_property
    def _experts(self) -> Columns:
        return self._read("moe/vllm/*/moe_perf.csv.gz")

    def _gemm_grid(self, precision: Precision) -> tuple[Array, Array, Array, Array]:
        """Measured m, n, k and the seconds of all their combinations."""
        dtype = _DTYPES.get(precision, "none")
        if dtype not in self._grids:
            table = self._gemm
            rows = table["gemm_dtype"] == dtype
            if not rows.any():
                msg = f"no {precision.value} matrix multiplications in '{self.root}'"
                raise ConfigError(msg)
            axes = [np.unique(table[name][rows]) for name in "mnk"]
            seconds = np.full([axis.size for axis in axes], np.inf)
            places = tuple(
                np.searchsorted(axis, table[name][rows])
                for axis, name in zip(axes, "mnk", strict=True)
            )
            np.minimum.at(seconds, places, 1e-3 * table["latency"][rows].astype(float))
            seconds[np.isinf(seconds)] = np.nan
            m, n, k = (axis.astype(float) for axis in axes)
            self._grids[dtype] = (m, n, k, seconds)
        return self._grids[dtype]

    def gemm_s(self, m: Array, n: float, k: float, precision: Precision) -> Array:
        """Seconds of `m` rows times a `k` by `n` matrix; beyond the widest n in proportion."""
        sizes, widths, depths, seconds = self._gemm_grid(precision)
        scale = max(1.0, n / widths[-1])
        i, u = _place(sizes, m)
        j, v = _place(widths, np.asarray(n / scale))
        q, w = _place(depths, np.asarray(float(k)))
        total = np.zeros(m.shape)
        for di, wi in ((0, 1 - u), (1, u)):
            for dj, wj in ((0, 1 - v), (1, v)):
                for dq, wq in ((0, 1 - w), (1, w)):
                    weight = wi * wj * wq
                    total += np.where(weight != 0, weight * seconds[i + di, j + dj, q + dq], 0.0)
        return np.where((u >= 0) & (u <= 1), scale * total, np.nan)

    def attention(
        self, num_heads: int, num_kv_heads: int, head_dim: int, *, is_decode: bool, window: int = 0
    ) -> AttentionTable | None:
        """Attention of one GPU's heads, or None where it was not measured.

        Prefill counts the tokens of each prompt, decode those of each context. A context that takes
        less time than one half as long is an artefact and left out.
        """
        table = self._decode if is_decode else self._prefill
        rows = (table["num_heads"] == num_heads) & (table["num_key_value_heads"] == num_kv_heads)
        rows &= (table["head_dim"] == head_dim) & (table["kv_cache_dtype"] == "bfloat16")
        if "window_size" in table:
            rows &= table["window_size"] == window
        elif window:
            return None
        if not rows.any():
            return None
        tokens = table["step"][rows] + 1 if is_decode else table["isl"][rows]
        seconds = 1e-3 * table["latency"][rows].astype(float)
        return _attention_grid(table["batch_size"][rows], tokens, seconds)

    def experts_s(
        self, num_tokens: Array, shape: tuple[int, int, int, int], group: int, precision: Precision
    ) -> Array | None:
        """Seconds of the experts of a layer, or None where they were not measured.

        `shape` is hidden size, expert width, experts a token and experts.
        """
        table = self._experts
        names = ("hidden_size", "inter_size", "topk", "num_experts")
        rows = (table["moe_tp_size"] == group) & (table["moe_ep_size"] == 1)
        rows &= (table["distribution"] == ROUTING) & (table["moe_dtype"] == _DTYPES[precision])
        for name, value in zip(names, shape, strict=True):
            rows &= table[name] == value
        if not rows.any():
            return None
        sizes, seconds = _fastest(table["num_tokens"][rows], 1e-3 * table["latency"][rows])
        return np.asarray(np.exp(np.interp(np.log(num_tokens), np.log(sizes), np.log(seconds))))

    def all_reduce(self) -> dict[int, TransferTable]:
        """Graph-captured all-reduce by GPUs of the group."""
        table = self._read("comm/vllm/*/custom_allreduce_perf.csv.gz")
        rows = table["backend"] == "vllm_graph"
        return _by_group(table, rows, "num_gpus", "message_size", 1.0)

    def all_to_all(self) -> dict[int, TransferTable]:
        """Dispatch and combine together by GPUs, against the bytes that one GPU sends.

        DeepEP's low-latency or high-throughput kernels where measured, else NCCL's, twice.
        """
        if not list(self.root.glob("comm/vllm/*/moe_a2a_perf.csv.gz")):
            table = self._read("comm/nccl/*/nccl_perf.csv.gz")
            rows = (table["op_name"] == "alltoall") & (table["nccl_dtype"] == "half")
            return _by_group(table, rows, "num_gpus", "message_size", 2.0)
        table = self._read("comm/vllm/*/moe_a2a_perf.csv.gz")
        rows = np.isin(table["comm_backend"], _DISPATCH_BACKENDS) & (table["hidden_size"] == 7168)
        rows &= (table["topk"] == 8) & (table["num_experts"] == 256)
        return _dispatch_tables({name: values[rows] for name, values in table.items()})


def _place(axis: Array, value: Array) -> tuple[NDArray[np.int64], Array]:
    """Index of the knot below and the share of the way to the next."""
    value = np.asarray(value, dtype=np.float64)
    index = np.clip(np.searchsorted(axis, value, side="right") - 1, 0, axis.size - 2)
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])


def _attention_grid(
    batch_sizes: NDArray[np.generic], tokens: NDArray[np.generic], seconds: Array
) -> AttentionTable:
    """A grid of the rows, the fastest where there are several, artefacts left out."""
    sizes, lengths = np.unique(batch_sizes), np.unique(tokens)
    grid = np.full((sizes.size, lengths.size), np.inf)
    places = (np.searchsorted(sizes, batch_sizes), np.searchsorted(lengths, tokens))
    np.minimum.at(grid, places, seconds)
    grid[np.isinf(grid)] = np.nan
    for j in range(1, lengths.size):
        if lengths[j] >= 1.5 * lengths[j - 1]:
            grid[grid[:, j] < 0.9 * grid[:, j - 1], j] = np.nan
    return AttentionTable(sizes.astype(float), lengths.astype(float), grid)


def _fastest(sizes: NDArray[np.generic], seconds: NDArray[np.generic]) -> tuple[Array, Array]:
    """Every size once, with its smallest time."""
    unique, places = np.unique(sizes.astype(float), return_inverse=True)
    best = np.full(unique.size, np.inf)
    np.minimum.at(best, places, seconds.astype(float))
    return unique, best


def _by_group(
    table: Columns, rows: NDArray[np.bool_], group_name: str, size_name: str, factor: float
) -> dict[int, TransferTable]:
    """Transfer tables by GPUs of the group."""
    tables = {}
    for group in np.unique(table[group_name][rows]):
        chosen = rows & (table[group_name] == group)
        sizes, seconds = _fastest(table[size_name][chosen], table["latency"][chosen])
        tables[int(group)] = TransferTable(
            num_bytes=tuple(sizes), seconds=tuple(1e-3 * factor * seconds)
        )
    return tables


def _dispatch_tables(table: Columns) -> dict[int, TransferTable]:
    """Dispatch and combine added up, the faster kernel at each size."""
    totals: dict[tuple[int, str, int], float] = {}
    names = ("ep_size", "comm_backend", "num_tokens", "latency")
    for ep_size, backend, tokens, latency in zip(*(table[name] for name in names), strict=True):
        key = (int(ep_size), str(backend), int(tokens))
        totals[key] = totals.get(key, 0.0) + 1e-6 * float(latency)  # this table is in us
    tables = {}
    for group in sorted({key[0] for key in totals}):
        rows = [(key[2], value) for key, value in totals.items() if key[0] == group]
        sizes, seconds = _fastest(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
        # each token is sent once a chosen expert: 8 of 7,168 16-bit values
        num_bytes = tuple(sizes * 8 * 7168 * 2)
        tables[group] = TransferTable(num_bytes=num_bytes, seconds=tuple(seconds))
    return tables
