"""From GPU, model and tensor parallelism to the coefficients of the iteration-time kernel.

Does not know: batches, replicas or clusters; `latency.py` applies the coefficients. Limits: one
set of shares a GPU for all models and group sizes (so very wide groups come out too fast), experts
read at the dense weights' bandwidth, attention without window or latent.
Source: `research/simulators.md` section 4, pooled fits on aiconfigurator 0.12 kernel tables (an
unseen dense model: 1-4 % median error, 9 % worst), and BLIS for what the engine adds to kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..traces.errors import ConfigError
from .hardware import Gpu, Precision, unknown_name_message
from .latency import LATENCY_DTYPE
from .model_profile import AttentionKind, ModelProfile

# s per iteration: scheduling and launch outside the kernels, BLIS fit on vLLM
ENGINE_STEP_S = 126e-6
# s per sequence in the batch and iteration, BLIS fit on vLLM
ENGINE_REQUEST_S = 4e-6
# all-reduces in a layer: one after attention, one after the MLP (Megatron tensor parallelism)
ALL_REDUCES_PER_LAYER = 2
# bytes of an activation: engines reduce in 16 bits whatever the weights' format
ACTIVATION_BYTES = 2

_MODELLED_ATTENTION = (AttentionKind.FULL, AttentionKind.GQA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """How much of a GPU's peaks its kernels reach, and what they cost beside."""

    memory_frac: float
    """Of peak memory bandwidth, reading weights."""
    compute_frac: float
    """Of peak FLOP/s, matrix multiplication."""
    attention_frac: float
    """Of peak FLOP/s, prefill attention."""
    kv_frac: float
    """Of peak memory bandwidth, decode attention reading KV."""
    roofline_power: float
    """P of the p-norm of memory and compute time, at least 1."""
    layer_s: float
    """Per layer and iteration: small kernels and gaps."""
    request_s: float
    """Per sequence in the batch and iteration."""
    all_reduce_s: float
    """Latency of one all-reduce."""
    all_reduce_frac: float
    """Of the link bandwidth, ring all-reduce."""
    wide_all_reduce_frac: float | None = None
    """The same for groups of more than two GPUs, where that differs (PCIe)."""
    mixed_context_factor: float = 2.0
    """Slow-down of decode attention in a batch with prefill."""

    def __post_init__(self) -> None:
        """Refuse shares outside (0, 1] and a power or factor below 1."""
        names = ("memory_frac", "compute_frac", "attention_frac", "kv_frac", "all_reduce_frac")
        for name in names:
            if not 0.0 < getattr(self, name) <= 1.0:
                msg = f"{name} must be above 0 and at most 1, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("roofline_power", "mixed_context_factor"):
            if getattr(self, name) < 1.0:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


