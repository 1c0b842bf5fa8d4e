"""Features of the service dimension: what is asked of the fleet, and how it is met.

Does not know: other dimensions; `registry.py` puts them together.
Source: metric names of vLLM 0.32, SGLang and llama.cpp; bins of the input histogram are ours.
"""

from .feature import (
    COUNT,
    LOG_RATIO,
    PER_S,
    SECONDS,
    SHARE,
    TOKENS,
    Dimension,
    Feature,
    Live,
    Node,
    Scale,
    feature_maker,
)

INPUT_BINS_TOKENS = (128, 512, 2048, 8192)
"""Upper bounds of the input-length histogram; a last bin is open."""

_TTFT = Scale(low=0, high=600, normaliser="log1p")
_LIMIT = Scale(low=0, high=600, normaliser="log10", offset=0.0, scale=0.7)
_TPOT = Scale(low=0, high=10, normaliser="log10", offset=-1.5, scale=0.7)
_HOLD = Scale(low=0, high=3600, normaliser="log1p", offset=2.0, scale=2.0)
_CV = Scale(low=0, high=10, scale=2.0)


_feature = feature_maker(Dimension.SERVICE)


def _gateway(what: str = "count") -> dict[Live, str]:
    return {Live.GATEWAY: what}


_TTFT_PAGE = {Live.GATEWAY: "timing", Live.VLLM: "vllm:time_to_first_token_seconds",
              Live.SGLANG: "sglang:time_to_first_token_seconds"}  # fmt: skip
_TPOT_PAGE = {Live.GATEWAY: "timing", Live.VLLM: "vllm:request_time_per_output_token_seconds",
              Live.SGLANG: "sglang:inter_token_latency_seconds"}  # fmt: skip
_CACHED = {Live.VLLM: "vllm:prefix_cache_hits", Live.SGLANG: "sglang:cache_hit_rate"}

_REPLICA = (
    _feature(Node.REPLICA, "is_available", "0 or 1", SHARE, "may be sent requests",
             live=_gateway("health check"), simulator="replica up"),
    _feature(Node.REPLICA, "is_starting", "0 or 1", SHARE, "on the way up",
             live=_gateway("launcher"), simulator="starting or waking"),
    _feature(Node.REPLICA, "is_off", "0 or 1", SHARE, "stopped or asleep, to be had later",
             live={Live.GATEWAY: "launcher", Live.VLLM: "vllm:engine_sleep_state"},
             simulator="stopped or asleep"),
    _feature(Node.REPLICA, "takes_prefill", "0 or 1", SHARE, "role",
             live={Live.CONFIG: "cluster file"}, simulator="cluster file"),
    _feature(Node.REPLICA, "takes_decode", "0 or 1", SHARE, "role",
             live={Live.CONFIG: "cluster file"}, simulator="cluster file"),
    _feature(Node.REPLICA, "outstanding_requests", "requests", COUNT, "sent and not ended",
             live=_gateway(), simulator="gateway count"),
    _feature(Node.REPLICA, "pending_prefill_s", "s", SECONDS,
             "prompts sent whose first token has not come, in prefill time",
             live=_gateway("count x nominal roofline"), simulator="gateway count x roofline"),
    _feature(Node.REPLICA, "running_requests", "requests", COUNT, "",
             live={Live.VLLM: "vllm:num_requests_running", Live.SGLANG: "sglang:num_running_reqs",
                   Live.LLAMACPP: "llamacpp:requests_processing"},
             simulator="prefilling + decoding at the last scrape"),
    _feature(Node.REPLICA, "waiting_requests", "requests", COUNT, "",
             live={Live.VLLM: "vllm:num_requests_waiting", Live.SGLANG: "sglang:num_queue_reqs",
                   Live.LLAMACPP: "llamacpp:requests_deferred"},
             simulator="waiting at the last scrape"),
    _feature(Node.REPLICA, "waiting_capacity_requests", "requests", COUNT,
             "waiting for KV pages or a slot in the batch",
             live={Live.VLLM: 'vllm:num_requests_waiting_by_reason{reason="capacity"}'},
             simulator="waiting at the last scrape"),
    _feature(Node.REPLICA, "waiting_deferred_requests", "requests", COUNT,
             "waiting for KV that is on its way",
             live={Live.VLLM: 'vllm:num_requests_waiting_by_reason{reason="deferred"}'},
             simulator="moving requests that wait for room here at this moment"),
    _feature(Node.REPLICA, "ttft_log_ratio", "log", LOG_RATIO, "TTFT measured over predicted",
             live=_gateway("timing over its prediction"),
             simulator="gateway timing over its prediction"),
    _feature(Node.REPLICA, "ttft_p50_s", "s", _TTFT, "of first tokens in the window",
             live=_TTFT_PAGE, simulator="first tokens of the window"),
    _feature(Node.REPLICA, "ttft_p99_s", "s", _TTFT, "of first tokens in the window",
             live=_TTFT_PAGE, simulator="first tokens of the window"),
    _feature(Node.REPLICA, "tpot_mean_s", "s", _TPOT, "of requests that ended in the window",
             live=_TPOT_PAGE, simulator="requests that ended in the window"),
    _feature(Node.REPLICA, "tpot_p99_s", "s", _TPOT, "of requests that ended in the window",
             live=_TPOT_PAGE, simulator="requests that ended in the window"),
    _feature(Node.REPLICA, "late_frac", "share", SHARE,
             "first tokens of the window that came after their limit",
             live=_gateway("timing"), simulator="first tokens of the window"),
    _feature(Node.REPLICA, "sla_risk_frac", "share", SHARE,
             "of open requests without a token, those that have used up half their TTFT limit",
             live=_gateway("timing"), simulator="open requests sent to the replica"),
    _feature(Node.REPLICA, "hold_s", "s", _HOLD, "arrival to end, of requests that ended",
             live={Live.GATEWAY: "timing", Live.VLLM: "vllm:e2e_request_latency_seconds"},
             simulator="requests that ended in the window"),
    _feature(Node.REPLICA, "state_age_s", "s", SECONDS, "time since its metrics page was read",
             live=_gateway("time since the scrape"), simulator="time since the scrape"),
)  # fmt: skip

