"""The simulator's memory: every array of a fleet in motion, and nothing but arrays.

A running simulation is one `SimulationArrays`, a named tuple of NumPy record arrays that the
compiled functions pass along. Each has a rule in `snapshot.COPY_RULES` for how it is copied.

Does not know: what happens to the arrays (`replica.py`, `fleet_loop.py`).
"""

from typing import NamedTuple

import numpy as np

from ..dispatch import QUERY_DTYPE, VIEW_DTYPE
from ..knobs import KNOBS_DTYPE
from ..latency import LATENCY_DTYPE
from ..shortlist import CANDIDATE_DTYPE
from ..topology import LINK_DTYPE, MAX_PATH, PORT_DTYPE

# Status of a request. Arrived requests are in exactly one of the others; a moving one has its KV
# on the way from one replica to another, or waits for that; a frozen one stands still with its KV.
PENDING, WAITING, PREFILLING, DECODING, FINISHED, SHED, FAILED, MOVING, FROZEN = range(9)

# Which phase of a request a replica takes.
ROLE_BOTH, ROLE_PREFILL, ROLE_DECODE = range(3)

# Life of a replica: serving; crashed; without power or with its weights in host memory only; on
# the way up from either; serving what it has before it goes off or asleep.
READY, DOWN, STOPPED, ASLEEP, STARTING, WAKING, DRAINING = range(7)

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
        ("worth_frac", np.float64),  # share of it that is left: below 1 if its answer was cut
        ("first_block", np.int64),
        ("num_blocks", np.int32),
        ("extra_sequences", np.int32),  # beyond one: n, best_of or beam width, less 1
        ("adapter", np.int32),  # its number from 1, 0 for none
        ("tenant", np.int32),
        ("output_first_block", np.int64),  # what its answer adds to the chain of its next turn
        ("num_output_blocks", np.int32),
        # What happens to it.
        ("status", np.int32),
        ("replica", np.int64),  # as wide as what indexes replicas: else all compiles twice
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
        ("gateway", np.int32),  # who dispatched it
        ("host_pages", np.int32),  # of host memory that hold its KV while it is swapped out
        # Moves of its KV between replicas.
        ("source", np.int64),  # the replica that still holds it, while it is moving; else `NONE`
        ("kv_ready_s", np.float64),  # when it was at hand where the request went on last
        ("num_moves", np.int32),
        ("shed_reason", np.int32),  # a `ShedReason`, 0 if it was not refused
        ("paid_tokens", np.float64),  # taken from its group's budget
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
        ("idle_w", np.float64),  # 0 while it is off
        ("decode_w", np.float64),  # at the smallest batch
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
        ("num_touched_entries", np.int64),  # one past the last cache entry that was ever used
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
        # Counters of the metrics page.
        ("measured_s", np.float64),
        ("nominal_s", np.float64),
        # The jump in progress: iterations left of it, 0 for none.
        ("plan_iterations", np.int64),
        ("plan_chunk", np.int64),
        ("plan_first_s", np.float64),
        ("plan_slope_s", np.float64),
        # Requests of several sequences: the batch and its slots count sequences.
        ("num_sequences", np.int64),  # of the requests that decode
        ("num_prefill_sequences", np.int64),  # of the requests in prefill
        # Copies over PCIe.
        ("reserve_pages", np.int64),  # kept free at admission
        ("is_swapping", np.int64),  # preempted sequences go to host memory
        ("copy_s", np.float64),  # that the next iteration waits for
        ("max_adapters", np.int64),  # slots; 0: adapters cost nothing
        ("adapter_load_s", np.float64),
        # Layers with a sliding window: decoding sequences, each up to the window.
        ("windowed_tokens", np.int64),
        ("num_growing_sequences", np.int64),  # shorter than the window
        ("num_growing", np.int64),  # their requests
        # More totals since the start.
        ("copied_s", np.float64),
        ("num_swaps", np.int64),
        ("host_hit_tokens", np.int64),
        ("num_adapter_loads", np.int64),
        ("num_adapter_hits", np.int64),
        # Trouble (`trouble.py`).
        ("is_unnoticed", np.int64),  # down, and the gateway does not know
        ("lost_pages", np.int64),
        ("is_page_lost", np.int64),
        ("is_page_frozen", np.int64),
        ("queue_factor", np.float64),  # on the counts that the metrics page shows
        # Power (`power.py`).
        ("decode_range_w", np.float64),  # what a full batch draws more than the smallest
        ("power_cap_w", np.float64),  # infinity: none
        ("throttled_first_s", np.float64),  # what the cap adds to the planned iteration
        ("throttled_slope_s", np.float64),
        ("idle_j", np.float64),
        ("prefill_j", np.float64),  # of iterations that carry prefill
        # Bill (`tariff.py`): up to the last change of the tariff, and the tariff since.
        ("tariff", np.int64),
        ("billed_j", np.float64),
        ("cost_usd", np.float64),
        ("carbon_g", np.float64),
        ("usd_per_j", np.float64),
        ("g_per_j", np.float64),
        # Cluster: roles and moves.
        ("role", np.int64),
        ("kv_kind", np.int64),  # replicas of one kind can pass KV on to each other
        ("kv_token_bytes", np.float64),
        ("change_at_s", np.float64),  # when something from outside changes its iterations next
        ("inbound_head", np.int64),  # requests whose KV waits for room here
        ("inbound_tail", np.int64),
        ("landed_head", np.int64),  # requests whose KV is here, to join at the next iteration
        ("landed_tail", np.int64),
        ("num_coming", np.int64),  # sequences not in the batch yet for which pages are taken
        ("num_leaving", np.int64),  # requests out of the batch whose pages are still held
        ("num_ordered", np.int64),  # migrations away that begin at the next iteration
        # Cluster: life cycle and sharing.
        ("state", np.int64),
        ("drain_state", np.int64),  # what it goes to when it has drained
        ("is_loading", np.int64),  # next step of a start: 0 the weights, 1 ready
        ("timer_s", np.float64),  # end of the step of a start in progress
        ("weight_bytes", np.float64),
        ("engine_init_s", np.float64),
        ("powered_w", np.float64),  # idle power when it is not off
        ("outer_factor", np.float64),  # slow-down from hidden trouble
        ("warm_factor", np.float64),  # slow-down after a start
        ("warm_from_s", np.float64),
        ("num_warm_steps", np.int64),  # steps of the slow start taken
        ("is_time_sliced", np.int64),
        ("share_factor", np.float64),  # slow-down from replicas on the same GPUs
        ("next_share_factor", np.float64),  # the same from the next iteration on
        ("ticked_busy_s", np.float64),
        ("alone_decode_w", np.float64),
        ("alone_prefill_w", np.float64),
        # Most pages that running requests held at once.
        ("peak_pages", np.int64),
        # Still more totals: sums over prefilled tokens of the tokens up to each, over iterations
        # of the KV tokens read, and tokens that prefills ended with.
        ("num_prefill_iterations", np.int64),
        ("prefill_positions", np.int64),
        ("read_tokens", np.int64),
        ("first_tokens", np.int64),
        ("token_budget_frac", np.float64),  # share of the token budget that an emergency leaves
        # Batch requests that stand still (`freeze.py`).
        ("is_freezing", np.int64),  # 1 while some may, or have to be let go on
        ("freeze_tokens", np.float64),  # context beyond which they do, infinity: none
        ("freeze_from_s", np.float64),  # when that was set: it holds from the next iteration on
        ("num_frozen", np.int64),
        ("frozen_head", np.int64),
        ("frozen_tail", np.int64),
    ]
)

