"""The simulator's memory: every array of a fleet in motion, and nothing but arrays.

A running simulation is one `SimulationArrays`, a named tuple of NumPy record arrays that the
compiled functions pass along. Copying its arrays is a snapshot.

Does not know: what happens to the arrays (`replica.py`, `fleet_loop.py`).
"""

from typing import NamedTuple

import numpy as np

from ..dispatch import QUERY_DTYPE, VIEW_DTYPE
from ..knobs import KNOBS_DTYPE
from ..latency import LATENCY_DTYPE

# Status of a request. Arrived requests are in exactly one of the others.
PENDING, WAITING, PREFILLING, DECODING, FINISHED, SHED, FAILED = range(7)

# End of a linked list and "nobody": an index that no record has. Internal to the arrays.
NONE = -1

NUM_PRIORITIES = 2

REQUEST_DTYPE = np.dtype(
    [
        # What arrives.
        ("query", QUERY_DTYPE),
        ("arrival_s", np.float64),
        ("output_tokens", np.int32),  # the truth, hidden from the scheduler
        ("weight", np.float64),
        ("first_block", np.int64),
        ("num_blocks", np.int32),
        # What happens to it.
        ("status", np.int32),
        ("replica", np.int32),
        ("next", np.int32),
        ("ready_s", np.float64),
        ("hit_tokens", np.int32),
        ("believed_uncached_tokens", np.int32),
        ("pinned_blocks", np.int32),
        ("prefill_done_tokens", np.int32),
        ("prefill_target_tokens", np.int32),
        ("generated_tokens", np.int32),
        ("joined_iteration", np.int64),
        ("page_phase", np.int32),
        ("admission", np.int64),
        ("predicted_ttft_s", np.float64),
        ("first_token_s", np.float64),
        ("finish_s", np.float64),
        ("num_dispatches", np.int32),
        ("num_preemptions", np.int32),
    ]
)

REPLICA_DTYPE = np.dtype(
    [
        ("clock_s", np.float64),
        ("is_up", np.int64),
        ("slow_factor", np.float64),
        ("next_slow_index", np.int64),
        # Static limits.
        ("max_num_seqs", np.int64),
        ("max_batch_tokens", np.int64),
        ("total_pages", np.int64),
        ("idle_w", np.float64),
        ("decode_w", np.float64),
        ("prefill_w", np.float64),
        ("restart_s", np.float64),
        # Queues: one waiting list per priority, one list of prefilling requests.
        ("waiting_head", np.int64, (NUM_PRIORITIES,)),
        ("waiting_tail", np.int64, (NUM_PRIORITIES,)),
        ("num_waiting", np.int64),
        ("prefill_head", np.int64),
        ("prefill_tail", np.int64),
        ("num_prefilling", np.int64),
        ("prefill_left_tokens", np.int64),  # of the requests in prefill, together
        ("num_decoding", np.int64),
        ("decode_iteration", np.int64),
        ("context_tokens", np.int64),
        ("num_admissions", np.int64),
        ("seen_s", np.float64),  # start of the last iteration: what async scheduling knew then
        ("has_preempted", np.int64),  # before the next iteration: no admission until it is over
        # KV pages: free, or held by running requests, or by cached blocks.
        ("free_pages", np.int64),
        # Prefix cache.
        ("lru_head", np.int64),
        ("lru_tail", np.int64),
        ("free_entry", np.int64),
        ("num_cached_blocks", np.int64),
        ("num_evictable_blocks", np.int64),
        # Totals since the start.
        ("energy_j", np.float64),
        ("busy_s", np.float64),
        ("prefill_s", np.float64),
        ("num_iterations", np.int64),
        ("num_steps", np.int64),
        ("prefill_tokens", np.int64),
        ("generated_tokens", np.int64),
        ("hit_tokens", np.int64),
        ("prompt_tokens", np.int64),
        ("num_preemptions", np.int64),
        ("num_crashes", np.int64),
        ("kind", np.int64),  # row of `linear_s`: replicas of equal coefficients share one
        # Since the last scrape.
        ("measured_s", np.float64),
        ("nominal_s", np.float64),
        ("scraped_prefill_s", np.float64),
    ]
)

SEQUENCE_DTYPE = np.dtype([("end_iteration", np.int64), ("request", np.int64)])

