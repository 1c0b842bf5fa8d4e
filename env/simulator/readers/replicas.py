"""Features of replicas: life, load, and what a window's totals say.

Does not know: requests one by one (`requests.py`) or page tables (`pages.py`).
"""

import numpy as np

from ...compiled import compiled
from ...state.feature import Node
from ...state.registry import column
from ..layout import ASLEEP, NONE, ROLE_DECODE, ROLE_PREFILL, STARTING, STOPPED, WAKING
from ..memory import fleet_of, nominal_of, replicas_of, requests_of
from .totals import (
    GENERATED_TOKENS,
    HIT_TOKENS,
    HOST_HIT_TOKENS,
    MEAN_HIT,
    PREEMPTIONS,
    PREFILL_TOKENS,
    PROMPT_TOKENS,
)
from .work import BUBBLE_S, COMMUNICATION_S, ITERATION_S, READ_BYTES, fill_work

_IS_STARTING = column(Node.REPLICA, "is_starting")
_IS_OFF = column(Node.REPLICA, "is_off")
_TAKES_PREFILL = column(Node.REPLICA, "takes_prefill")
_TAKES_DECODE = column(Node.REPLICA, "takes_decode")
_RUNNING = column(Node.REPLICA, "running_requests")
_WAITING = column(Node.REPLICA, "waiting_requests")
_WAITING_CAPACITY = column(Node.REPLICA, "waiting_capacity_requests")
_WAITING_DEFERRED = column(Node.REPLICA, "waiting_deferred_requests")
_MOVING = column(Node.REPLICA, "moving_requests")
_BATCH = column(Node.REPLICA, "batch_frac")
_OUTPUT_RATE = column(Node.REPLICA, "output_tokens_per_s")
_PROMPT_RATE = column(Node.REPLICA, "prompt_tokens_per_s")
_KV_PAGES = column(Node.REPLICA, "kv_pages")
_KV_USAGE = column(Node.REPLICA, "kv_usage_frac")
_ACTIVE_PAGES = column(Node.REPLICA, "active_kv_pages")
_CACHED = column(Node.REPLICA, "cached_frac")
_ITERATION_RATIO = column(Node.REPLICA, "iteration_log_ratio")
_PREFILL = column(Node.REPLICA, "prefill_frac")
_HIT = column(Node.REPLICA, "cache_hit_frac")
_HIT_TREND = column(Node.REPLICA, "cache_hit_trend")
_HOST_HIT = column(Node.REPLICA, "host_hit_frac")
_PREEMPTIONS = column(Node.REPLICA, "preemptions_per_s")
_WEIGHT_LOAD = column(Node.REPLICA, "weight_load_s")
_HBM_BANDWIDTH = column(Node.REPLICA, "hbm_bandwidth_frac")
_ALL_REDUCE = column(Node.REPLICA, "all_reduce_wait_frac")
_BUBBLE = column(Node.REPLICA, "pipeline_bubble_frac")
_MESSAGES = column(Node.REPLICA, "expert_messages_per_s")
_MESSAGE_BYTES = column(Node.REPLICA, "expert_bytes_per_s")
_FLEET_KV_USAGE = column(Node.FLEET, "kv_usage_frac")
_FLEET_HIT = column(Node.FLEET, "cache_hit_frac")

# What stands on the metrics page of an engine, and on none when there is no engine.
_PAGE_COLUMNS = (_RUNNING, _WAITING, _KV_USAGE, _CACHED, _ITERATION_RATIO, _PREFILL)


@compiled
def fill_works(handle, facts, added, works):
    """Fill the work of a window. Shapes: `added` [R, NUM_TOTALS], `works` [R, NUM_WORKS]."""
    for r in range(facts.size):
        fill_work(nominal_of(handle[0])[r], facts[r], added[r], works[r])


