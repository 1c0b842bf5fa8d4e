"""From a replica's metrics page to its features.

Counters are read over page time: the moments when the page was read, not those when its readings
were sampled again.

Does not know: the GPUs of the replica (`hosting.py`), or what only the gateway sees.
"""

import numpy as np

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import column
from ..signals import Scope
from .rack_constants import ReplicaConstants
from .readings import Readings, ReadingTable, ScopeStatistics, last, rate
from .recent import MovingAverage, recent_ratio

_SAME_LAST = (
    "running_requests", "waiting_requests", "waiting_capacity_requests",
    "waiting_deferred_requests", "kv_pages", "kv_usage_frac", "ttft_p50_s", "ttft_p99_s",
    "tpot_p99_s",
)  # fmt: skip

REPLICA_READINGS: Readings = {
    **{name: (last(name),) for name in _SAME_LAST},
    "state_age_s": (last("page_age_s"),),
    "batch_frac": (last("running_requests", "max_num_seqs"),),
    "output_tokens_per_s": (rate("output_tokens"), last("output_tokens_per_s")),
    "prompt_tokens_per_s": (rate("prompt_computed_tokens"),),
    "preemptions_per_s": (rate("preemptions"),),
    "kv_in_bytes_per_s": (rate("kv_received_bytes"),),
}


def _column(name: str) -> int:
    return column(Node.REPLICA, name)


class ReplicaFeatures:
    """Derives the features of a rack's replicas.

    Shapes: values are [servers, replicas, features of `Node.REPLICA`].
    """

    def __init__(self, constants: ReplicaConstants) -> None:
        self._constants = constants
        shape = constants.max_num_seqs.shape
        per = {"max_num_seqs": constants.max_num_seqs}
        self._table = ReadingTable(Node.REPLICA, Scope.REPLICA, REPLICA_READINGS, per)
        self._hits = MovingAverage(shape)
        self._rows = np.arange(shape[0] * shape[1]).reshape(shape)

    def values(self, statistics: ScopeStatistics, passed_s: FloatArray) -> FloatArray:
        """Return the features; `passed_s` [servers, replicas] is the time between two pages."""
        values = self._table.values(statistics)
        increments = statistics.increments()
        context_tokens = self._fill_pages(values, statistics)
        self._fill_cache(values, statistics, increments, passed_s)
        self._fill_tokens(values, statistics)
        self._fill_times(values, statistics, increments, context_tokens)
        return values

    def _fill_pages(self, values: FloatArray, statistics: ScopeStatistics) -> FloatArray:
        """Fill what KV pages are used for; return the tokens that they hold."""
        running = values[..., _column("running_requests")]
        pages = values[..., _column("kv_usage_frac")] * values[..., _column("kv_pages")]
        values[..., _column("active_kv_pages")] = pages
        values[..., _column("pages_per_sequence")] = pages / np.where(running > 0, running, np.nan)
        tokens: FloatArray = pages * statistics.of(last("kv_page_tokens"))
        return tokens

    def _fill_cache(
        self,
        values: FloatArray,
        statistics: ScopeStatistics,
        increments: dict[str, FloatArray],
        passed_s: FloatArray,
    ) -> None:
        queried = increments["prefix_queried_tokens"]
        cached = increments["prompt_cached_tokens"]
        hit_frac = recent_ratio(increments["prefix_hit_tokens"], queried)
        # llama.cpp says which tokens were cached and which computed.
        by_prompt = recent_ratio(cached, cached + increments["prompt_computed_tokens"])
        hit_frac = np.where(np.isnan(hit_frac), by_prompt, hit_frac)
        hit_frac = np.where(np.isnan(hit_frac), statistics.of(last("cache_hit_frac")), hit_frac)
        usual_frac = self._hits.before()
        self._hits.add(hit_frac, passed_s)
        usual_frac = np.where(np.isnan(usual_frac), hit_frac, usual_frac)
        values[..., _column("cache_hit_frac")] = hit_frac
        values[..., _column("cache_hit_trend")] = hit_frac - usual_frac
        values[..., _column("host_hit_frac")] = recent_ratio(
            increments["external_hit_tokens"], queried
        )

    def _fill_tokens(self, values: FloatArray, statistics: ScopeStatistics) -> None:
        computed = values[..., _column("prompt_tokens_per_s")]
        cached = statistics.of(rate("prompt_cached_tokens"))
        less_cached = statistics.of(rate("prompt_tokens")) - np.where(np.isnan(cached), 0, cached)
        computed = np.where(np.isnan(computed), np.maximum(less_cached, 0.0), computed)
        values[..., _column("prompt_tokens_per_s")] = computed

    def _fill_times(
        self,
        values: FloatArray,
        statistics: ScopeStatistics,
        increments: dict[str, FloatArray],
        context_tokens: FloatArray,
    ) -> None:
        known = self._constants
        running = values[..., _column("running_requests")]
        nominal_s = self._decode_base_s(running) + context_tokens * known.decode_context_s
        token_s = recent_ratio(increments["inter_token_sum_s"], increments["inter_token_count"])
        by_busy_s = recent_ratio(increments["decode_busy_s"], increments["output_tokens"])
        token_s = np.where(np.isnan(token_s), by_busy_s, token_s)
        by_nominal = values[..., _column("prompt_tokens_per_s")] * known.prefill_token_s
        prefill_frac = statistics.of(rate("prefill_busy_s"))
        awake = statistics.of(last("is_awake"))
        filled = {
            "decode_iteration_s": nominal_s,
            "iteration_log_ratio": np.log(np.where(token_s > 0, token_s, np.nan) / nominal_s),
            "prefill_frac": np.where(np.isnan(prefill_frac), by_nominal, prefill_frac),
            "tpot_mean_s": recent_ratio(increments["tpot_sum_s"], increments["tpot_count"]),
            "hold_s": recent_ratio(increments["e2e_sum_s"], increments["e2e_count"]),
            "is_off": 1.0 - awake,
        }
        for name, filling in filled.items():
            values[..., _column(name)] = filling

    def _decode_base_s(self, running: FloatArray) -> FloatArray:
        table = self._constants.decode_base_s
        batch = np.clip(np.where(np.isnan(running), 0, running), 0, table.shape[1] - 1)
        base_s: FloatArray = table[self._rows, batch.astype(np.int64)]
        return np.where(np.isnan(running), np.nan, base_s)