_GPU_AND_PLACES = (
    _feature(Node.GPU, "is_usable", "0 or 1", SHARE, "needs no reset, drain or reboot",
             live={Live.NVML: "field GET_GPU_RECOVERY_ACTION"},
             simulator="replica not known to be down"),
    _feature(Node.SERVER, "available_frac", "share of replicas", SHARE, "up",
             live=_gateway("health check"), simulator="replicas up"),
    _feature(Node.SERVER, "outstanding_requests", "requests", COUNT, "sum over its replicas",
             live=_gateway(), simulator="gateway count"),
    _feature(Node.ZONE, "available_frac", "share of replicas", SHARE, "up",
             live=_gateway("health check"), simulator="replicas up"),
    _feature(Node.ZONE, "outstanding_requests", "requests",
             Scale(low=0, high=1e6, normaliser="log1p", offset=3, scale=3),
             "sum over its replicas", live=_gateway(), simulator="gateway count"),
    _feature(Node.ZONE, "usd_per_kwh", "USD/kWh", Scale(low=-1, high=10, offset=0.1, scale=0.1),
             "price of electricity",
             live={Live.CONFIG: "tariff file"}, simulator="tariff of the hour"),
    _feature(Node.ZONE, "carbon_g_per_kwh", "g/kWh", Scale(low=0, high=2000, offset=300, scale=300),
             "carbon intensity of electricity",
             live={Live.CONFIG: "tariff file"}, simulator="tariff of the hour"),
)  # fmt: skip

_BIN_NAMES = (*(f"input_le_{bound}_frac" for bound in INPUT_BINS_TOKENS), "input_longer_frac")

