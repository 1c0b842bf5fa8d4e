"""Features of the memory dimension: HBM, KV pages, prefix cache, weights.

Does not know: other dimensions; `registry.py` puts them together.
Source: NVML field ids as in nvidia-ml-py; metric names of vLLM 0.32, SGLang and llama.cpp.
"""

from .feature import (
    CELSIUS,
    COUNT,
    PER_S,
    SHARE,
    TREND,
    Dimension,
    Feature,
    Live,
    Node,
    Scale,
    feature_maker,
)

INDICES = {
    "kv_fragmentation_frac": (
        "Fragmentation index: of the token slots in the KV pages that running requests hold, the "
        "share that holds no token. Pages are of one size, so memory is lost inside the last page "
        "of each sequence, never between pages; short sequences on large pages waste most. A "
        "prompt in prefill counts in full. One sequence of 17 tokens on pages of 16 holds 2 pages "
        "and wastes 15 of 32 slots: 0.47."
    ),
    "kv_contiguity_frac": (
        "Contiguity score: of the KV pages that a new request could get, the share that is free at "
        "once; the rest must first be taken from the prefix cache. 1 with an empty cache; 0.25 "
        "with 10 pages free and 30 that only the cache holds."
    ),
    "page_table_entries": (
        "Page-table map: a running sequence has one entry for each page of its context. The map is "
        "summed up by its length, the mean and spread of entries a sequence, the longest, and the "
        "share of entries that point at pages of the prefix cache, which several may share."
    ),
}
"""Definitions of the indices, by feature."""

_HBM_BYTES = Scale(low=1e9, high=1e12, normaliser="log10", offset=10.9, scale=0.3)
_HBM_RATE = Scale(low=1e10, high=1e14, normaliser="log10", offset=12.3, scale=0.3)
_PAGES = Scale(low=0, high=1e8, normaliser="log1p", offset=9.0, scale=3.0)
_PAGES_OF_ONE = Scale(low=0, high=1e5, normaliser="log1p", offset=4.0, scale=2.0)


_feature = feature_maker(Dimension.MEMORY)

_DRAM = {Live.NVML: "GPM DRAM_BW_UTIL", Live.DCGM: "DCGM_FI_PROF_DRAM_ACTIVE"}
_KV_EVENTS = {Live.KV_EVENTS: "BlockStored, BlockRemoved"}
_HIT_TOKENS = {
    Live.VLLM: "vllm:prefix_cache_hits over vllm:prefix_cache_queries",
    Live.SGLANG: "sglang:cache_hit_rate",
    Live.LLAMACPP: "llamacpp:prompt_tokens_cached_total over all prompt tokens",
}