@compiled
def fill_replicas(handle, facts, window, works, rows):
    """Fill what is known of replicas; what a page says is absent where there is no engine.

    Shapes: `facts` FACTS_DTYPE [R]; `window` (span_s, added [R, NUM_TOTALS], means before it
    [R, NUM_MEANS]); `works` [R, NUM_WORKS]; `rows` [R, features], the observed ones filled.
    """
    sim = handle[0]
    for r in range(facts.size):
        replica, row = replicas_of(sim)[r], rows[r]
        state = replica.state
        row[_IS_STARTING] = 1.0 if state in (STARTING, WAKING) else 0.0
        row[_IS_OFF] = 1.0 if state in (STOPPED, ASLEEP) else 0.0
        row[_TAKES_PREFILL] = 0.0 if replica.role == ROLE_DECODE else 1.0
        row[_TAKES_DECODE] = 0.0 if replica.role == ROLE_PREFILL else 1.0
        row[_KV_PAGES] = replica.total_pages
        row[_WEIGHT_LOAD] = facts[r].weight_load_s[fleet_of(sim).weight_source]
        if replica.is_up == 0 and replica.is_unnoticed == 0:
            for i in _PAGE_COLUMNS:
                row[i] = np.nan
            continue
        row[_WAITING_CAPACITY] = row[_WAITING]
        row[_WAITING_DEFERRED] = _num_inbound(sim, r)
        row[_MOVING] = replica.num_coming
        row[_BATCH] = min(1.0, row[_RUNNING] / replica.max_num_seqs)
        row[_ACTIVE_PAGES] = row[_KV_USAGE] * replica.total_pages
        _fill_window(facts[r], window[0], window[1][r], window[2][r], row)
        _fill_shares(facts[r], window[0], window[1][r], works[r], row)


@compiled
def _num_inbound(sim, r):
    """Return the moving requests that wait for room at a replica."""
    count, index = 0, np.int64(replicas_of(sim)[r].inbound_head)
    while index != NONE:
        count += 1
        index = np.int64(requests_of(sim)[index].next)
    return count


@compiled
def _fill_window(facts, span_s, added, means, row):
    """Fill rates and hits of the window; absent before the first."""
    if span_s <= 0.0:
        return
    row[_OUTPUT_RATE] = added[GENERATED_TOKENS] / span_s
    row[_PROMPT_RATE] = added[PREFILL_TOKENS] / span_s
    row[_PREEMPTIONS] = added[PREEMPTIONS] / span_s
    if added[PROMPT_TOKENS] > 0.0:
        row[_HIT] = added[HIT_TOKENS] / added[PROMPT_TOKENS]
        row[_HIT_TREND] = row[_HIT] - means[MEAN_HIT]
        row[_HOST_HIT] = min(1.0, added[HOST_HIT_TOKENS] / added[PROMPT_TOKENS])


@compiled
def _fill_shares(facts, span_s, added, work, row):
    """Fill what iterations were made of in the window."""
    if span_s <= 0.0:
        return
    computed = added[PREFILL_TOKENS] + added[GENERATED_TOKENS]
    row[_MESSAGES] = facts.expert_messages * computed / span_s
    row[_MESSAGE_BYTES] = row[_MESSAGES] * facts.expert_message_bytes
    read_bytes_per_s = work[READ_BYTES] / span_s
    row[_HBM_BANDWIDTH] = min(1.0, read_bytes_per_s / facts.hbm_bytes_per_s)
    if work[ITERATION_S] > 0.0:
        row[_ALL_REDUCE] = work[COMMUNICATION_S] / work[ITERATION_S]
        row[_BUBBLE] = work[BUBBLE_S] / work[ITERATION_S]


@compiled
def fill_fleet_memory(added, rows, fleet):
    """Fill the fleet's share of KV in use and of prompts found cached.

    Shapes: `added` [R, NUM_TOTALS]; `rows` [R, features]; `fleet` [1, features], written.
    """
    usage, count, hits, prompts = 0.0, 0, 0.0, 0.0
    for r in range(rows.shape[0]):
        hits += added[r, HIT_TOKENS]
        prompts += added[r, PROMPT_TOKENS]
        if np.isfinite(rows[r, _KV_USAGE]):
            usage += rows[r, _KV_USAGE]
            count += 1
    if count > 0:
        fleet[0, _FLEET_KV_USAGE] = usage / count
    if prompts > 0.0:
        fleet[0, _FLEET_HIT] = hits / prompts
