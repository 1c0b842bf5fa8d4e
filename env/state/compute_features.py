"""Features of the compute dimension.

Does not know: other dimensions; `registry.py` puts them together.
Source: NVML GPM metric and field ids as in nvidia-ml-py; DCGM fields as in dcgm-exporter.
"""

from .feature import (
    CELSIUS,
    FLOPS,
    SHARE,
    TREND,
    Dimension,
    Feature,
    Live,
    Node,
    Scale,
    feature_maker,
)

# A feature may be twice its reference before it is clipped: power above TDP for a moment.
_OF_LIMIT = Scale(low=0, high=2)


_feature = feature_maker(Dimension.COMPUTE)


def _gpm(name: str, dcgm: str | None = None) -> dict[Live, str]:
    live = {Live.NVML: f"GPM {name}"}
    return live | ({Live.DCGM: f"DCGM_FI_PROF_{dcgm}"} if dcgm else {})


_CATALOGUE = {Live.CONFIG: "GPU catalogue by NVML name"}
_SHARE_OF_WINDOW = "share of the window"

_PEAKS = tuple(
    _feature(Node.GPU, f"peak_{p}_flops", "FLOP/s", FLOPS,
             f"dense {p.upper()} arithmetic at best; absent where the GPU lacks the format",
             live=_CATALOGUE, simulator="GPU catalogue")
    for p in ("fp16", "bf16", "fp8", "int8")
)  # fmt: skip

_OF_PEAKS = (
    _feature(Node.GPU, "fp16_peak_frac", "share of peak", SHARE,
             "FP16 arithmetic done, of what the format allows",
             live=_gpm("HMMA_TENSOR_UTIL", "PIPE_TENSOR_HMMA_ACTIVE") | {Live.CONFIG: "precision"},
             simulator="FLOPs of the window's tokens over the peak, if the replica runs FP16"),
    _feature(Node.GPU, "bf16_peak_frac", "share of peak", SHARE,
             "BF16 arithmetic done, of what the format allows",
             live=_gpm("HMMA_TENSOR_UTIL", "PIPE_TENSOR_HMMA_ACTIVE") | {Live.CONFIG: "precision"},
             simulator="FLOPs of the window's tokens over the peak, if the replica runs BF16"),
    _feature(Node.GPU, "fp8_peak_frac", "share of peak", SHARE,
             "FP8 arithmetic done, of what the format allows; no counter of its own on the device",
             live=_gpm("ANY_TENSOR_UTIL", "PIPE_TENSOR_ACTIVE") | {Live.CONFIG: "precision"},
             simulator="FLOPs of the window's tokens over the peak, if the replica runs FP8"),
    _feature(Node.GPU, "int8_peak_frac", "share of peak", SHARE,
             "INT8 arithmetic done, of what the format allows",
             live=_gpm("IMMA_TENSOR_UTIL", "PIPE_TENSOR_IMMA_ACTIVE") | {Live.CONFIG: "precision"},
             simulator="FLOPs of the window's tokens over the peak, if the replica runs INT8"),
    _feature(Node.GPU, "achieved_flops", "FLOP/s",
             Scale(low=0, high=1e16, normaliser="log1p", offset=30, scale=5),
             "arithmetic done a second, all formats",
             live=_gpm("ANY_TENSOR_UTIL", "PIPE_TENSOR_ACTIVE") | _CATALOGUE,
             simulator="FLOPs of the window's prompt and output tokens"),
)  # fmt: skip

_PIPES = tuple(
    _feature(Node.GPU, f"{name}_frac", "share of peak", SHARE, meaning,
             live=_gpm(gpm, dcgm), simulator=None)
    for name, gpm, dcgm, meaning in (
        ("integer_activity", "INTEGER_UTIL", "PIPE_INT_ACTIVE", "integer pipe"),
        ("fp16_activity", "FP16_UTIL", "PIPE_FP16_ACTIVE", "FP16 pipe outside the tensor cores"),
        ("fp32_activity", "FP32_UTIL", "PIPE_FP32_ACTIVE", "FP32 pipe"),
        ("fp64_activity", "FP64_UTIL", "PIPE_FP64_ACTIVE", "FP64 pipe"),
        ("hmma_activity", "HMMA_TENSOR_UTIL", "PIPE_TENSOR_HMMA_ACTIVE", "16-bit tensor cores"),
        ("imma_activity", "IMMA_TENSOR_UTIL", "PIPE_TENSOR_IMMA_ACTIVE", "integer tensor cores"),
        ("graphics_activity", "GRAPHICS_UTIL", "GR_ENGINE_ACTIVE", "any engine is busy"),
        ("sm_occupancy", "SM_OCCUPANCY", "SM_OCCUPANCY", "warps resident, of what fits"),
    )
)  # fmt: skip

