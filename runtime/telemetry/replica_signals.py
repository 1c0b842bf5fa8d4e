"""Raw signals of a replica, as its engine's metrics page gives them.

The source of an engine is read by `probes/engine_page.py` and has one grammar: alternatives
joined by ` | `, the engine's newest name first; `NAME{LABEL="VALUE"}` takes only samples with
that label; `NAME[LABEL]` takes the number in a label; `pNN NAME` takes a quantile of a histogram
over what it gained in the last seconds; `A / B` divides.

Does not know: how a page is fetched, or what is derived from a signal.
Source: pages of vLLM 0.32 and llama.cpp (October 2026); SGLang's python/sglang/srt/metrics.
"""

from ...env.state.feature import Live
from .raw_signal import Kind, Scope, Signal, signal_maker

_COUNT = 1e6
# 50,000 tokens a second: folded after 5.6 min; every whole number below is exact.
_TOKENS_FOLD = 2.0**24
_EVENTS_FOLD = 2.0**24
# 100 requests a second of 0.5 s each: folded after 5 min, in steps of 1 ms.
_TIME_FOLD_S = 2.0**14
# 50 GB/s: folded after 3 min, in steps of 512 KiB.
_KV_FOLD_BYTES = 2.0**43

_signal = signal_maker(Scope.REPLICA)
_COUNTER = Kind.COUNTER


def _pages(vllm: str = "", sglang: str = "", llamacpp: str = "") -> dict[Live, str]:
    sources = {Live.VLLM: vllm, Live.SGLANG: sglang, Live.LLAMACPP: llamacpp}
    return {engine: source for engine, source in sources.items() if source}


_REQUESTS = (
    _signal("running_requests", "requests", _COUNT,
            _pages("vllm:num_requests_running", "sglang:num_running_reqs",
                   "llamacpp:requests_processing")),
    _signal("waiting_requests", "requests", _COUNT,
            _pages("vllm:num_requests_waiting", "sglang:num_queue_reqs",
                   "llamacpp:requests_deferred")),
    _signal("waiting_capacity_requests", "requests", _COUNT,
            _pages('vllm:num_requests_waiting_by_reason{reason="capacity"}')),
    _signal("waiting_deferred_requests", "requests", _COUNT,
            _pages('vllm:num_requests_waiting_by_reason{reason="deferred"}')),
    _signal("preemptions", "preemptions", _EVENTS_FOLD,
            _pages("vllm:num_preemptions_total", "sglang:num_retracted_requests_total"),
            kind=_COUNTER),
    _signal("iterations", "iterations", _EVENTS_FOLD,
            _pages("vllm:iteration_tokens_total_count", "", "llamacpp:n_decode_total"),
            kind=_COUNTER),
    _signal("is_awake", "0 or 1", 1.0, _pages('vllm:engine_sleep_state{sleep_state="awake"}')),
)  # fmt: skip

_KV = (
    _signal("kv_usage_frac", "share", 1.0,
            _pages("vllm:kv_cache_usage_perc | vllm:gpu_cache_usage_perc", "sglang:token_usage",
                   "llamacpp:kv_cache_usage_ratio")),
    _signal("kv_pages", "pages", 1e9,
            _pages("vllm:cache_config_info[num_gpu_blocks]",
                   "sglang:cache_config_info[num_pages]")),
    _signal("kv_page_tokens", "tokens a page", 1e6,
            _pages("vllm:cache_config_info[block_size]", "sglang:cache_config_info[page_size]"),
            low=1.0),
    _signal("host_kv_usage_frac", "share", 1.0,
            _pages("vllm:cpu_cache_usage_perc",
                   "sglang:hicache_host_used_tokens / sglang:hicache_host_total_tokens")),
    _signal("kv_received_bytes", "B", _KV_FOLD_BYTES,
            _pages("vllm:nixl_bytes_transferred_sum"), kind=_COUNTER),
)  # fmt: skip

_CACHE = (
    _signal("prefix_queried_tokens", "tokens", _TOKENS_FOLD,
            _pages("vllm:prefix_cache_queries_total | vllm:gpu_prefix_cache_queries_total"),
            kind=_COUNTER),
    _signal("prefix_hit_tokens", "tokens", _TOKENS_FOLD,
            _pages("vllm:prefix_cache_hits_total | vllm:gpu_prefix_cache_hits_total"),
            kind=_COUNTER),
    _signal("external_hit_tokens", "tokens", _TOKENS_FOLD,
            _pages("vllm:external_prefix_cache_hits_total"), kind=_COUNTER),
    _signal("cache_hit_frac", "share", 1.0, _pages("", "sglang:cache_hit_rate")),
)  # fmt: skip

