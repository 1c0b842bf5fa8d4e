"""From GPU, model and parallelism to the coefficients of the iteration-time kernel.

A replica is `tensor_parallel` x `pipeline_parallel` GPUs. Every matrix multiplication of a GPU's
share of the model (`gemms.py`) becomes one column of the coefficients; communication becomes a
table over tokens.

Approximations, each measured or argued in `docs/fidelity.md`:
- Pipeline stages are always full: a batch is cut into as many micro-batches as there are stages,
  and one token for every sequence takes the whole model's layer time for tokens / stages.
- Expert parallelism spreads the experts over GPUs of the tensor-parallel group; the busiest GPU
  sets the time, and dispatch and combine take the place of the all-reduce after the experts.
- Speculative decoding: one verify iteration stands for as many iterations as it keeps tokens.
- A request with a beam of w decodes w sequences: the batch then counts w decoding sequences.

Does not know: batches, replicas or clusters; `latency.py` applies the coefficients.
Source: form and calibrations as in `docs/fidelity.md`; BLIS for what the engine adds to kernels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..traces.errors import ConfigError
from .calibration import ENGINE_REQUEST_S, ENGINE_STEP_S, Calibration, Efficiency
from .datasheet import calibration_of, datasheet_calibration, group_table, send_recv_table
from .gemms import Gemm, activation_values, head_gemm, layer_gemms
from .hardware import Gpu, Precision
from .latency import COMMUNICATION_TOKENS, LATENCY_DTYPE
from .model_shape import ModelProfile
from .speculation import Speculation

__all__ = ["ENGINE_REQUEST_S", "ENGINE_STEP_S", "latency_coefficients", "parallel_fault"]

# all-reduces in a layer: one after attention, one after the MLP (Megatron tensor parallelism)
ALL_REDUCES_PER_LAYER = 2
# bytes of an activation: engines compute and reduce in 16 bits whatever the weights' format
ACTIVATION_BYTES = 2
# rows of a tile of a matrix multiplication by bytes of a weight: of 128, 256 and 512 what fits the
# kernel tables best over all GPUs
TILE_TOKENS = {1: 256.0, 2: 128.0}
# rows and columns of the product that `Efficiency.sustained_frac` is given for
SUSTAINED_SIZE = 8192.0


def latency_coefficients(
    gpu: Gpu,
    model: ModelProfile,
    *,
    tensor_parallel: int = 1,
    precision: Precision = Precision.BF16,
    pipeline_parallel: int = 1,
    expert_parallel: int = 1,
    speculation: Speculation | None = None,
    calibration: Calibration | None = None,
) -> NDArray[np.void]:
    """Coefficients of `latency.iteration_time_s` for one replica.

    `calibration` defaults to the bundled one of this GPU, or to what its datasheet promises.

    Shapes: one-element array of `LATENCY_DTYPE`; index `[0]` is the record that the kernel takes,
    `np.concatenate` of several makes a fleet's table.

    Raises: `ConfigError` for a precision that the GPU lacks, or parallelism that does not divide.
    """
    if tensor_parallel < 1:
        msg = f"tensor_parallel must be at least 1, got {tensor_parallel}"
        raise ValueError(msg)
    fault = parallel_fault(model, tensor_parallel, pipeline_parallel, expert_parallel)
    if fault:
        msg = f"model {model.name!r}: {fault}"
        raise ConfigError(msg)
    if precision not in gpu.peak_flops:
        known = ", ".join(gpu.peak_flops)
        msg = f"GPU {gpu.name!r} has no {precision.value!r} arithmetic; expected one of {known}"
        raise ConfigError(msg)
    if calibration is None:
        calibration = calibration_of(gpu)
    share = _Share(gpu, model, tensor_parallel, precision, calibration.efficiency)
    coefficients = np.zeros(1, dtype=LATENCY_DTYPE)
    _fill_steps(coefficients, share, pipeline_parallel)
    _fill_gemms(coefficients, share)
    _fill_experts(coefficients, share, expert_parallel)
    _fill_attention(coefficients, share)
    coefficients["communication_s"] = communication_times_s(
        calibration, gpu, model, (tensor_parallel, pipeline_parallel)
    )
    last_s = coefficients["communication_s"][0, -1]
    coefficients["communication_token_s"] = last_s / COMMUNICATION_TOKENS[-1]
    _fill_pipeline(coefficients, pipeline_parallel)
    _fill_speculation(coefficients, speculation)
    return coefficients


def parallel_fault(
    model: ModelProfile, tensor_parallel: int, pipeline_parallel: int = 1, expert_parallel: int = 1
) -> str | None:
    """Why a model cannot be cut like this, or None."""
    if not model.can_shard(tensor_parallel):
        return (
            f"{model.num_heads} heads and {model.num_kv_heads} KV heads do not divide over "
            f"tensor_parallel {tensor_parallel}; choose a divisor"
        )
    if not 1 <= pipeline_parallel <= model.num_layers:
        return (
            f"pipeline_parallel must be between 1 and {model.num_layers} layers, "
            f"got {pipeline_parallel}"
        )
    if expert_parallel != 1 and not model.is_moe:
        return f"expert_parallel must be 1 for a model without experts, got {expert_parallel}"
    if expert_parallel < 1 or tensor_parallel % expert_parallel:
        return (
            f"expert_parallel must divide tensor_parallel {tensor_parallel}, got {expert_parallel}"
        )
    if model.is_moe and model.num_experts % expert_parallel:
        return f"expert_parallel {expert_parallel} does not divide {model.num_experts} experts"
    return None


class _Share:
    """One GPU's share of a model, and the rates that it reaches."""

    def __init__(
        self,
        gpu: Gpu,
        model: ModelProfile,
        tensor_parallel: int,
        precision: Precision,
        efficiency: Efficiency,
    ) -> None:
        self.model = model
        self.tensor_parallel = tensor_parallel
        self.precision = precision
        self.efficiency = efficiency
        self.hbm_bytes_per_s = gpu.hbm_bytes_per_s
        memory_frac = efficiency.matmul("memory_frac", precision)
        self.read_bytes_per_s = memory_frac * gpu.hbm_bytes_per_s
        compute_frac = efficiency.matmul("compute_frac", precision)
        self.matmul_flops = compute_frac * gpu.peak_flops[precision]
        self.expert_flops = efficiency.expert_compute_frac * gpu.peak_flops[precision]
        attention_peak = gpu.peak_flops[precision.attention_precision]
        self.attention_flops = efficiency.attention_frac * attention_peak


