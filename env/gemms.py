"""The matrix multiplications of one GPU's share of a model.

A token's row of `k` values is multiplied with a matrix of `k` by `n`; tensor parallelism cuts `n`
of the first and `k` of the second of each pair (Megatron).

Does not know: time or GPUs; experts and attention proper are no GEMMs of this list.
Source: the layers of Llama, Qwen and DeepSeek models as vLLM fuses them (QKV; gate and up).
"""

from typing import NamedTuple

from .model_shape import ModelProfile


class Gemm(NamedTuple):
    """One kind of matrix multiplication."""

    n: float
    """Columns of the weights: values that come out."""
    k: float
    """Rows of the weights: values that go in."""
    num_layers: float
    """Times that an iteration runs it."""


def layer_gemms(model: ModelProfile, tensor_parallel: int = 1) -> list[Gemm]:
    """Matrix multiplications of all layers on one GPU, experts and output head left out."""
    gemms = _latent_gemms(model, tensor_parallel)
    if not gemms:
        num_kv_heads = max(model.num_kv_heads, tensor_parallel)
        qkv = (model.num_heads + 2 * num_kv_heads) * model.head_dim / tensor_parallel
        rows = model.num_heads * model.head_dim / tensor_parallel
        gemms = [
            Gemm(qkv, model.hidden_size, model.num_layers),
            Gemm(model.hidden_size, rows, model.num_layers),
        ]
    if model.mlp_width > 0:
        width = model.mlp_width / tensor_parallel
        gemms.append(Gemm(2 * width, model.hidden_size, model.num_layers))
        gemms.append(Gemm(model.hidden_size, width, model.num_layers))
    return gemms


def head_gemm(model: ModelProfile, tensor_parallel: int = 1) -> Gemm:
    """The output head on one GPU, once an iteration."""
    return Gemm(model.vocab_size / tensor_parallel, model.hidden_size, 1)


def activation_values(model: ModelProfile, tensor_parallel: int = 1) -> float:
    """Values that the element-wise operators of all layers read and write for one token.

    Two norms with residual, positions and KV writing, and the gated activation.
    """
    num_kv_heads = max(model.num_kv_heads, tensor_parallel)
    heads = (model.num_heads + 2 * num_kv_heads) * model.head_dim / tensor_parallel
    width = model.mlp_width / tensor_parallel
    return model.num_layers * (8 * model.hidden_size + 2 * heads + 3 * width)


def _latent_gemms(model: ModelProfile, tensor_parallel: int) -> list[Gemm]:
    """Projections of latent attention, in the form that decode uses: the latent is not expanded."""
    latent, layers = model.latent, model.num_layers
    if latent is None:
        return []
    heads = model.num_heads / tensor_parallel
    query_in = latent.query_rank or model.hidden_size
    return [
        Gemm(latent.query_rank + latent.cached_values, model.hidden_size, layers),
        Gemm(heads * (latent.nope_dim + latent.rope_dim), query_in, layers),
        Gemm(heads * (latent.nope_dim + latent.value_dim), latent.kv_rank, layers),
        Gemm(model.hidden_size, heads * latent.value_dim, layers),
    ]