_GPU = (
    _feature(Node.GPU, "hbm_bytes", "B", _HBM_BYTES, "total memory",
             live={Live.NVML: "nvmlDeviceGetMemoryInfo"}, simulator="GPU catalogue"),
    _feature(Node.GPU, "hbm_bytes_per_s", "B/s", _HBM_RATE, "peak bandwidth",
             live={Live.CONFIG: "GPU catalogue by NVML name"}, simulator="GPU catalogue"),
    _feature(Node.GPU, "hbm_used_frac", "share", SHARE, "taken, whether in use or set aside",
             live={Live.NVML: "nvmlDeviceGetMemoryInfo", Live.DCGM: "DCGM_FI_DEV_FB_USED"},
             simulator="weights, buffers and the KV pool of a replica that is up"),
    _feature(Node.GPU, "weights_frac", "share", SHARE, "of the memory, that holds weights",
             live={Live.CONFIG: "model shape, precision, parallelism"},
             simulator="model shape, precision, parallelism"),
    _feature(Node.GPU, "kv_pool_frac", "share", SHARE, "of the memory, that is for KV pages",
             live={Live.VLLM: "vllm:cache_config_info num_gpu_blocks x page bytes"},
             simulator="KV pages x page bytes"),
    _feature(Node.GPU, "kv_used_frac", "share", SHARE, "of the memory, that holds KV in use",
             live={Live.VLLM: "vllm:kv_cache_usage_perc x KV pool"},
             simulator="pages in use at the last scrape x page bytes"),
    _feature(Node.GPU, "hbm_bandwidth_frac", "share of peak", SHARE, "mean of the window",
             live=_DRAM, simulator="bytes of weights and KV that the window's iterations read"),
    _feature(Node.GPU, "hbm_bandwidth_max_frac", "share of peak", SHARE, "most in the window",
             live=_DRAM, simulator=None),
    _feature(Node.GPU, "hbm_bandwidth_trend_per_s", "1/s", TREND, "change since the last window",
             live=_DRAM, simulator="difference of two windows"),
    _feature(Node.GPU, "memory_temperature_celsius", "C", CELSIUS, "",
             live={Live.NVML: "field MEMORY_TEMP", Live.DCGM: "DCGM_FI_DEV_MEMORY_TEMP"},
             simulator=None),
    _feature(Node.GPU, "ecc_corrected_per_s", "1/s", PER_S, "single-bit errors",
             live={Live.NVML: "nvmlDeviceGetTotalEccErrors (corrected)",
                   Live.DCGM: "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"}, simulator=None),
    _feature(Node.GPU, "ecc_uncorrected_errors", "errors", COUNT, "double-bit errors since boot",
             live={Live.NVML: "nvmlDeviceGetTotalEccErrors (uncorrected)",
                   Live.DCGM: "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"}, simulator=None),
    _feature(Node.GPU, "remapped_rows", "rows", COUNT, "memory rows replaced by spare ones",
             live={Live.NVML: "nvmlDeviceGetRemappedRows"}, simulator=None),
    _feature(Node.GPU, "is_remap_pending", "0 or 1", SHARE, "rows wait for a reset to be replaced",
             live={Live.NVML: "nvmlDeviceGetRemappedRows, RetiredPagesPendingStatus"},
             simulator=None),
    _feature(Node.GPU, "xid_errors", "errors", COUNT, "critical driver errors since start",
             live={Live.NVML: "event XidCriticalError", Live.DCGM: "DCGM_FI_DEV_XID_ERRORS"},
             simulator=None),
)  # fmt: skip