_ACTIVITY = (
    _feature(Node.GPU, "instruction_frac", "share of peak", Scale(low=0, high=4),
             "instruction throughput: integer, FP16, FP32 and tensor pipes together",
             live=_gpm("INTEGER_UTIL + FP16_UTIL + FP32_UTIL + ANY_TENSOR_UTIL"), simulator=None),
    _feature(Node.GPU, "tensor_activity_frac", "share of peak", SHARE, "mean of the window",
             live=_gpm("ANY_TENSOR_UTIL", "PIPE_TENSOR_ACTIVE"),
             simulator="time in which matrix products multiply, of the window"),
    _feature(Node.GPU, "tensor_activity_max_frac", "share of peak", SHARE, "most in the window",
             live=_gpm("ANY_TENSOR_UTIL", "PIPE_TENSOR_ACTIVE"), simulator=None),
    _feature(Node.GPU, "tensor_activity_trend_per_s", "1/s", TREND, "change since the last window",
             live=_gpm("ANY_TENSOR_UTIL", "PIPE_TENSOR_ACTIVE"),
             simulator="difference of two windows"),
    _feature(Node.GPU, "sm_activity_frac", "share of the window", SHARE, "mean of the window",
             live=_gpm("SM_UTIL", "SM_ACTIVE"), simulator="time in iterations, of the window"),
    _feature(Node.GPU, "sm_activity_max_frac", "share of the window", SHARE, "most in the window",
             live=_gpm("SM_UTIL", "SM_ACTIVE"), simulator=None),
    _feature(Node.GPU, "sm_activity_trend_per_s", "1/s", TREND, "change since the last window",
             live=_gpm("SM_UTIL", "SM_ACTIVE"), simulator="difference of two windows"),
    _feature(Node.GPU, "sm_idle_surge_frac", "share of the window", SHARE,
             "idle share above its moving average, 0 if below: work went missing",
             live=_gpm("SM_UTIL", "SM_ACTIVE"),
             simulator="time in iterations below its moving average"),
    _feature(Node.GPU, "non_matmul_frac", "share of busy time", SHARE,
             "busy with anything but matrix products: activation, normalisation, overhead",
             live=_gpm("1 - ANY_TENSOR_UTIL / SM_UTIL"),
             simulator="latency model: overhead and element-wise part of the mean iteration"),
    _feature(Node.GPU, "prefill_frac", _SHARE_OF_WINDOW, SHARE, "time in iterations with prefill",
             live={}, simulator="time in iterations with prefill, of the window"),
)  # fmt: skip

_POWER = (
    _feature(Node.GPU, "sm_clock_frac", "share of most", SHARE, "",
             live={Live.NVML: "nvmlDeviceGetClockInfo over nvmlDeviceGetMaxClockInfo (SM)",
                   Live.DCGM: "DCGM_FI_DEV_SM_CLOCK"},
             simulator="clock that the power cap leaves, mean of the window"),
    _feature(Node.GPU, "memory_clock_frac", "share of most", SHARE, "",
             live={Live.NVML: "nvmlDeviceGetClockInfo over nvmlDeviceGetMaxClockInfo (MEM)",
                   Live.DCGM: "DCGM_FI_DEV_MEM_CLOCK"}, simulator=None),
    _feature(Node.GPU, "power_frac", "share of TDP", _OF_LIMIT, "mean of the window",
             live={Live.NVML: "field POWER_INSTANT", Live.DCGM: "DCGM_FI_DEV_POWER_USAGE"},
             simulator="energy of the window over TDP"),
    _feature(Node.GPU, "power_max_frac", "share of TDP", _OF_LIMIT, "most in the window",
             live={Live.NVML: "field POWER_INSTANT", Live.DCGM: "DCGM_FI_DEV_POWER_USAGE"},
             simulator=None),
    _feature(Node.GPU, "power_limit_frac", "share of TDP", _OF_LIMIT, "what it may draw",
             live={Live.NVML: "nvmlDeviceGetEnforcedPowerLimit"}, simulator="power cap"),
    _feature(Node.GPU, "power_throttle_frac", _SHARE_OF_WINDOW, SHARE, "clock lowered by the cap",
             live={Live.NVML: "clock event reason SwPowerCap",
                   Live.DCGM: "DCGM_FI_DEV_POWER_VIOLATION"},
             simulator="time in phases that would draw more than the power cap"),
    _feature(Node.GPU, "thermal_throttle_frac", _SHARE_OF_WINDOW, SHARE, "clock lowered by heat",
             live={Live.NVML: "clock event reasons SwThermal, HwThermal",
                   Live.DCGM: "DCGM_FI_DEV_THERMAL_VIOLATION"}, simulator=None),
    _feature(Node.GPU, "brake_throttle_frac", _SHARE_OF_WINDOW, SHARE,
             "clock lowered by the board or the rack",
             live={Live.NVML: "clock event reasons HwSlowdown, PowerBrake"}, simulator=None),
    _feature(Node.GPU, "temperature_celsius", "C", CELSIUS, "",
             live={Live.NVML: "nvmlDeviceGetTemperature", Live.DCGM: "DCGM_FI_DEV_GPU_TEMP"},
             simulator=None),
    _feature(Node.GPU, "joules_per_token", "J",
             Scale(low=0, high=1e4, normaliser="log1p", scale=2.0),
             "energy of the window over its tokens, prompt and output",
             live={Live.NVML: "nvmlDeviceGetTotalEnergyConsumption", Live.VLLM:
                   "vllm:prompt_tokens + vllm:generation_tokens"},
             simulator="energy over tokens of the replicas on it"),
)  # fmt: skip

