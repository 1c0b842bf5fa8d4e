"""What a replica's GPUs hold: weights, activations, and KV pages in what is left.

Does not know: clusters, or what the KV is used for.
Source: page arithmetic as in vLLM; memory not for KV from aiconfigurator 0.12 `systems/*.yaml`.
"""

from typing import TYPE_CHECKING

from .hardware import Gpu
from .model_shape import ModelProfile

if TYPE_CHECKING:
    from .cluster import ReplicaSpec

# bytes per GPU for CUDA context, activations and buffers, `other_mem` of aiconfigurator (3.5 GiB);
# activations that a profile states come on top
OTHER_BYTES_PER_GPU = 3_758_096_384


def free_kv_bytes(gpu: Gpu, model: ModelProfile, replica: "ReplicaSpec") -> float:
    """Bytes left for KV on all GPUs of the replica; negative when the weights do not fit."""
    usable_bytes = gpu.hbm_bytes * replica.gpu_frac * replica.kv_memory_frac - OTHER_BYTES_PER_GPU
    used_bytes = model.weight_bytes(replica.precision) + activation_bytes(model, replica)
    return usable_bytes * replica.num_gpus - used_bytes


def activation_bytes(model: ModelProfile, replica: "ReplicaSpec") -> int:
    """Bytes that the activations of the largest batch take, where the profile says so."""
    return model.activation_bytes_per_token * replica.max_batch_tokens


def page_bytes(model: ModelProfile, replica: "ReplicaSpec") -> int:
    """Bytes of one KV page over all GPUs of the replica."""
    token_bytes = model.kv_bytes_per_token(
        replica.precision.attention_precision, tensor_parallel=replica.tensor_parallel
    )
    return token_bytes * replica.page_tokens
