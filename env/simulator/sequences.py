"""Decoding sequences of one replica: how a request enters the decode batch and leaves it.

A request in the batch has its KV on the replica up to the token before its latest one; the
iteration that decodes the next token writes the KV of that one.

Does not know: why a request comes or goes, or time.
"""

from ..compiled import compiled
from .kv_pages import cache_prompt, pages_of, release, take_pages
from .layout import DECODING
from .memory import fleet_of, page_phases_of, replicas_of, requests_of, sequences_of
from .queues import push_sequence, remove_sequence


@compiled
def start_decoding(sim, r, index, kv_tokens):
    """Put a request whose KV pages are taken into the decode batch; it has tokens to generate."""
    replica, request, fleet = replicas_of(sim)[r], requests_of(sim)[index], fleet_of(sim)
    request.status = DECODING
    request.prefill_target_tokens = kv_tokens
    request.joined_iteration = replica.decode_iteration
    end_iteration = replica.decode_iteration + request.output_tokens - request.generated_tokens
    push_sequence(sequences_of(sim, r), replica.num_decoding, end_iteration, index)
    replica.num_decoding += 1
    replica.context_tokens += kv_tokens
    start = replica.decode_iteration + 1 - kv_tokens
    request.page_phase = start & (fleet.page_tokens - 1)
    page_phases_of(sim, r)[request.page_phase] += 1


@compiled
def leave_decode(sim, r, position):
    """Take the request at a place of the heap out of the batch, free its pages; return it."""
    replica = replicas_of(sim)[r]
    index = remove_sequence(sequences_of(sim, r), replica.num_decoding, position)
    request = requests_of(sim)[index]
    replica.num_decoding -= 1
    taken = replica.decode_iteration - request.joined_iteration
    kv_tokens = request.prefill_target_tokens + taken
    request.generated_tokens += taken
    replica.context_tokens -= kv_tokens
    page_phases_of(sim, r)[request.page_phase] -= 1
    release(sim, r, request, kv_tokens)
    return index


@compiled
def remove_running(sim, r, index):
    """Take a decoding request out of the batch, free its pages, and return its KV tokens.

    Its `generated_tokens` are brought up to date; its status is the caller's to set.
    """
    position = 0
    while sequences_of(sim, r)[position].request != index:
        position += 1
    leave_decode(sim, r, position)
    request = requests_of(sim)[index]
    return request.query.input_tokens + request.generated_tokens - 1


@compiled
def insert_decoding(sim, r, index, kv_tokens):
    """Take pages for a request whose KV came from elsewhere and let it decode on replica `r`.

    The caller has seen to it that the pages are available and has set `request.replica`.
    """
    request = requests_of(sim)[index]
    take_pages(sim, r, pages_of(kv_tokens, fleet_of(sim)))
    cache_prompt(sim, r, request)
    start_decoding(sim, r, index, kv_tokens)


__all__ = ["insert_decoding", "leave_decode", "remove_running", "start_decoding"]