_REPLICA = (
    _feature(Node.REPLICA, "iteration_log_ratio", "log", Scale(low=-2, high=2, scale=0.5),
             "measured over nominal iteration time: how slow the hardware is",
             live={Live.VLLM: "vllm:inter_token_latency_seconds over the roofline",
                   Live.LLAMACPP: "llamacpp:tokens_predicted_seconds_total over the roofline"},
             simulator="measured over nominal iteration time"),
    _feature(Node.REPLICA, "prefill_frac", _SHARE_OF_WINDOW, SHARE, "time that goes into prefill",
             live={Live.VLLM: "vllm:prompt_tokens rate x nominal roofline",
                   Live.LLAMACPP: "llamacpp:prompt_seconds_total"},
             simulator="share of time in prefill"),
    _feature(Node.REPLICA, "decode_iteration_s", "s", Scale(low=0, high=1, offset=0.02, scale=0.02),
             "nominal time of a decode iteration at the batch last seen",
             live={Live.GATEWAY: "nominal roofline at the scraped batch"},
             simulator="nominal roofline at the scraped batch"),
    _feature(Node.REPLICA, "batch_frac", "share of max_num_seqs", SHARE, "slots in use",
             live={Live.VLLM: "vllm:num_requests_running", Live.SGLANG: "sglang:num_running_reqs",
                   Live.LLAMACPP: "llamacpp:requests_processing"},
             simulator="running requests at the last scrape over max_num_seqs"),
    _feature(Node.REPLICA, "output_tokens_per_s", "1/s",
             Scale(low=0, high=1e6, normaliser="log1p", offset=5, scale=3), "",
             live={Live.VLLM: "vllm:generation_tokens", Live.SGLANG: "sglang:gen_throughput",
                   Live.LLAMACPP: "llamacpp:tokens_predicted_total"},
             simulator="output tokens of the window"),
    _feature(Node.REPLICA, "prompt_tokens_per_s", "1/s",
             Scale(low=0, high=1e6, normaliser="log1p", offset=5, scale=3),
             "prompt tokens computed, cached ones left out",
             live={Live.VLLM: "vllm:prompt_tokens - vllm:prompt_tokens_cached",
                   Live.LLAMACPP: "llamacpp:prompt_tokens_total"},
             simulator="prompt tokens computed in the window"),
)  # fmt: skip

_PLACES = (
    _feature(Node.SERVER, "power_frac", "share of TDP", _OF_LIMIT, "mean over its GPUs",
             live={Live.NVML: "field POWER_INSTANT", Live.DCGM: "DCGM_FI_DEV_POWER_USAGE"},
             simulator="energy of the window over TDP"),
    _feature(Node.SERVER, "cpu_frac", "share of all cores", SHARE, "",
             live={Live.HOST: "/proc/stat"}, simulator=None),
    _feature(Node.SERVER, "load_per_core", "runnable threads", Scale(low=0, high=16, scale=2.0), "",
             live={Live.HOST: "/proc/loadavg"}, simulator=None),
    _feature(Node.SERVER, "sm_activity_frac", _SHARE_OF_WINDOW, SHARE, "mean over its GPUs",
             live=_gpm("SM_UTIL", "SM_ACTIVE"), simulator="time in iterations, of the window"),
    _feature(Node.ZONE, "power_frac", "share of TDP", _OF_LIMIT, "mean over its GPUs",
             live={Live.NVML: "field POWER_INSTANT"}, simulator="energy of the window over TDP"),
    _feature(Node.ZONE, "sm_activity_frac", _SHARE_OF_WINDOW, SHARE, "mean over its GPUs",
             live=_gpm("SM_UTIL", "SM_ACTIVE"), simulator="time in iterations, of the window"),
)  # fmt: skip

COMPUTE_FEATURES: tuple[Feature, ...] = (
    *_PEAKS, *_OF_PEAKS, *_PIPES, *_ACTIVITY, *_POWER, *_REPLICA, *_PLACES,
)  # fmt: skip
