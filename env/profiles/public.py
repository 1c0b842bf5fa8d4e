"""Which public profiles a GPU's calibration is fitted on.

Does not know: how a table is read, or how a calibration is fitted.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...traces.errors import ConfigError
from ..calibration import Calibration, Efficiency
from ..hardware import GPUS, Precision
from ..model_profile import MODELS
from . import kernel_tables, operator_tables
from .composition import composed_samples
from .kernel_tables import KernelTables
from .operator_tables import operator_samples
from .samples import IterationSamples

# GPUs that share a chip: the tables were taken on the one with more memory
SAME_CHIP = {"A100-40G": "A100-80G"}

# GPUs on which vLLM runs FlashAttention 2, as on RTX PRO 6000: decode beside prefill then computes
# a tile of rows for every query head (fitted there: 60-68 rows)
_SHARES_PREFILL_KERNEL = ("A100-80G",)
MEASURED_TILE_ROWS = 64.0

Set = tuple[str, int, Precision]
_BF16, _FP8 = Precision.BF16, Precision.FP8

# model, tensor parallelism, precision; a set that does not fit a GPU is left out for it
KERNEL_SETS: tuple[Set, ...] = (
    *(("llama-3-8b", width, _BF16) for width in (1, 2, 4)),
    ("qwen3-8b", 1, _BF16),
    *(("qwen3-14b", width, _BF16) for width in (1, 2, 4)),
    *(("qwen3-32b", width, _BF16) for width in (1, 2, 4, 8)),
    *(("llama-3-70b", width, _BF16) for width in (2, 4, 8)),
    *(("llama-3-8b", width, _FP8) for width in (1, 2)),
    *(("qwen3-32b", width, _FP8) for width in (1, 2)),
    *(("llama-3-70b", width, _FP8) for width in (2, 4)),
    *(("mixtral-8x7b", width, _BF16) for width in (2, 4)),
    *(("qwen3-30b-a3b", width, _BF16) for width in (1, 2, 4)),
    *(("qwen3-235b-a22b", width, _BF16) for width in (4, 8)),
)
OPERATOR_SETS: tuple[Set, ...] = tuple(
    (name, width, _BF16)
    for name in ("llama-3-8b", "qwen3-32b", "qwen3-30b-a3b")
    for width in (1, 2)
)


def profiled_gpus() -> tuple[str, ...]:
    """GPUs that public profiles exist for."""
    return (*SAME_CHIP, *kernel_tables.SYSTEMS, *operator_tables.SYSTEMS)


def public_samples(
    profiles: Path, gpu_name: str, on_set: Callable[[], None] | None = None
) -> list[IterationSamples]:
    """All measured iterations of a GPU; those of the same chip with more memory where it has none.

    Raises: `ConfigError` for a GPU without profiles.
    """
    name = SAME_CHIP.get(gpu_name, gpu_name)
    samples = []
    if name in kernel_tables.SYSTEMS:
        tables = KernelTables(profiles, name)
        for model, width, precision in KERNEL_SETS:
            if precision in GPUS[name].peak_flops:
                made = composed_samples(tables, GPUS[name], MODELS[model], width, precision)
                samples += [made] if made is not None else []
            if on_set is not None:
                on_set()
    elif name in operator_tables.SYSTEMS:
        for model, width, _ in OPERATOR_SETS:
            made = operator_samples(profiles, name, MODELS[model], width)
            samples += [made] if made is not None else []
            if on_set is not None:
                on_set()
    if not samples:
        known = ", ".join(profiled_gpus())
        msg = f"no profiles of GPU {gpu_name!r} in '{profiles}'; profiles exist for {known}"
        raise ConfigError(msg)
    return samples


def public_start(profiles: Path, gpu_name: str, efficiency: Efficiency) -> Calibration:
    """A calibration with the measured transfer tables of a GPU, and where its numbers come from."""
    name = SAME_CHIP.get(gpu_name, gpu_name)
    if name in operator_tables.SYSTEMS:
        sources: tuple[str, ...] = (
            "LLMServingSim profiler/perf (MIT): layers, attention and experts, vLLM 0.19, eager",
            "assumed: transfers over PCIe, as measured on L40S",
        )
        return Calibration(gpu=gpu_name, efficiency=efficiency, sources=sources)
    tables = KernelTables(profiles, name)
    sources = (
        f"aiconfigurator 0.12 systems/data/{kernel_tables.SYSTEMS[name]} (Apache-2.0): GEMM, "
        "attention, experts, all-reduce and all-to-all kernels under vLLM, composed",
        "composed: mixed batches cost their prefill and decode attention one after the other",
        "assumed: send and receive 10 us and 75 % of the link (Vidur network tables)",
    )
    if name in _SHARES_PREFILL_KERNEL:
        efficiency = replace(efficiency, mixed_tile_rows=MEASURED_TILE_ROWS)
        sources += (
            "assumed in simulation: decode beside prefill computes 64 rows for each query head, as "
            "measured on RTX PRO 6000 with the same kernel (FlashAttention 2)",
        )
    if name != gpu_name:
        sources += (f"measured on {name}, which shares the chip",)
    return Calibration(
        gpu=gpu_name,
        efficiency=efficiency,
        all_reduce=tables.all_reduce(),
        all_to_all=tables.all_to_all(),
        sources=sources,
    )