CACHE_ENTRY_DTYPE = np.dtype(
    [
        ("block", np.int32),
        ("references", np.int32),
        ("previous", np.int32),
        ("next", np.int32),
    ]
)

SLOWDOWN_DTYPE = np.dtype([("at_s", np.float64), ("factor", np.float64)])
# What happens to the fleet from outside, in order of time. `target` is a replica, or a link for
# LINK; `value` is what the kind says.
EVENT_DTYPE = np.dtype(
    [
        ("at_s", np.float64),
        ("kind", np.int64),
        ("target", np.int64),
        ("value", np.float64),
    ]
)
CRASH, RESTART = range(2)

FLEET_DTYPE = np.dtype(
    [
        ("now_s", np.float64),
        ("next_arrival", np.int64),
        ("next_event", np.int64),
        ("next_scrape_s", np.float64),
        ("scrape_interval_s", np.float64),
        ("scrape_drop_frac", np.float64),
        ("expected_output_tokens", np.float64, (NUM_PRIORITIES,)),
        ("cursor", np.int64),
        ("page_tokens", np.int64),  # a power of two
        ("page_shift", np.int64),  # its logarithm
        ("block_pages", np.int64),
        ("is_single_step", np.int64),
        ("is_async_scheduling", np.int64),
        ("next_release", np.int64),  # first request that a closed loop holds back, N if open
        ("closed_loop_gap_s", np.float64),
    ]
)


class SimulationArrays(NamedTuple):
    """All arrays of one simulation: N requests, R replicas, S slots, C cache entries, B blocks."""

    fleet: np.ndarray  # FLEET_DTYPE [1]
    requests: np.ndarray  # REQUEST_DTYPE [N]
    blocks: np.ndarray  # int32 [sum of num_blocks], dense ids of prompt blocks
    pinned_entries: np.ndarray  # int32 like blocks: the cache entry that a request has pinned
    replicas: np.ndarray  # REPLICA_DTYPE [R]
    next_event_s: np.ndarray  # float64 [R], when the replica next changes in a visible way
    actual: np.ndarray  # LATENCY_DTYPE [R]
    nominal: np.ndarray  # LATENCY_DTYPE [R], what the scheduler believes
    linear_s: np.ndarray  # float64 [kinds, T], remembered layer times by tokens, NaN if not yet
    views: np.ndarray  # VIEW_DTYPE [R]
    sequences: np.ndarray  # SEQUENCE_DTYPE [R, S], a heap by end_iteration
    page_phases: np.ndarray  # int64 [R, page_tokens]
    cache: np.ndarray  # CACHE_ENTRY_DTYPE [R, C]
    cache_table: np.ndarray  # int32 [R, H], open addressing: entry + 1, 0 empty
    holders: np.ndarray  # uint64 [B, ceil(R / 64)], bit r set if replica r caches the block
    slowdowns: np.ndarray  # SLOWDOWN_DTYPE [R, K], sorted, padded with at_s = inf
    events: np.ndarray  # EVENT_DTYPE [K], sorted by time
    knobs: np.ndarray  # KNOBS_DTYPE [1]
    bias: np.ndarray  # float64 [R]
    hits: np.ndarray  # int64 [R], scratch: cached prompt tokens of the request in hand
    terms: np.ndarray  # float64 [NUM_TERMS], scratch
    random: np.ndarray  # uint64 [2], states of the dispatch and the scrape stream


def copy_arrays(arrays: SimulationArrays) -> SimulationArrays:
    """Return an independent copy; the static arrays (blocks, coefficients, faults) are shared."""
    static = {"blocks", "actual", "nominal", "slowdowns", "events"}
    return SimulationArrays(
        **{
            name: array if name in static else array.copy()
            for name, array in arrays._asdict().items()
        }
    )


__all__ = [
    "CACHE_ENTRY_DTYPE",
    "CRASH",
    "DECODING",
    "EVENT_DTYPE",
    "FAILED",
    "FINISHED",
    "FLEET_DTYPE",
    "KNOBS_DTYPE",
    "LATENCY_DTYPE",
    "NONE",
    "NUM_PRIORITIES",
    "PENDING",
    "PREFILLING",
    "REPLICA_DTYPE",
    "REQUEST_DTYPE",
    "RESTART",
    "SEQUENCE_DTYPE",
    "SHED",
    "SLOWDOWN_DTYPE",
    "VIEW_DTYPE",
    "WAITING",
    "SimulationArrays",
    "copy_arrays",
]