def _fill_steps(coefficients: NDArray[np.void], share: _Share, pipeline_parallel: int) -> None:
    """Overheads of an iteration and a sequence, element-wise operators, output head."""
    model, efficiency = share.model, share.efficiency
    layers_s = model.num_layers * efficiency.layer_s
    layers_s += model.expert_layers * efficiency.expert_layer_s
    coefficients["step_s"] = efficiency.engine_step_s + layers_s
    coefficients["prefill_step_s"] = model.num_layers * efficiency.prefill_layer_s
    coefficients["decode_step_s"] = model.num_layers * efficiency.decode_layer_s
    logits_bytes = model.vocab_size * efficiency.sampling_bytes
    sampling_s = logits_bytes / (efficiency.activation_frac * share.hbm_bytes_per_s)
    layers_s = model.num_layers * efficiency.decode_seq_layer_s / pipeline_parallel
    coefficients["request_s"] = efficiency.engine_request_s + sampling_s + layers_s
    values = activation_values(model, share.tensor_parallel)
    activation_bytes_per_s = efficiency.activation_frac * share.hbm_bytes_per_s
    coefficients["activation_token_s"] = values * ACTIVATION_BYTES / activation_bytes_per_s
    head_s = _gemm_times_s([head_gemm(model, share.tensor_parallel)], share)
    coefficients["head_read_s"], coefficients["head_seq_s"] = head_s[0, 0], head_s[2, 0]


