"""Iterations composed from kernel times, as the research that this model rests on did.

A layer is QKV and output projections, prefill and decode attention, two all-reduces, the gated MLP
(or router and experts), and four element-wise operators at 80 % of memory bandwidth plus 3 us each.
An iteration is that times the layers, plus the output head for every sequence. A mixed iteration
multiplies all its tokens together and runs the two attentions one after the other.

Prefill: 1 to 64 equal prompts, at most 8,192 tokens. Decode: 1 to 512 sequences of 64 to 32,768
tokens within the memory of the GPUs. Mixed: one chunk of 256 to 2,048 tokens beside 4 to 256
sequences. What the engine adds outside its kernels is not in the times.

Does not know: how a calibration is fitted.
Source: research on measured kernels; element-wise rule of aiconfigurator's `system.yaml`.
"""

import numpy as np
from numpy.typing import NDArray

from ..gemms import head_gemm, layer_gemms
from ..hardware import Gpu, Precision
from ..model_shape import ModelProfile
from .kernel_tables import KernelTables
from .samples import BatchList, IterationSamples

Array = NDArray[np.float64]

# share of memory bandwidth and s of one element-wise operator, aiconfigurator `system.yaml`
_ELEMENTWISE_FRAC = 0.8
_ELEMENTWISE_S = 3e-6
_ELEMENTWISE_OPERATORS = 4
_ACTIVATION_BYTES = 2
# share of GPU memory for weights and KV, and bytes beside them, as `cluster.py` has them
_MEMORY_FRAC = 0.9
_OTHER_BYTES = 3_758_096_384

_PROMPTS = (1, 2, 4, 8, 16, 32, 64)
_PROMPT_TOKENS = (64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
_MAX_PREFILL_TOKENS = 8192
_SEQS = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
_SEQ_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_CHUNKS = (256, 512, 1024, 2048)
_MIXED_SEQS = (4, 8, 16, 32, 64, 128, 256)
_MIXED_SEQ_TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384)


def composed_samples(
    tables: KernelTables,
    gpu: Gpu,
    model: ModelProfile,
    tensor_parallel: int = 1,
    precision: Precision = Precision.BF16,
) -> IterationSamples | None:
    """Iterations of a model on some GPUs, or None where it does not fit or kernels are missing."""
    rows = _batches(gpu, model, tensor_parallel, precision)
    if rows is None:
        return None
    prompts, prompt_tokens, seqs, _ = rows.table().T
    tokens = prompts * prompt_tokens + seqs
    layers_s = _layers_s(tables, gpu, model, tensor_parallel, precision, tokens)
    attention = _attention_s(tables, model, tensor_parallel, rows.table())
    if layers_s is None or attention is None:
        return None
    prefill_s, decode_s = attention
    head = head_gemm(model, tensor_parallel)
    head_s = tables.gemm_s(prompts + seqs, head.n, head.k, precision)
    parts_s = np.stack([layers_s, prefill_s, decode_s, head_s], axis=1)
    times_s = parts_s.sum(axis=1)
    kept = np.isfinite(times_s)
    return IterationSamples(
        model=model,
        tensor_parallel=tensor_parallel,
        precision=precision,
        batches=rows.batches()[kept],
        times_s=times_s[kept],
        parts_s=parts_s[kept],
    )


def kv_capacity_tokens(
    gpu: Gpu, model: ModelProfile, tensor_parallel: int, precision: Precision
) -> float:
    """Tokens of context that fit beside the weights; below 0 when those do not fit."""
    kv_precision = precision.attention_precision
    token_bytes = model.kv_bytes_per_token(kv_precision, tensor_parallel=tensor_parallel)
    usable_bytes = (_MEMORY_FRAC * gpu.hbm_bytes - _OTHER_BYTES) * tensor_parallel
    return (usable_bytes - model.weight_bytes(precision)) / token_bytes


