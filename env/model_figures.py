"""What a model comes to in bytes and FLOPs, and on which GPUs of the catalogue it fits.

Does not know: how figures are shown.
"""

from dataclasses import dataclass

from .cluster import ReplicaSpec
from .hardware import GPUS, Gpu, Precision
from .model_shape import ModelProfile
from .replica_memory import free_kv_bytes, page_bytes

# Context lengths for which figures are given.
LENGTHS_TOKENS = (1_024, 8_192, 32_768, 131_072)
# GPUs of a server that a replica may take.
_GROUPS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The fewest GPUs of one kind that hold a model, as a replica with default settings."""

    gpu: str
    """Kind of GPU."""
    precision: Precision
    """Format of the weights."""
    num_gpus: int
    """GPUs, all in one tensor-parallel group."""
    kv_tokens: int
    """Tokens of context that fit beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """What a model comes to."""

    weight_gb: dict[str, float]
    """Weights by precision, GB."""
    kv_bytes_per_token: int
    """Bytes of a token in KV pages, on one GPU."""
    kv_mb_by_length: dict[int, float]
    """KV that a sequence keeps, by its tokens, MB."""
    active_params: int
    """Weights that one token uses."""
    flops_per_token: float
    """FLOPs of a token in matrix multiplications, output head excluded."""
    attention_flops_by_length: dict[int, float]
    """FLOPs of one more token in attention, by the tokens before it."""
    fits: tuple[Fit, ...]
    """Where it fits, by GPU and precision."""


def model_figures(profile: ModelProfile) -> ModelFigures:
    """The figures of a model, in the precisions that it is had in."""
    precisions = profile.precisions or (Precision.BF16, Precision.FP8)
    token_bytes = profile.kv_bytes_per_token(Precision.BF16)
    curve = profile.kv_bytes
    kv_bytes = [token_bytes * n if curve is None else curve.bytes_at(n) for n in LENGTHS_TOKENS]
    fits = (_fit(gpu, profile, each) for gpu in GPUS.values() for each in precisions)
    return ModelFigures(
        weight_gb={str(each): profile.weight_bytes(each) / 1e9 for each in precisions},
        kv_bytes_per_token=token_bytes,
        kv_mb_by_length=dict(zip(LENGTHS_TOKENS, (each / 1e6 for each in kv_bytes), strict=True)),
        active_params=profile.active_params,
        flops_per_token=profile.matmul_flops_per_token(),
        attention_flops_by_length={n: profile.attention_flops(1, n) for n in LENGTHS_TOKENS},
        fits=tuple(fit for fit in fits if fit is not None),
    )


def _fit(gpu: Gpu, profile: ModelProfile, precision: Precision) -> Fit | None:
    """The smallest group that leaves room for one KV page, or None."""
    if precision not in gpu.peak_flops:
        return None
    for num_gpus in _GROUPS:
        replica = ReplicaSpec(
            name="",
            server="",
            model=profile.key,
            gpu_indices=tuple(range(num_gpus)),
            precision=precision,
        )
        if not profile.can_shard(num_gpus):
            continue
        pages = int(free_kv_bytes(gpu, profile, replica) // page_bytes(profile, replica))
        if pages >= 1:
            tokens = pages * replica.page_tokens
            return Fit(gpu=gpu.name, precision=precision, num_gpus=num_gpus, kv_tokens=tokens)
    return None