# Middle of the ranges of the pooled leave-one-model-out fits. mixed_context_factor stays at 2
# for all: decode attention beside prefill reaches 42-55 % of its bandwidth (RTX PRO 6000, vLLM
# 0.19, research section 2, insight 3).
_A100 = Efficiency(
    # shares of peak and p, fitted: 0.80-0.83, 0.85-0.87, 0.55-0.73, 0.77, 1.4-1.6
    memory_frac=0.815,
    compute_frac=0.86,
    attention_frac=0.64,
    kv_frac=0.77,
    roofline_power=1.5,
    # s, fitted: 52-67 us, 1-2 us, 11-15 us
    layer_s=59.5e-6,
    request_s=1.5e-6,
    all_reduce_s=13e-6,
    # share of 300 GB/s, fitted
    all_reduce_frac=0.21,
)
_H100 = Efficiency(
    # shares of peak and p, fitted: 0.88-0.94, 0.73-0.76, 0.41-0.44, 0.90, 1.7
    memory_frac=0.91,
    compute_frac=0.745,
    attention_frac=0.425,
    kv_frac=0.90,
    roofline_power=1.7,
    # s, fitted: 41-52 us, 1 us, 3-6 us
    layer_s=46.5e-6,
    request_s=1e-6,
    all_reduce_s=4.5e-6,
    # share of 450 GB/s, fitted
    all_reduce_frac=0.33,
)
_H200 = Efficiency(
    # shares of peak and p, fitted: 0.82-0.86, 0.72-0.73, 0.55-0.64, 0.90, 2.0
    memory_frac=0.84,
    compute_frac=0.725,
    attention_frac=0.595,
    kv_frac=0.90,
    roofline_power=2.0,
    # s, fitted: 37-43 us, 2 us, 5-7 us
    layer_s=40e-6,
    request_s=2e-6,
    all_reduce_s=6e-6,
    # share of 450 GB/s, fitted
    all_reduce_frac=0.37,
)
_B200 = Efficiency(
    # shares: compute 0.67 and KV 0.87 measured; memory is the one-model fit of 0.53 raised by
    # what H200 gains from pooling (0.84 / 0.64); attention and p assumed as H200
    memory_frac=0.70,
    compute_frac=0.67,
    attention_frac=0.595,
    kv_frac=0.87,
    roofline_power=2.0,
    # s and share of 900 GB/s, assumed as H200
    layer_s=40e-6,
    request_s=2e-6,
    all_reduce_s=6e-6,
    all_reduce_frac=0.37,
)
_L40S = Efficiency(
    # shares: compute 0.59 and memory 0.74-0.78 measured (research section 6); attention and p
    # assumed as A100, the attention share lowered as the compute share is
    memory_frac=0.76,
    compute_frac=0.59,
    attention_frac=0.44,
    kv_frac=0.76,
    roofline_power=1.5,
    # s, assumed as A100; an all-reduce over PCIe assumed at 20 us
    layer_s=59.5e-6,
    request_s=1.5e-6,
    all_reduce_s=20e-6,
    # share of 32 GB/s, from all-reduces of 16 MB: 1.8 ms (2 GPUs), 13.6 (4), 30 ms (8)
    all_reduce_frac=0.29,
    wide_all_reduce_frac=0.045,
)
_MI300X = Efficiency(
    # all assumed, nothing measured: the H100's shares lowered for a less settled kernel library
    memory_frac=0.75,
    compute_frac=0.50,
    attention_frac=0.35,
    kv_frac=0.75,
    roofline_power=1.5,
    # s and share of 448 GB/s, assumed
    layer_s=60e-6,
    request_s=2e-6,
    all_reduce_s=10e-6,
    all_reduce_frac=0.25,
)

EFFICIENCIES: Mapping[str, Efficiency] = {
    "A100-40G": _A100,
    "A100-80G": _A100,
    "H100-80G": _H100,
    "H200-141G": _H200,
    "B200-180G": _B200,
    "L40S-48G": _L40S,
    "MI300X-192G": _MI300X,
}


def latency_coefficients(
    gpu: Gpu,
    model: ModelProfile,
    *,
    tensor_parallel: int = 1,
    precision: Precision = Precision.BF16,
    efficiency: Efficiency | None = None,
) -> NDArray[np.void]:
    """Coefficients of `latency.iteration_time_s` for one replica.

    `efficiency` defaults to the calibration of this GPU.

    Shapes: one-element array of `LATENCY_DTYPE`; index `[0]` is the record that the kernel takes,
    `np.concatenate` of several makes a fleet's table.

    Raises: `ConfigError` for a precision that the GPU lacks, attention that is not modelled, heads
    that do not divide, or a GPU without calibration.
    """
    if efficiency is None:
        efficiency = _calibrated(gpu)
    _check_supported(gpu, model, tensor_parallel, precision)
    read_bytes_per_s = efficiency.memory_frac * gpu.hbm_bytes_per_s * tensor_parallel
    kv_bytes_per_s = efficiency.kv_frac * gpu.hbm_bytes_per_s * tensor_parallel
    matmul_flops = efficiency.compute_frac * gpu.peak_flops[precision] * tensor_parallel
    attention_precision = precision.attention_precision
    attention_flops = (
        efficiency.attention_frac * gpu.peak_flops[attention_precision] * tensor_parallel
    )
    kv_bytes = model.kv_bytes_per_token(attention_precision, tensor_parallel=tensor_parallel)
    coefficients = np.zeros(1, dtype=LATENCY_DTYPE)
    coefficients["step_s"] = _step_s(model, efficiency, tensor_parallel)
    coefficients["request_s"] = ENGINE_REQUEST_S + efficiency.request_s
    coefficients["weight_s"] = model.dense_read_bytes(precision) / read_bytes_per_s
    coefficients["expert_s"] = model.expert_bytes(precision) / read_bytes_per_s
    coefficients["expert_miss_frac"] = 1.0 - model.expert_use_frac if model.is_moe else 0.0
    coefficients["token_s"] = model.matmul_flops_per_token() / matmul_flops
    coefficients["roofline_power"] = efficiency.roofline_power
    coefficients["prefill_attention_s"] = model.attention_flops_per_pair() / attention_flops
    coefficients["decode_context_s"] = kv_bytes / kv_bytes_per_s
    coefficients["mixed_context_factor"] = efficiency.mixed_context_factor
    coefficients["communication_token_s"] = _communication_token_s(
        gpu, model, efficiency, tensor_parallel
    )
    return coefficients


