"""KV pages of each replica at this moment: page tables of its running requests, and what is free.

A prompt in prefill counts in full: its pages are taken at once. The definitions of the indices
stand in `..state.memory_features`.

Does not know: what a metrics page said last (`observed.py`).
"""

import numpy as np

from ...compiled import compiled
from ...state.feature import Node
from ...state.registry import column
from ..kv_pages import pages_of
from ..layout import NONE
from ..memory import fleet_of, replicas_of, requests_of, sequences_of

_PAGES_MEAN = column(Node.REPLICA, "pages_per_sequence")
_PAGES_CV = column(Node.REPLICA, "pages_per_sequence_cv")
_LARGEST = column(Node.REPLICA, "largest_sequence_frac")
_ENTRIES = column(Node.REPLICA, "page_table_entries")
_SHARED = column(Node.REPLICA, "shared_page_frac")
_FRAGMENTATION = column(Node.REPLICA, "kv_fragmentation_frac")
_CONTIGUITY = column(Node.REPLICA, "kv_contiguity_frac")

# Sums over the running sequences of a replica.
_SEQUENCES, _SUM, _SQUARES, _MOST, _SHARED_SUM, _EMPTY_SLOTS, _NUM_SUMS = range(7)


@compiled
def _add(sums, request, kv_tokens, fleet):
    """Add the page tables of a request's sequences; each holds so many tokens."""
    pages = pages_of(kv_tokens, fleet)
    sequences = 1 + request.extra_sequences
    sums[_SEQUENCES] += sequences
    sums[_SUM] += sequences * pages
    sums[_SQUARES] += sequences * pages * pages
    sums[_MOST] = max(sums[_MOST], pages)
    sums[_SHARED_SUM] += sequences * request.pinned_blocks * fleet.block_pages
    sums[_EMPTY_SLOTS] += sequences * (pages * fleet.page_tokens - kv_tokens)


@compiled
def _sum_sequences(sim, r, sums):
    replica, requests, fleet = replicas_of(sim)[r], requests_of(sim), fleet_of(sim)
    heap = sequences_of(sim, r)
    sums[:] = 0.0
    for position in range(replica.num_decoding):
        request = requests[heap[position].request]
        taken = replica.decode_iteration - request.joined_iteration
        _add(sums, request, np.int64(request.prefill_target_tokens) + taken, fleet)
    index = np.int64(replica.prefill_head)
    while index != NONE:
        request = requests[index]
        tokens = np.int64(request.query.input_tokens) + request.generated_tokens
        _add(sums, request, tokens, fleet)
        index = np.int64(request.next)


@compiled
def fill_pages(handle, rows):
    """Fill the features of KV pages; a replica without an engine has none.

    Shapes: `rows` [R, features], written where known.
    """
    sim = handle[0]
    fleet, sums = fleet_of(sim), np.zeros(_NUM_SUMS)
    for r in range(replicas_of(sim).size):
        replica, row = replicas_of(sim)[r], rows[r]
        if replica.is_up == 0 and replica.is_unnoticed == 0:
            continue
        evictable_pages = replica.num_evictable_blocks * fleet.block_pages
        to_be_had = replica.free_pages + evictable_pages
        if to_be_had > 0:
            row[_CONTIGUITY] = replica.free_pages / to_be_had
        _sum_sequences(sim, r, sums)
        row[_ENTRIES] = sums[_SUM]
        row[_LARGEST] = sums[_MOST] / replica.total_pages
        if sums[_SUM] > 0.0:
            mean = sums[_SUM] / sums[_SEQUENCES]
            variance = max(0.0, sums[_SQUARES] / sums[_SEQUENCES] - mean * mean)
            row[_PAGES_MEAN] = mean
            row[_PAGES_CV] = np.sqrt(variance) / mean
            row[_SHARED] = min(1.0, sums[_SHARED_SUM] / sums[_SUM])
            # A page that several share is full: each empty slot is in a page of its own.
            held_slots = (replica.total_pages - to_be_had) * fleet.page_tokens
            row[_FRAGMENTATION] = sums[_EMPTY_SLOTS] / held_slots