_TENANT = (
    _feature(Node.TENANT, "arrival_rate_rps", "1/s", PER_S, "",
             live=_gateway(), simulator="arrivals of the last window"),
    _feature(Node.TENANT, "interarrival_cv", "ratio", _CV,
             "gaps between arrivals, standard deviation over mean: 1 Poisson, above bursty",
             live=_gateway(), simulator="arrivals of the last window"),
    _feature(Node.TENANT, "interarrival_p99_s", "s", SECONDS, "longest gaps",
             live=_gateway(), simulator="arrivals of the last window"),
    _feature(Node.TENANT, "mean_input_tokens", "tokens", TOKENS, "",
             live=_gateway(), simulator="arrivals of the last window"),
    *(
        _feature(Node.TENANT, name, "share", SHARE, "input length histogram: arrivals in the bin",
                 live=_gateway(), simulator="arrivals of the last window")
        for name in _BIN_NAMES
    ),
    _feature(Node.TENANT, "expected_output_tokens", "tokens", TOKENS,
             "mean output length of ended requests, a moving average",
             live=_gateway(), simulator="gateway's moving average"),
    _feature(Node.TENANT, "output_p10_tokens", "tokens", TOKENS,
             "lower end of the interval of output lengths",
             live=_gateway(), simulator="requests that ended in the window"),
    _feature(Node.TENANT, "output_p90_tokens", "tokens", TOKENS,
             "upper end of the interval of output lengths",
             live=_gateway(), simulator="requests that ended in the window"),
    _feature(Node.TENANT, "hold_s", "s", _HOLD, "session holding time: arrival to end",
             live=_gateway("timing"), simulator="requests that ended in the window"),
    _feature(Node.TENANT, "prefix_reuse_frac", "share", SHARE, "input tokens found in a cache",
             live=_CACHED, simulator="hit tokens over input tokens of requests with a first token"),
    _feature(Node.TENANT, "shed_frac", "share", SHARE, "arrivals that were refused",
             live=_gateway(), simulator="arrivals of the last window"),
    _feature(Node.TENANT, "late_frac", "share", SHARE, "first tokens after their limit",
             live=_gateway("timing"), simulator="arrivals of the window that have a token"),
    _feature(Node.TENANT, "missed_frac", "share", SHARE, "beyond one of their limits when they end",
             live=_gateway("timing"), simulator="requests that ended in the window"),
    _feature(Node.TENANT, "ttft_limit_s", "s", _LIMIT, "mean limit on TTFT of its arrivals",
             live=_gateway("its requests' limits"), simulator="arrivals of the last window"),
    _feature(Node.TENANT, "tpot_limit_s", "s", _TPOT, "mean limit on TPOT of its arrivals",
             live=_gateway("its requests' limits"), simulator="arrivals of the last window"),
    _feature(Node.TENANT, "sla_risk_frac", "share", SHARE,
             "of open requests without a token, those that have used up half their TTFT limit",
             live=_gateway("timing"), simulator="open requests"),
    _feature(Node.TENANT, "ttft_p50_s", "s", _TTFT, "of first tokens in the window",
             live=_gateway("timing"), simulator="first tokens of the window"),
    _feature(Node.TENANT, "ttft_p99_s", "s", _TTFT, "of first tokens in the window",
             live=_gateway("timing"), simulator="first tokens of the window"),
    _feature(Node.TENANT, "tpot_mean_s", "s", _TPOT, "of requests that ended in the window",
             live=_gateway("timing"), simulator="requests that ended in the window"),
    _feature(Node.TENANT, "tpot_p99_s", "s", _TPOT, "of requests that ended in the window",
             live=_gateway("timing"), simulator="requests that ended in the window"),
    _feature(Node.TENANT, "outstanding_requests", "requests", COUNT, "arrived and not ended",
             live=_gateway(), simulator="open requests"),
    _feature(Node.TENANT, "waiting_requests", "requests", COUNT, "without a token yet",
             live=_gateway(), simulator="open requests"),
    _feature(Node.TENANT, "priority_weight", "weight", Scale(low=0, high=100, scale=2.0),
             "mean weight of its arrivals",
             live={Live.CONFIG: "tenant file"}, simulator="arrivals of the last window"),
    _feature(Node.TENANT, "region_affinity_frac", "share", SHARE,
             "arrivals from the zone that most come from",
             live=_gateway(), simulator=None),
    _feature(Node.TENANT, "is_isolated", "0 or 1", SHARE,
             "compliance isolation: may use only some zones or servers",
             live={Live.CONFIG: "tenant file"}, simulator=None),
)  # fmt: skip

_FLEET = (
    _feature(Node.FLEET, "load_frac", "share", Scale(low=0, high=10, offset=0.5, scale=0.5),
             "prefill seconds arriving a second and replica",
             live=_gateway("count x nominal roofline"), simulator="arrivals of the last window"),
    _feature(Node.FLEET, "arrival_log_change", "log", LOG_RATIO,
             "arrival rate of the window over its moving average",
             live=_gateway(), simulator="arrivals of the last window"),
    _feature(Node.FLEET, "available_frac", "share", SHARE, "replicas up",
             live=_gateway("health check"), simulator="replicas up"),
    _feature(Node.FLEET, "outstanding_requests", "requests",
             Scale(low=0, high=1e6, normaliser="log1p", offset=3, scale=3), "arrived and not ended",
             live=_gateway(), simulator="open requests"),
    _feature(Node.FLEET, "late_frac", "share", SHARE, "first tokens after their limit",
             live=_gateway("timing"), simulator="first tokens of the last window"),
)  # fmt: skip

SERVICE_FEATURES: tuple[Feature, ...] = (*_REPLICA, *_GPU_AND_PLACES, *_TENANT, *_FLEET)