def _gemm_times_s(gemms: Sequence[Gemm], share: _Share) -> NDArray[np.float64]:
    """Reading weights, reading one token's activations, multiplying one token: [3, G]."""
    n, k, layers = np.array(gemms, dtype=np.float64).T
    narrow = share.efficiency.matmul("narrow_values", share.precision)
    weight_bytes = n * k * share.precision.bytes_per_value
    activation_bytes = (n + k) * ACTIVATION_BYTES
    flops = 2.0 * (n + narrow) * (k + narrow)
    times_s: NDArray[np.float64] = layers * np.stack(
        [
            weight_bytes / share.read_bytes_per_s,
            activation_bytes / share.read_bytes_per_s,
            flops / share.matmul_flops,
        ]
    )
    return times_s


def _fill_gemms(coefficients: NDArray[np.void], share: _Share) -> None:
    """Dense matrix multiplications of all layers."""
    gemms = layer_gemms(share.model, share.tensor_parallel)
    times_s = _gemm_times_s(gemms, share)
    count = len(gemms)
    for name, row in zip(
        ("gemm_read_s", "gemm_token_read_s", "gemm_token_s"), times_s, strict=True
    ):
        coefficients[name][0, :count] = row
    widths = np.array([gemm.n for gemm in gemms])
    slow = share.efficiency.matmul("sustained_frac", share.precision) / SUSTAINED_SIZE
    coefficients["gemm_sustained_frac"][0, :count] = slow * np.sqrt(widths)
    coefficients["tile_tokens"] = TILE_TOKENS[share.precision.bytes_per_value]
    for name in ("tile_pad_frac", "roofline_power"):
        coefficients[name] = share.efficiency.matmul(name, share.precision)
    weight_bytes = share.model.dense_read_bytes(share.precision) / share.tensor_parallel
    coefficients["weight_s"] = weight_bytes / share.read_bytes_per_s
    coefficients["token_s"] = times_s[2].sum()


def _fill_experts(coefficients: NDArray[np.void], share: _Share, expert_parallel: int) -> None:
    """Experts: which a batch touches, reading those, multiplying its tokens with them."""
    model, efficiency = share.model, share.efficiency
    if not model.is_moe:
        return
    read_bytes_per_s = efficiency.expert_memory_frac * share.hbm_bytes_per_s
    expert_bytes = model.expert_bytes(share.precision) / share.tensor_parallel
    coefficients["expert_s"] = expert_bytes / read_bytes_per_s
    miss_frac = 1.0 - model.expert_use_frac
    coefficients["expert_miss_frac"] = miss_frac ** (1.0 - efficiency.expert_overlap_frac)
    rows = model.expert_layers * model.experts_per_token / expert_parallel
    if expert_parallel > 1:
        # the busiest of two GPUs has at most twice the mean
        rows *= min(efficiency.expert_imbalance, float(expert_parallel))
    width = model.expert_width * expert_parallel / share.tensor_parallel
    flops = 6.0 * model.hidden_size * (width + efficiency.expert_narrow_values)
    moved_bytes = (2 * model.hidden_size + 3 * width) * ACTIVATION_BYTES
    row_s = flops / share.expert_flops + moved_bytes / read_bytes_per_s
    coefficients["expert_token_s"] = rows * row_s
    slow = efficiency.expert_sustained_frac / np.sqrt(SUSTAINED_SIZE)
    coefficients["expert_sustained_frac"] = slow