def _batches(
    gpu: Gpu, model: ModelProfile, tensor_parallel: int, precision: Precision
) -> BatchList | None:
    """All batches whose KV fits, or None when hardly any would."""
    capacity = kv_capacity_tokens(gpu, model, tensor_parallel, precision)
    if capacity < _MAX_PREFILL_TOKENS:
        return None
    rows = BatchList.of(model.window_tokens)
    for prompts in _PROMPTS:
        for tokens in _PROMPT_TOKENS:
            if prompts * tokens <= _MAX_PREFILL_TOKENS:
                rows.add(prompts, tokens, 0, 0)
    for seqs in _SEQS:
        for tokens in _SEQ_TOKENS:
            if seqs * tokens <= capacity:
                rows.add(0, 0, seqs, tokens)
    for chunk in _CHUNKS:
        for seqs in _MIXED_SEQS:
            for tokens in _MIXED_SEQ_TOKENS:
                if seqs * tokens + chunk <= capacity:
                    rows.add(1, chunk, seqs, tokens)
    return rows


def _layers_s(
    tables: KernelTables,
    gpu: Gpu,
    model: ModelProfile,
    tensor_parallel: int,
    precision: Precision,
    tokens: Array,
) -> Array | None:
    """Everything of the layers but attention proper, seconds by iteration."""
    sizes, places = np.unique(tokens, return_inverse=True)
    total = np.zeros(sizes.size)
    for gemm in layer_gemms(model, tensor_parallel):
        total += gemm.num_layers * tables.gemm_s(sizes, gemm.n, gemm.k, precision)
    total += elementwise_s(gpu, model, tensor_parallel, sizes)
    if model.is_moe:
        shape = (
            model.hidden_size,
            model.expert_width,
            model.experts_per_token,
            model.num_experts,
        )
        experts_s = tables.experts_s(sizes, shape, tensor_parallel, precision)
        if experts_s is None:
            return None
        router_s = tables.gemm_s(sizes, max(model.num_experts, 32), model.hidden_size, precision)
        total += model.expert_layers * (experts_s + router_s)
    if tensor_parallel > 1:
        num_bytes = sizes * model.hidden_size * _ACTIVATION_BYTES
        table = tables.all_reduce()[tensor_parallel]
        total += 2 * model.num_layers * table.time_s(num_bytes)
    return np.asarray(total[places])


def elementwise_s(gpu: Gpu, model: ModelProfile, tensor_parallel: int, tokens: Array) -> Array:
    """Norms, positions with KV writing, and the gated activation of all layers."""
    num_kv_heads = max(model.num_kv_heads, tensor_parallel)
    heads = (model.num_heads + 2 * num_kv_heads) * model.head_dim / tensor_parallel
    width = model.mlp_width / tensor_parallel
    values = 2 * 4 * model.hidden_size + 2 * heads + 3 * width
    moved_s = values * _ACTIVATION_BYTES / (_ELEMENTWISE_FRAC * gpu.hbm_bytes_per_s)
    return model.num_layers * (_ELEMENTWISE_OPERATORS * _ELEMENTWISE_S + tokens * moved_s)


def _attention_s(
    tables: KernelTables, model: ModelProfile, tensor_parallel: int, rows: Array
) -> tuple[Array, Array] | None:
    """Prefill and decode attention of all layers, or None where they were not measured."""
    num_heads = model.num_heads // tensor_parallel
    num_kv_heads = max(1, model.num_kv_heads // tensor_parallel)
    prompts, prompt_tokens, seqs, seq_tokens = rows.T
    prefill_s, decode_s = np.zeros(len(rows)), np.zeros(len(rows))
    kinds = (
        (model.num_layers - model.window_layers, 0),
        (model.window_layers, model.window_tokens or 0),
    )
    for num_layers, window in kinds:
        if not num_layers:
            continue
        for total, batch, tokens, is_decode in (
            (prefill_s, prompts, prompt_tokens, False),
            (decode_s, seqs, seq_tokens, True),
        ):
            table = tables.attention(
                num_heads, num_kv_heads, model.head_dim, is_decode=is_decode, window=window
            )
            if table is None:
                return None
            used = batch > 0
            total[used] += num_layers * table.time_s(batch[used], tokens[used])
    return prefill_s, decode_s
