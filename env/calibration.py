"""A GPU's calibration: what its kernels reach, what its links take, and how far that is off.

A calibration holds for all models and parallel degrees. `calibration_file.py` reads and writes
it, `fitting.py` makes one from measurements, `datasheet.py` one for a GPU that nobody measured.

Does not know: models, or how coefficients are used (`roofline.py`).
Source: the bundled files are fitted on public kernel tables; each names its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .hardware import Precision

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
    eight_bit_tile_pad_frac: float = 0.9
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
        for name in _AT_MOST_ONE:
            if not 0.0 <= getattr(self, name) <= 1.0:
                msg = f"{name} must be between 0 and 1, got {getattr(self, name)}"
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
_AT_MOST_ONE = ("tile_pad_frac", "eight_bit_tile_pad_frac", "expert_overlap_frac")
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
    """Dispatch and combine of experts together, by GPUs; bytes one GPU sends. Kept as measured, for
    engines with data-parallel attention; replicas spread experts inside tensor-parallel groups."""
    send_recv: TransferTable | None = None
    """Between two stages of a pipeline."""
    sources: tuple[str, ...] = ()
    """Where the numbers come from, and what is assumed."""
    errors: tuple[ErrorRow, ...] = ()
    """Error table of the fit."""