def _fill_attention(coefficients: NDArray[np.void], share: _Share) -> None:
    """Prefill and decode attention, layers with and without a window."""
    model, efficiency = share.model, share.efficiency
    group = share.tensor_parallel
    pair_s = model.layer_flops_per_pair / group / share.attention_flops
    token_bytes = model.kv_read_bytes_per_token(
        share.precision.attention_precision, tensor_parallel=group
    )
    kv_bytes_per_s = efficiency.kv_frac * share.hbm_bytes_per_s
    context_s = token_bytes / model.num_layers / group / kv_bytes_per_s
    if model.latent is not None:
        # decode multiplies every head with the latent itself, which may take longer than reading
        latent = model.latent
        flops = 2.0 * model.num_heads / group * (latent.cached_values + latent.kv_rank)
        context_s = max(context_s, flops / share.attention_flops)
    full_layers = model.num_layers - model.window_layers
    coefficients["prefill_attention_s"] = full_layers * pair_s
    coefficients["decode_context_s"] = (model.num_layers - model.kv_window_layers) * context_s
    coefficients["prefill_position_s"] = full_layers * efficiency.prefill_position_s
    # beside prefill, decode runs in the kernel for prefill: a tile of rows for every query head
    in_vain_s = efficiency.mixed_tile_rows * pair_s
    coefficients["mixed_context_factor"] = 1.0 + in_vain_s / context_s
    coefficients["window_tokens"] = model.kv_window_tokens
    coefficients["window_context_s"] = model.kv_window_layers * context_s
    coefficients["window_attention_s"] = model.window_layers * pair_s


def communication_times_s(
    calibration: Calibration, gpu: Gpu, model: ModelProfile, groups: tuple[int, int]
) -> NDArray[np.float64]:
    """Transfers of an iteration at `COMMUNICATION_TOKENS`, seconds.

    `groups` are the tensor- and pipeline-parallel degrees. Experts spread over a tensor-parallel
    group change nothing: every GPU has all tokens, and the sum after the experts stays. (Only
    engines with data-parallel attention send tokens to experts; a replica does not model them.)
    """
    tensor_parallel, pipeline_parallel = groups
    num_bytes = COMMUNICATION_TOKENS * model.hidden_size * ACTIVATION_BYTES
    total_s = np.zeros(num_bytes.size)
    if tensor_parallel * pipeline_parallel == 1:
        return total_s
    if tensor_parallel > 1:
        num_calls = ALL_REDUCES_PER_LAYER * model.num_layers
        tables = calibration.all_reduce or datasheet_calibration(gpu).all_reduce
        total_s += num_calls * group_table(tables, tensor_parallel).time_s(num_bytes)
    if pipeline_parallel > 1:
        table = calibration.send_recv or send_recv_table(gpu)
        total_s += pipeline_parallel * table.time_s(num_bytes)
    # more tokens never take less; where a library changes its algorithm tables dip, and the middle
    # between the rising curves above and below is taken
    above_s = np.maximum.accumulate(total_s)
    below_s = np.minimum.accumulate(total_s[::-1])[::-1]
    return np.asarray(np.sqrt(above_s * below_s))


def _fill_pipeline(coefficients: NDArray[np.void], pipeline_parallel: int) -> None:
    """Spread what grows with tokens and context over the stages."""
    coefficients["micro_batches"] = pipeline_parallel
    for name in (
        "head_seq_s",
        "prefill_attention_s",
        "decode_context_s",
        "window_context_s",
        "window_attention_s",
    ):
        coefficients[name] /= pipeline_parallel


def _fill_speculation(coefficients: NDArray[np.void], speculation: Speculation | None) -> None:
    """Let a verify iteration stand for as many iterations as it keeps tokens."""
    coefficients["speculative_input_tokens"] = 1.0
    coefficients["speculative_output_tokens"] = 1.0
    if speculation is None:
        return
    draft_frac = speculation.draft_tokens * speculation.draft_cost_frac
    kept = speculation.kept_tokens
    coefficients["speculative_input_tokens"] = 1.0 + speculation.draft_tokens
    coefficients["speculative_output_tokens"] = kept
    coefficients["speculative_draft_frac"] = draft_frac
    for name in ("decode_context_s", "window_context_s"):
        coefficients[name] *= (1.0 + draft_frac) / kept
