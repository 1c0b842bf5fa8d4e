"""A GPU's calibration: what its kernels reach, what its links take, and how far that is off.

A calibration holds for all models and parallel degrees. It is a JSON file; those in
`env/data/calibrations/` come with the package. `fitting.py` makes one from measurements,
`datasheet.py` one for a GPU that nobody measured.

Does not know: models, or how coefficients are used (`roofline.py`).
Source: the bundled files are fitted on public kernel tables; each names its own.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..traces.errors import ConfigError
from .config_file import DATA_DIR, faults_message
from .hardware import Precision, nearest_name

CALIBRATION_DIR = DATA_DIR / "calibrations"
FORMAT = "trimtab-calibration-1"

# s per iteration: scheduling and launch outside the kernels, BLIS fit on vLLM
ENGINE_STEP_S = 126e-6
# s per sequence in the batch and iteration, BLIS fit on vLLM
ENGINE_REQUEST_S = 4e-6
# bytes per sequence and value of the vocabulary: 0.54 us a sequence of 128,256 values at 1.6 TB/s,
# LLMServingSim sampler tables (vLLM 0.19): about two passes over 4-byte logits
SAMPLING_BYTES = 8.0
# Above 1: the tables count what a kernel must move, and caches save some of that
MAX_SHARE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """How much of a GPU's peaks its kernels reach, and what they cost beside."""

    memory_frac: float
    """Of peak memory bandwidth, reading weights."""
    compute_frac: float
    """Of peak FLOP/s, a large matrix multiplication."""
    roofline_power: float
    """P of the p-norm of a multiplication's memory and compute time, at least 1."""
    tile_pad_frac: float
    """Share of a tile's empty rows that costs time."""
    narrow_values: float
    """A matrix this narrow runs at half the compute share."""
    sustained_frac: float
    """Slow-down of a product of 8,192 by 8,192: clocks and caches under load."""
    activation_frac: float
    """Of peak memory bandwidth, element-wise operators."""
    layer_s: float
    """Per layer and iteration: launches and gaps."""
    attention_frac: float
    """Of peak FLOP/s, prefill attention."""
    prefill_layer_s: float
    """More per layer in an iteration with prefill."""
    prefill_position_s: float
    """Per layer and token before the prefilled ones, on average: attention's serial part."""
    kv_frac: float
    """Of peak memory bandwidth, decode attention reading KV."""
    decode_layer_s: float
    """More per layer in an iteration with decode: the floor of decode attention."""
    decode_seq_layer_s: float
    """Per layer and decoding sequence."""
    eight_bit_memory_frac: float = 0.75
    """The six of matrix multiplication, for weights of 8 bits."""
    eight_bit_compute_frac: float = 0.75
    """As `compute_frac`."""
    eight_bit_roofline_power: float = 4.0
    """As `roofline_power`."""
    eight_bit_tile_pad_frac: float = 1.0
    """As `tile_pad_frac`."""
    eight_bit_narrow_values: float = 200.0
    """As `narrow_values`."""
    eight_bit_sustained_frac: float = 0.02
    """As `sustained_frac`."""
    mixed_tile_rows: float = 0.0
    """Rows that each query head computes per context token of a decode beside prefill, in vain."""
    expert_memory_frac: float = 0.8
    """Of peak memory bandwidth, reading experts."""
    expert_compute_frac: float = 0.5
    """Of peak FLOP/s, experts' multiplications."""
    expert_narrow_values: float = 100.0
    """An expert this narrow runs at half the compute share."""
    expert_sustained_frac: float = 0.3
    """Slow-down of the experts' products at 8,192 tokens."""
    expert_layer_s: float = 25e-6
    """Per layer with experts and iteration: routing, sorting, launches."""
    expert_overlap_frac: float = 0.1
    """Share by which tokens agree on their experts more than chance would have it."""
    expert_imbalance: float = 2.5
    """Load of the busiest GPU over the mean, with expert parallelism."""
    sampling_bytes: float = SAMPLING_BYTES
    """Moved per sequence and value of the vocabulary, drawing the next token."""
    engine_step_s: float = ENGINE_STEP_S
    """Per iteration, outside the kernels."""
    engine_request_s: float = ENGINE_REQUEST_S
    """Per decoding sequence and iteration, outside the kernels."""

    def __post_init__(self) -> None:
        """Refuse shares that no GPU reaches, negative times, and a power or factor below 1."""
        for name in _SHARES:
            if not 0.0 < getattr(self, name) <= MAX_SHARE:
                msg = f"{name} must be above 0 and at most {MAX_SHARE}, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in _AT_LEAST_ONE:
            if not 1.0 <= getattr(self, name) < math.inf:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in self.names():
            if not 0.0 <= getattr(self, name) < math.inf:
                msg = f"{name} must be at least 0 and finite, got {getattr(self, name)}"
                raise ValueError(msg)

    def matmul(self, name: str, precision: Precision) -> float:
        """One of the coefficients of matrix multiplication, for weights of this format."""
        prefix = "eight_bit_" if precision.bytes_per_value == 1 else ""
        value: float = getattr(self, prefix + name)
        return value

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all coefficients."""
        return tuple(entry.name for entry in fields(cls))


_SHARES = (
    "memory_frac",
    "compute_frac",
    "activation_frac",
    "attention_frac",
    "kv_frac",
    "expert_memory_frac",
    "expert_compute_frac",
    "eight_bit_memory_frac",
    "eight_bit_compute_frac",
)
_AT_LEAST_ONE = (
    "roofline_power",
    "eight_bit_roofline_power",
    "expert_imbalance",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTable:
    """Seconds of one transfer by its bytes."""

    num_bytes: tuple[float, ...]
    """Sizes, rising."""
    seconds: tuple[float, ...]
    """Time of each."""

    def __post_init__(self) -> None:
        """Refuse a table that cannot be interpolated."""
        sizes = np.asarray(self.num_bytes, dtype=np.float64)
        if sizes.size != len(self.seconds) or sizes.size < 1:
            msg = (
                "a transfer table needs as many seconds as num_bytes and at least one, got "
                f"{sizes.size} and {len(self.seconds)}"
            )
            raise ValueError(msg)
        if sizes.min() <= 0 or np.any(np.diff(sizes) <= 0) or min(self.seconds) <= 0:
            msg = f"a transfer table needs rising num_bytes and seconds above 0, got {self}"
            raise ValueError(msg)

    def time_s(self, num_bytes: ArrayLike) -> NDArray[np.float64]:
        """Interpolate in logarithms; constant below the table, proportional above."""
        sizes = np.asarray(num_bytes, dtype=np.float64)
        inside = np.clip(sizes, self.num_bytes[0], self.num_bytes[-1])
        logs = np.interp(np.log(inside), np.log(self.num_bytes), np.log(self.seconds))
        return np.asarray(np.exp(logs) * np.maximum(sizes / self.num_bytes[-1], 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """How far predicted iterations are from measured ones, for one model and parallel degree."""

    model: str
    """Model of the samples; or a pool of sets: `dense`, `8-bit`, `experts`, `all`."""
    tensor_parallel: int
    """GPUs of the samples; 0 for a pool."""
    precision: str
    """Format of the samples' weights."""
    phase: str
    """`prefill`, `decode` or `mixed`."""
    is_left_out: bool
    """Whether this model and degree were left out of the fit that predicted them."""
    num_samples: int
    """Iterations compared."""
    median_frac: float
    """Median of the absolute relative error."""
    p95_frac: float
    """Its 95th percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Everything that is measured about one kind of GPU."""

    gpu: str
    """Name of the GPU."""
    efficiency: Efficiency
    """Shares of the peaks."""
    all_reduce: Mapping[int, TransferTable] = field(default_factory=dict)
    """By GPUs of the group."""
    all_to_all: Mapping[int, TransferTable] = field(default_factory=dict)
    """Dispatch and combine of expert parallelism together, by GPUs; bytes one GPU sends."""
    send_recv: TransferTable | None = None
    """Between two stages of a pipeline."""
    sources: tuple[str, ...] = ()
    """Where the numbers come from, and what is assumed."""
    errors: tuple[ErrorRow, ...] = ()
    """Error table of the fit."""


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON; the file appears whole or not at all."""
    content = {
        "format": FORMAT,
        "gpu": calibration.gpu,
        "sources": list(calibration.sources),
        "efficiency": {
            name: float(f"{value:.6g}") for name, value in asdict(calibration.efficiency).items()
        },
        "all_reduce": {str(k): _table_json(t) for k, t in calibration.all_reduce.items()},
        "all_to_all": {str(k): _table_json(t) for k, t in calibration.all_to_all.items()},
        "send_recv": calibration.send_recv and _table_json(calibration.send_recv),
        "errors": [asdict(row) for row in calibration.errors],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(_compact_json(content), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration from a JSON file.

    Raises: `ConfigError` with every fault of the file: key, value and nearest known key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"calibration file '{path}' cannot be read as JSON: {error}"
        raise ConfigError(msg) from error
    faults: list[str] = []
    calibration = _parsed(content, faults)
    if calibration is None:
        raise ConfigError(faults_message("calibration", str(path), faults))
    return calibration


def bundled_calibration_names() -> tuple[str, ...]:
    """Names of the GPUs whose calibration comes with the package."""
    return tuple(sorted(path.stem for path in CALIBRATION_DIR.glob("*.json")))


@cache
def bundled_calibration(gpu_name: str) -> Calibration | None:
    """The calibration of a GPU that comes with the package, or None."""
    path = CALIBRATION_DIR / f"{gpu_name}.json"
    return load_calibration(path) if path.is_file() else None


def _table_json(table: TransferTable) -> dict[str, list[float]]:
    return {
        "num_bytes": [float(f"{value:.6g}") for value in table.num_bytes],
        "seconds": [float(f"{value:.5g}") for value in table.seconds],
    }


def _compact_json(content: Mapping[str, Any]) -> str:
    """JSON with one line for each entry of the inner lists and mappings."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            inner = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            lines.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n  }")
        elif isinstance(value, list) and value:
            inner = [f"    {json.dumps(entry)}" for entry in value]
            lines.append(f"  {json.dumps(key)}: [\n" + ",\n".join(inner) + "\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


_KEYS = (
    "format",
    "gpu",
    "sources",
    "efficiency",
    "all_reduce",
    "all_to_all",
    "send_recv",
    "errors",
)


def _parsed(content: object, faults: list[str]) -> Calibration | None:
    """The calibration of a file's content, or None with its faults appended."""
    if not isinstance(content, dict):
        faults.append(f"file: must be a mapping of {', '.join(_KEYS)}, got {content!r}")
        return None
    _unknown_keys(content, _KEYS, "", faults)
    if content.get("format") != FORMAT:
        faults.append(f"format: must be {FORMAT!r}, got {content.get('format')!r}")
    if not isinstance(content.get("gpu"), str):
        faults.append(f"gpu: must be the name of a GPU, got {content.get('gpu')!r}")
    efficiency = _built(Efficiency, content.get("efficiency"), "efficiency", faults)
    groups = [_groups(content.get(key, {}), key, faults) for key in ("all_reduce", "all_to_all")]
    send_recv = None
    if content.get("send_recv") is not None:
        send_recv = _table(content["send_recv"], "send_recv", faults)
    rows = [
        _built(ErrorRow, row, f"errors[{i}]", faults)
        for i, row in enumerate(content.get("errors", []))
    ]
    if faults or efficiency is None:
        return None
    return Calibration(
        gpu=content["gpu"],
        efficiency=efficiency,
        all_reduce=groups[0],
        all_to_all=groups[1],
        send_recv=send_recv,
        sources=tuple(str(source) for source in content.get("sources", [])),
        errors=tuple(row for row in rows if row is not None),
    )


def _unknown_keys(
    content: Mapping[str, Any], known: tuple[str, ...], path: str, faults: list[str]
) -> None:
    for key in content:
        if key not in known:
            nearest = nearest_name(str(key), known)
            hint = f"did you mean {nearest!r}?" if nearest else f"known keys: {', '.join(known)}"
            faults.append(f"{path}{key}: unknown key with value {content[key]!r}; {hint}")


def _built(kind: Any, content: object, path: str, faults: list[str]) -> Any:
    """A dataclass of plain values from a mapping, or None with its faults appended."""
    known = tuple(entry.name for entry in fields(kind))
    if not isinstance(content, dict):
        faults.append(f"{path}: must be a mapping of {', '.join(known)}, got {content!r}")
        return None
    before = len(faults)
    _unknown_keys(content, known, f"{path}.", faults)
    for entry in fields(kind):
        value = content.get(entry.name)
        types: tuple[Any, ...] = (int, float) if entry.type is float else (entry.type,)
        if entry.name not in content:
            faults.append(f"{path}.{entry.name}: key is missing; add it")
        elif not isinstance(value, types) or (isinstance(value, bool) and entry.type is not bool):
            expected = entry.type.__name__  # type: ignore[union-attr]
            faults.append(f"{path}.{entry.name}: must be a {expected}, got {value!r}")
    if len(faults) > before:
        return None
    try:
        return kind(**content)
    except ValueError as error:
        faults.append(f"{path}: {error}")
        return None


def _groups(content: object, path: str, faults: list[str]) -> dict[int, TransferTable]:
    """Transfer tables by GPUs of the group."""
    if not isinstance(content, dict):
        faults.append(f"{path}: must be a mapping of numbers of GPUs to tables, got {content!r}")
        return {}
    tables = {}
    for key, entry in content.items():
        if not str(key).isdigit() or int(key) < 2:
            faults.append(f"{path}.{key}: key must be a number of GPUs, at least 2")
            continue
        table = _table(entry, f"{path}.{key}", faults)
        if table is not None:
            tables[int(key)] = table
    return tables


def _table(content: object, path: str, faults: list[str]) -> TransferTable | None:
    """One transfer table, or None with its faults appended."""
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(v, int | float) for v in content[key])
        for key in ("num_bytes", "seconds")
    ):
        faults.append(f"{path}: must hold lists of numbers num_bytes and seconds, got {content!r}")
        return None
    _unknown_keys(content, ("num_bytes", "seconds"), f"{path}.", faults)
    try:
        return TransferTable(
            num_bytes=tuple(content["num_bytes"]), seconds=tuple(content["seconds"])
        )
    except ValueError as error:
        faults.append(f"{path}: {error}")
        return None