_TOKENS = (
    _signal("prompt_tokens", "tokens, cached ones too", _TOKENS_FOLD,
            _pages("vllm:prompt_tokens_total", "sglang:prompt_tokens_total"), kind=_COUNTER),
    _signal("prompt_cached_tokens", "tokens", _TOKENS_FOLD,
            _pages("vllm:prompt_tokens_cached_total", "sglang:cached_tokens_total",
                   "llamacpp:prompt_tokens_cached_total"), kind=_COUNTER),
    _signal("prompt_computed_tokens", "tokens", _TOKENS_FOLD,
            _pages('vllm:prompt_tokens_by_source_total{source="local_compute"}', "",
                   "llamacpp:prompt_tokens_total"), kind=_COUNTER),
    _signal("output_tokens", "tokens", _TOKENS_FOLD,
            _pages("vllm:generation_tokens_total", "sglang:generation_tokens_total",
                   "llamacpp:tokens_predicted_total"), kind=_COUNTER),
    _signal("output_tokens_per_s", "1/s", 1e7, _pages("", "sglang:gen_throughput")),
    _signal("prefill_busy_s", "s", _TIME_FOLD_S, _pages("", "", "llamacpp:prompt_seconds_total"),
            kind=_COUNTER),
    _signal("decode_busy_s", "s", _TIME_FOLD_S,
            _pages("", "", "llamacpp:tokens_predicted_seconds_total"), kind=_COUNTER),
)  # fmt: skip

_TTFT = "time_to_first_token_seconds"
_TPOT = "request_time_per_output_token_seconds"
_E2E = "e2e_request_latency_seconds"

_LATENCY = (
    _signal("ttft_sum_s", "s", _TIME_FOLD_S,
            _pages(f"vllm:{_TTFT}_sum", f"sglang:{_TTFT}_sum"), kind=_COUNTER),
    _signal("ttft_count", "first tokens", _EVENTS_FOLD,
            _pages(f"vllm:{_TTFT}_count", f"sglang:{_TTFT}_count"), kind=_COUNTER),
    _signal("ttft_p50_s", "s", 1e4, _pages(f"p50 vllm:{_TTFT}", f"p50 sglang:{_TTFT}")),
    _signal("ttft_p99_s", "s", 1e4, _pages(f"p99 vllm:{_TTFT}", f"p99 sglang:{_TTFT}")),
    *(
        _signal(f"inter_token_{what}", unit, fold,
                _pages(f"vllm:inter_token_latency_seconds_{part}"
                       f" | vllm:time_per_output_token_seconds_{part}",
                       f"sglang:inter_token_latency_seconds_{part}"
                       f" | sglang:time_per_output_token_seconds_{part}"), kind=_COUNTER)
        for what, part, unit, fold in (
            ("sum_s", "sum", "s", _TIME_FOLD_S), ("count", "count", "tokens", _TOKENS_FOLD)
        )
    ),
    _signal("tpot_sum_s", "s", _TIME_FOLD_S, _pages(f"vllm:{_TPOT}_sum"), kind=_COUNTER),
    _signal("tpot_count", "requests", _EVENTS_FOLD, _pages(f"vllm:{_TPOT}_count"), kind=_COUNTER),
    _signal("tpot_p99_s", "s", 1e4,
            _pages(f"p99 vllm:{_TPOT}", "p99 sglang:inter_token_latency_seconds")),
    _signal("e2e_sum_s", "s", _TIME_FOLD_S, _pages(f"vllm:{_E2E}_sum", f"sglang:{_E2E}_sum"),
            kind=_COUNTER),
    _signal("e2e_count", "requests", _EVENTS_FOLD,
            _pages(f"vllm:{_E2E}_count", f"sglang:{_E2E}_count"), kind=_COUNTER),
    _signal("page_age_s", "s", 1e6, {Live.HOST: "time since the metrics page was read"}),
)  # fmt: skip

REPLICA_SIGNALS: tuple[Signal, ...] = (*_REQUESTS, *_KV, *_CACHE, *_TOKENS, *_LATENCY)