# Host memory of a replica: free, or held by swapped sequences, or by cached blocks.
HOST_DTYPE = np.dtype(
    [
        ("total_pages", np.int64),
        ("free_pages", np.int64),
        ("page_copy_s", np.float64),
        ("is_tier", np.int64),  # blocks evicted from the GPU are kept here
        # As in REPLICA_DTYPE, for the same lists.
        ("lru_head", np.int64),
        ("lru_tail", np.int64),
        ("free_entry", np.int64),
        ("num_cached_blocks", np.int64),
        ("num_evictable_blocks", np.int64),
    ]
)

ADAPTER_DTYPE = np.dtype(
    [
        ("adapter", np.int64),  # 0: the slot is empty
        ("num_running", np.int64),
        ("last_use", np.int64),
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
# DIE: a replica stops, unnoticed until its CRASH. NOTICE: the gateway sends it nothing new. STALL:
# no iteration for `value` s. KV_LOSS: `value` of its pages cannot be had. PAGE_LOST, PAGE_FROZEN:
# 1 begins, 0 ends. QUEUE_LIE: factor on reported counts. POWER_CAP: W of all its GPUs and hosts.
# PRICE (USD/J) and CARBON (g/J) target a zone's tariff. LINK: factor on a link's bandwidth.
(
    CRASH,
    RESTART,
    LINK,
    DIE,
    NOTICE,
    STALL,
    KV_LOSS,
    PAGE_LOST,
    PAGE_FROZEN,
    QUEUE_LIE,
    POWER_CAP,
    PRICE,
    CARBON,
) = range(13)

# What a metrics page fills in a view.
PAGE_DTYPE = np.dtype(
    [
        ("scraped_at_s", np.float64),
        ("running_requests", np.float64),
        ("waiting_requests", np.float64),
        ("kv_usage_frac", np.float64),
        ("cached_frac", np.float64),
        ("iteration_log_ratio", np.float64),
        ("prefill_frac", np.float64),
        ("prefill_stretch", np.float64),
        ("decode_base_s", np.float64),
    ]
)

# A transfer is KV that moves with its request, or an engine's weights. An ordered migration has
# its room at the target and waits for the end of an iteration; a dropped one gives it back.
KV_TRANSFER, WEIGHT_TRANSFER, ORDERED_MIGRATION, DROPPED_MIGRATION = range(4)
TRANSFER_DTYPE = np.dtype(
    [
        ("kind", np.int64),
        ("request", np.int64),
        ("source", np.int64),
        ("target", np.int64),
        ("pages", np.int64),  # taken at the target
        ("begins_at_s", np.float64),
        ("has_begun", np.int64),
        ("left_bytes", np.float64),  # at `updated_at_s`
        ("updated_at_s", np.float64),
        ("bytes_per_s", np.float64),
        ("ends_at_s", np.float64),
        ("num_links", np.int64),
        ("links", np.int64, (MAX_PATH,)),
        ("shares", np.float64, (MAX_PATH,)),
        # Scratch of the fair shares.
        ("is_fixed", np.int64),
        ("fair_bytes_per_s", np.float64),
    ]
)

# What happens to the watched request, in order of time (`life.py`). `moment` is a `Moment`,
# `replica` NONE where none is concerned, `value` what the moment says.
LIFE_DTYPE = np.dtype(
    [
        ("at_s", np.float64),
        ("moment", np.int64),
        ("replica", np.int64),
        ("value", np.float64),
    ]
)
# What else the gateway went by when it placed the watched request.
PLACEMENT_DTYPE = np.dtype(
    [
        ("at_s", np.float64),
        ("expected_output_tokens", np.float64),
        ("cursor", np.int64),
        ("random_state", np.uint64),
    ]
)

FLEET_DTYPE = np.dtype(
    [
        ("now_s", np.float64),
        ("next_arrival", np.int64),
        ("next_event", np.int64),
        ("next_scrape_s", np.float64),
        ("next_scraper", np.int64),  # the gateway whose turn it is then
        ("scrape_interval_s", np.float64),
        ("scrape_drop_frac", np.float64),
        ("page_tokens", np.int64),  # a power of two
        ("page_shift", np.int64),  # its logarithm
        ("block_pages", np.int64),
        ("is_single_step", np.int64),
        ("num_candidates", np.int64),  # walked through per request; 0: all replicas are scored
        ("num_matched", np.int64),  # replicas with hits for the request in hand
        ("page_lag", np.int64),  # scrapes by which metrics pages are late
        # Cluster. The loop stops at every change of a replica while something needs it
        # (`num_watched`): prefill replicas, requests on the move, replicas that drain.
        ("num_watched", np.int64),
        ("next_action_s", np.float64),  # of transfers and starts; may be too early, never too late
        ("num_transfers", np.int64),
        ("num_moving", np.int64),
        ("num_inbound", np.int64),  # moving requests that wait for room
        ("num_draining", np.int64),
        ("departed_head", np.int64),  # moving requests without a target
        ("departed_tail", np.int64),
        ("has_departed", np.int64),  # some of them have not been tried
        ("decode_cursor", np.int64),
        ("kv_overlap_frac", np.float64),
        ("node_start_s", np.float64),
        ("weight_source", np.int64),
        ("wake_init_s", np.float64),
        ("is_restart_cold", np.int64),
        ("slow_start_factor", np.float64),
        ("slow_start_span_s", np.float64),
        ("has_time_slices", np.int64),
        # The request whose life is noted, or NONE; how much of it is.
        ("watched_request", np.int64),
        ("num_notes", np.int64),
        ("num_placements", np.int64),
        ("ticked_at_s", np.float64),
        ("is_async_scheduling", np.int64),
        ("num_clients", np.int64),  # of a closed loop, 0 if open
        ("next_release", np.int64),  # first request that a closed loop holds back, N if open
        ("closed_loop_gap_s", np.float64),
        # Emergencies: from how many TTFT limits on requests are refused, infinity for none; most
        # output tokens of new batch requests; most tokens of what may go to the spill tier.
        ("shed_limits", np.float64),
        ("shrink_tokens", np.float64),
        ("spill_tokens", np.float64),
    ]
)

# What a gateway keeps beside its view of each replica.
GATEWAY_DTYPE = np.dtype(
    [
        ("next_scrape_s", np.float64),
        ("cursor", np.int64),
        ("expected_output_tokens", np.float64, (NUM_PRIORITIES,)),
        ("walk", np.int64),  # where the walk for candidates goes on
        ("num_scrapes", np.int64),
    ]
)

# Counters of a replica's metrics page as a gateway last read them, to difference with.
SCRAPED_DTYPE = np.dtype(
    [
        ("measured_s", np.float64),
        ("nominal_s", np.float64),
        ("prefill_s", np.float64),
        ("num_sequences", np.int64),
    ]
)

# What is compared with the choices that are carried out, and sums over what was (`shadow.py`).
SHADOW_DTYPE = np.dtype(
    [
        ("every", np.int64),  # requests from one comparison to the next; 0: it is off
        ("num_seen", np.int64),
        ("cursor", np.int64),
        ("num_sampled", np.int64),
        ("weight", np.float64),
        ("weight_2", np.float64),  # of squared weights
        ("difference", np.float64),  # weight times what is expected of the shadow, less the other
        ("difference_2", np.float64),  # the same with squared weights
        ("squared_2", np.float64),  # squared weight times squared difference
    ]
)


class SimulationArrays(NamedTuple):
    """All arrays of one simulation.

    N requests, R replicas, G gateways, M models, P priorities, S slots, C cache entries, B blocks.
    """

    fleet: np.ndarray  # FLEET_DTYPE [1]
    requests: np.ndarray  # REQUEST_DTYPE [N]
    blocks: np.ndarray  # int32 [sum of num_blocks], dense ids of prompt blocks
    pinned_entries: np.ndarray  # int32 like blocks: the cache entry that a request has pinned
    replicas: np.ndarray  # REPLICA_DTYPE [R]
    event_tree: np.ndarray  # float64 [2 x a power of two], when replicas next change (`due.py`)
    actual: np.ndarray  # LATENCY_DTYPE [R]
    nominal: np.ndarray  # LATENCY_DTYPE [R], what the scheduler believes
    decode_bases_s: np.ndarray  # float64 [kinds, S], remembered nominal decode iterations, NaN too
    linear_s: np.ndarray  # float64 [kinds, T], remembered layer times by tokens, NaN if not yet
    gateways: np.ndarray  # GATEWAY_DTYPE [G]
    views: np.ndarray  # VIEW_DTYPE [G * R], the first gateway's first
    scraped: np.ndarray  # SCRAPED_DTYPE [G * R]
    shortlists: np.ndarray  # CANDIDATE_DTYPE [G * M * P, SHORTLIST_SIZE + MAX_HOLDERS]
    sequences: np.ndarray  # SEQUENCE_DTYPE [R, S], a heap by end_iteration
    page_phases: np.ndarray  # int64 [R, page_tokens]
    cache: np.ndarray  # CACHE_ENTRY_DTYPE [R, C]
    cache_table: np.ndarray  # int32 [R, H], open addressing: entry + 1, 0 empty
    holders: np.ndarray  # uint64 [B, ceil(R / 64)], bit r set if replica r caches the block
    slowdowns: np.ndarray  # SLOWDOWN_DTYPE [R, K], sorted, padded with at_s = inf
    events: np.ndarray  # EVENT_DTYPE [K], sorted by time
    knobs: np.ndarray  # KNOBS_DTYPE [1]
    bias: np.ndarray  # float64 [groups, R], what is added to a cost: the sum of the next three
    group_costs: np.ndarray  # float64 [groups, R], penalties, infinite where masked
    knob_bias: np.ndarray  # float64 [R]
    penalties: np.ndarray  # float64 [R], from the shield
    hits: np.ndarray  # int64 [R], scratch: cached prompt tokens of the request in hand
    matched: np.ndarray  # int64 [R], scratch: the replicas whose hits are not 0
    terms: np.ndarray  # float64 [NUM_TERMS], scratch
    random: np.ndarray  # uint64 [2 * G], states of each gateway's dispatch and scrape stream
    hosts: np.ndarray  # HOST_DTYPE [R]
    host_cache: np.ndarray  # CACHE_ENTRY_DTYPE [R, C'], of host memory
    host_table: np.ndarray  # int32 [R, H'], as cache_table
    adapters: np.ndarray  # ADAPTER_DTYPE [R, L], slots
    growing: np.ndarray  # SEQUENCE_DTYPE [R, S], a heap by the iteration that fills the window
    links: np.ndarray  # LINK_DTYPE [L]
    ports: np.ndarray  # PORT_DTYPE [R], where each replica is attached
    zone_links: np.ndarray  # int64 [Z, Z], the link from each zone to each other
    transfers: np.ndarray  # TRANSFER_DTYPE [T], the first `num_transfers` in progress
    # Of the watched request; nothing is in them when nobody is watched.
    life: np.ndarray  # LIFE_DTYPE [L]
    placements: np.ndarray  # PLACEMENT_DTYPE [P]
    seen_views: np.ndarray  # VIEW_DTYPE [P, R], the gateway's view at each placement
    seen_hits: np.ndarray  # int64 [P, R], cached prompt tokens at each placement
    seen_choices: np.ndarray  # CHOICE_DTYPE [placements, MAX_CANDIDATES], those looked at there
    pages: np.ndarray  # PAGE_DTYPE [G, R, P], metrics pages on their way; P = 1 if none are late
    throttled: np.ndarray  # LATENCY_DTYPE [R], scratch: coefficients at a lowered clock
    # Choices on paper (`shadow.py`).
    shadow: np.ndarray  # SHADOW_DTYPE [1]
    shadow_knobs: np.ndarray  # KNOBS_DTYPE [1]
    judge: np.ndarray  # KNOBS_DTYPE [1], by which outcomes are foretold
    shadow_bias: np.ndarray  # float64 [R]
    shadow_costs: np.ndarray  # float64 [R], scratch: what is added to the shadow's costs
    shadow_factors: np.ndarray  # float64 [R], scratch: slow factors of the knobs that rule
    shadow_random: np.ndarray  # uint64 [1], state of its own stream
    groups: np.ndarray  # GROUP_DTYPE [groups], what holds for each group of requests
    buckets: np.ndarray  # BUCKET_DTYPE [groups], what is left of their budgets
    # Lookahead (`lookahead.py`); Q rows of a mirror.
    lookahead: np.ndarray  # LOOKAHEAD_DTYPE [1], its settings, and what came of it last
    mirrors: np.ndarray  # MIRROR_DTYPE [G * R], what each gateway knows of each replica
    mirror_rows: np.ndarray  # ROW_DTYPE [G * R, Q], and of the requests that it has there
    length_counts: np.ndarray  # float64 [G * P, NUM_LENGTH_BINS], lengths of whole answers
    ahead_choices: np.ndarray  # CHOICE_DTYPE [MAX_CANDIDATES], those of the last request
    ahead_run: np.ndarray  # RUN_DTYPE [1], scratch
    ahead_jobs: np.ndarray  # JOB_DTYPE [Q + 1], scratch
    ahead_lists: np.ndarray  # int64 [4, ...], scratch
    ahead_linear_s: np.ndarray  # float64 [R, T], remembered nominal layer times, NaN if not yet
    residuals: np.ndarray  # float64 [G * P, bins], mean tokens left, of the network
    value_weights: np.ndarray  # float32 [weights] of the network, [1] without
    value_sums: np.ndarray  # SUMS_DTYPE [1], scratch
    value_scratch: np.ndarray  # float32 [NUM_SCRATCH]
    labels: np.ndarray  # LABEL_DTYPE [L], what candidates were worth by rollouts


__all__ = [
    "ADAPTER_DTYPE",
    "ASLEEP",
    "CACHE_ENTRY_DTYPE",
    "CANDIDATE_DTYPE",
    "CARBON",
    "CRASH",
    "DECODING",
    "DIE",
    "DOWN",
    "DRAINING",
    "DROPPED_MIGRATION",
    "EVENT_DTYPE",
    "FAILED",
    "FINISHED",
    "FLEET_DTYPE",
    "FROZEN",
    "GATEWAY_DTYPE",
    "HOST_DTYPE",
    "KNOBS_DTYPE",
    "KV_LOSS",
    "KV_TRANSFER",
    "LATENCY_DTYPE",
    "LIFE_DTYPE",
    "LINK",
    "LINK_DTYPE",
    "MOVING",
    "NONE",
    "NOTICE",
    "NUM_PRIORITIES",
    "ORDERED_MIGRATION",
    "PAGE_DTYPE",
    "PAGE_FROZEN",
    "PAGE_LOST",
    "PENDING",
    "PLACEMENT_DTYPE",
    "PORT_DTYPE",
    "POWER_CAP",
    "PREFILLING",
    "PRICE",
    "QUEUE_LIE",
    "READY",
    "REPLICA_DTYPE",
    "REQUEST_DTYPE",
    "RESTART",
    "ROLE_BOTH",
    "ROLE_DECODE",
    "ROLE_PREFILL",
    "SCRAPED_DTYPE",
    "SEQUENCE_DTYPE",
    "SHADOW_DTYPE",
    "SHED",
    "SLOWDOWN_DTYPE",
    "STALL",
    "STARTING",
    "STOPPED",
    "TRANSFER_DTYPE",
    "VIEW_DTYPE",
    "WAITING",
    "WAKING",
    "WEIGHT_TRANSFER",
    "SimulationArrays",
]