def _calibrated(gpu: Gpu) -> Efficiency:
    """Calibration of a GPU of the catalogue."""
    if gpu.name not in EFFICIENCIES:
        known = unknown_name_message("calibration", gpu.name, EFFICIENCIES)
        msg = f"{known}; pass efficiency= for a GPU of your own"
        raise ConfigError(msg)
    return EFFICIENCIES[gpu.name]


def _check_supported(
    gpu: Gpu, model: ModelProfile, tensor_parallel: int, precision: Precision
) -> None:
    """Refuse combinations that the coefficients cannot express."""
    if tensor_parallel < 1:
        msg = f"tensor_parallel must be at least 1, got {tensor_parallel}"
        raise ValueError(msg)
    if model.attention not in _MODELLED_ATTENTION:
        kinds = " or ".join(kind.value for kind in _MODELLED_ATTENTION)
        msg = (
            f"model {model.name!r}: {model.attention.value!r} attention has no latency model "
            f"(its time is not linear in the context); use a model with {kinds} attention"
        )
        raise ConfigError(msg)
    if not model.can_shard(tensor_parallel):
        msg = (
            f"model {model.name!r}: {model.num_heads} heads and {model.num_kv_heads} KV heads do "
            f"not divide over tensor_parallel {tensor_parallel}; choose a divisor"
        )
        raise ConfigError(msg)
    if precision not in gpu.peak_flops:
        known = ", ".join(gpu.peak_flops)
        msg = f"GPU {gpu.name!r} has no {precision.value!r} arithmetic; expected one of {known}"
        raise ConfigError(msg)


def _step_s(model: ModelProfile, efficiency: Efficiency, tensor_parallel: int) -> float:
    """Fixed cost of an iteration: engine, layers and all-reduce latency."""
    layer_s = efficiency.layer_s
    if tensor_parallel > 1:
        layer_s += ALL_REDUCES_PER_LAYER * efficiency.all_reduce_s
    return ENGINE_STEP_S + model.num_layers * layer_s


def _communication_token_s(
    gpu: Gpu, model: ModelProfile, efficiency: Efficiency, tensor_parallel: int
) -> float:
    """Time to move one token's activations through the ring all-reduces of all layers."""
    if tensor_parallel == 1:
        return 0.0
    token_bytes = ALL_REDUCES_PER_LAYER * model.num_layers * model.hidden_size * ACTIVATION_BYTES
    ring_factor = 2.0 * (tensor_parallel - 1) / tensor_parallel
    link_frac = efficiency.all_reduce_frac
    if tensor_parallel > 2 and efficiency.wide_all_reduce_frac is not None:
        link_frac = efficiency.wide_all_reduce_frac
    return token_bytes * ring_factor / (link_frac * gpu.link_bytes_per_s)