_REPLICA = (
    _feature(Node.REPLICA, "kv_pages", "pages", _PAGES, "KV pages in all",
             live={Live.VLLM: "vllm:cache_config_info num_gpu_blocks",
                   Live.SGLANG: "sglang:cache_config_info num_pages"},
             simulator="KV pages in all"),
    _feature(Node.REPLICA, "kv_usage_frac", "share", SHARE, "pages allocated to running requests",
             live={Live.VLLM: "vllm:kv_cache_usage_perc", Live.SGLANG: "sglang:token_usage"},
             simulator="pages in use at the last scrape"),
    _feature(Node.REPLICA, "active_kv_pages", "pages", _PAGES, "pages that running requests hold",
             live={Live.VLLM: "vllm:kv_cache_usage_perc x num_gpu_blocks",
                   Live.SGLANG: "sglang:token_usage x num_pages"},
             simulator="pages in use at the last scrape"),
    _feature(Node.REPLICA, "cached_frac", "share", SHARE, "pages with prefix-cache blocks",
             live=_KV_EVENTS, simulator="prefix-cache pages at the last scrape"),
    _feature(Node.REPLICA, "pages_per_sequence", "pages", _PAGES_OF_ONE,
             "allocated blocks of a running sequence, mean",
             live={Live.VLLM: "kv_cache_usage_perc x num_gpu_blocks over num_requests_running"},
             simulator="page tables of running requests at this moment, mean length"),
    _feature(Node.REPLICA, "pages_per_sequence_cv", "ratio", Scale(low=0, high=10),
             "allocated blocks of running sequences, standard deviation over mean",
             live=_KV_EVENTS, simulator="page tables of running requests at this moment, spread"),
    _feature(Node.REPLICA, "largest_sequence_frac", "share", SHARE,
             "of the pages, that the longest running sequence holds",
             live=_KV_EVENTS, simulator="page tables of running requests at this moment, longest"),
    _feature(Node.REPLICA, "page_table_entries", "entries", _PAGES,
             "page-table map: entries of all running sequences, a shared page counted by each",
             live={}, simulator="page tables of running requests at this moment"),
    _feature(Node.REPLICA, "shared_page_frac", "share", SHARE,
             "page-table map: entries that point at prefix-cache pages",
             live={}, simulator="pages of pinned blocks over page-table entries at this moment"),
    _feature(Node.REPLICA, "kv_fragmentation_frac", "share", SHARE,
             "fragmentation index: token slots in pages of running requests that hold no token",
             live={},
             simulator="empty slots in last pages over slots of held pages, at this moment"),
    _feature(Node.REPLICA, "kv_contiguity_frac", "share", SHARE,
             "contiguity score: of the pages that can be had, those that need no eviction",
             live=_KV_EVENTS, simulator="free pages over free and evictable pages at this moment"),
    _feature(Node.REPLICA, "cache_hit_frac", "share", SHARE, "prompt tokens found in the cache",
             live=_HIT_TOKENS, simulator="hit tokens over prompt tokens of the window"),
    _feature(Node.REPLICA, "cache_hit_trend", "share", Scale(low=-1, high=1, scale=0.5),
             "hit share of the window less its moving average",
             live=_HIT_TOKENS, simulator="hit share of the window less its moving average"),
    _feature(Node.REPLICA, "host_hit_frac", "share", SHARE, "prompt tokens found in host memory",
             live={Live.VLLM: "vllm:external_prefix_cache_hits over vllm:prefix_cache_queries"},
             simulator="host hits over prompt tokens of the window"),
    _feature(Node.REPLICA, "preemptions_per_s", "1/s", PER_S, "sequences that lost their pages",
             live={Live.VLLM: "vllm:num_preemptions"}, simulator="preemptions of the window"),
    _feature(Node.REPLICA, "weight_load_s", "s",
             Scale(low=0, high=3600, normaliser="log1p", offset=3, scale=2),
             "time to load the weights at the last start",
             live={}, simulator="weight bytes over the bandwidth from storage"),
    _feature(Node.REPLICA, "hbm_bandwidth_frac", "share of peak", SHARE, "mean over its GPUs",
             live=_DRAM, simulator="bytes of weights and KV that the window's iterations read"),
)  # fmt: skip

_PLACES = (
    _feature(Node.SERVER, "host_memory_frac", "share", SHARE, "host memory in use",
             live={Live.HOST: "/proc/meminfo"}, simulator=None),
    _feature(Node.SERVER, "host_kv_frac", "share", SHARE, "host memory for KV that is in use",
             live={Live.VLLM: "external KV connector"},
             simulator="host pages in use over host pages, at this moment"),
    _feature(Node.SERVER, "disk_read_frac", "share of bandwidth", SHARE, "reading from disk",
             live={Live.HOST: "/proc/diskstats"},
             simulator="weights being loaded from disk at this moment"),
    _feature(Node.FLEET, "kv_usage_frac", "share", SHARE, "mean over replicas that are up",
             live={Live.VLLM: "vllm:kv_cache_usage_perc"},
             simulator="mean over replicas that are up, at the last scrapes"),
    _feature(Node.FLEET, "cache_hit_frac", "share", SHARE, "prompt tokens found in any cache",
             live=_HIT_TOKENS, simulator="hit tokens over prompt tokens of the window"),
)  # fmt: skip

MEMORY_FEATURES: tuple[Feature, ...] = (*_GPU, *_REPLICA, *_PLACES)
