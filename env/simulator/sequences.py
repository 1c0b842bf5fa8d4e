"""Decoding requests of one replica: how one enters the decode batch and leaves it.

A request in the batch has its KV on the replica up to the token before its latest one; the
iteration that decodes the next token writes the KV of that one. A request of several sequences
(parallel sampling, beam search) moves as one: they share the prompt and end together.

Does not know: why a request comes or goes, or time.
Source: vLLM V0's sequence groups, which fork after the prompt and copy on write.
"""

import numpy as np

from ..compiled import compiled
from .adapters import clear_adapters, leave_adapter
from .host_tier import clear_host
from .kv_pages import release
from .layout import DECODING
from .memory import (
    actual_of,
    fleet_of,
    page_phases_of,
    replicas_of,
    requests_of,
    sequences_of,
)
from .queues import push_sequence, remove_sequence
from .windows import clear_windows, enter_window, leave_window


@compiled
def held_tokens(request):
    """Return the tokens in KV of each sequence of a request that has left prefill."""
    return request.query.input_tokens + request.generated_tokens - 1


@compiled
def let_go(sim, r, request, kv_tokens):
    """Give back what a running request holds: its pages and its adapter's slot."""
    release(sim, r, request, kv_tokens)
    leave_adapter(sim, r, request.adapter)


@compiled
def start_decoding(sim, r, index, kv_tokens):
    """Put a request whose KV pages are taken into the decode batch; it has tokens to generate."""
    replica, request, fleet = replicas_of(sim)[r], requests_of(sim)[index], fleet_of(sim)
    sequences = 1 + request.extra_sequences
    request.status = DECODING
    request.prefill_target_tokens = kv_tokens
    request.joined_iteration = replica.decode_iteration
    end_iteration = replica.decode_iteration + request.output_tokens - request.generated_tokens
    push_sequence(sequences_of(sim, r), replica.num_decoding, end_iteration, index)
    replica.num_decoding += 1
    replica.num_sequences += sequences
    replica.context_tokens += sequences * kv_tokens
    start = replica.decode_iteration + 1 - kv_tokens
    request.page_phase = start & (fleet.page_tokens - 1)
    page_phases_of(sim, r)[request.page_phase] += sequences
    if actual_of(sim)[r].window_tokens > 0.0:
        enter_window(sim, r, index, kv_tokens)


@compiled
def detach(sim, r, position):
    """Take the request at a place of the heap out of the batch; return it. It keeps its pages.

    Its KV has `prefill_target_tokens` from then on, and its `generated_tokens` are up to date.
    """
    replica = replicas_of(sim)[r]
    index = remove_sequence(sequences_of(sim, r), replica.num_decoding, position)
    request = requests_of(sim)[index]
    sequences = 1 + request.extra_sequences
    taken = replica.decode_iteration - request.joined_iteration
    kv_tokens = request.prefill_target_tokens + taken
    request.prefill_target_tokens = kv_tokens
    request.generated_tokens += taken
    replica.num_decoding -= 1
    replica.num_sequences -= sequences
    replica.context_tokens -= sequences * kv_tokens
    page_phases_of(sim, r)[request.page_phase] -= sequences
    if actual_of(sim)[r].window_tokens > 0.0:
        leave_window(sim, r, index, kv_tokens)
    return index


@compiled
def leave_decode(sim, r, position):
    """Take the request at a place of the heap out of the batch, free its pages; return it."""
    index = detach(sim, r, position)
    request = requests_of(sim)[index]
    let_go(sim, r, request, np.int64(request.prefill_target_tokens))
    return index


@compiled
def forget_sequences(sim, r):
    """Forget what a crashed engine held for its requests beyond its queues and page counts."""
    replica = replicas_of(sim)[r]
    replica.num_sequences = 0
    replica.copy_s = 0.0
    clear_windows(sim, r)
    clear_adapters(sim, r)
    clear_host(sim, r)


__all__ = [
    "detach",
    "forget_sequences",
    "held_tokens",
    "leave_decode",
    "let_go",
    "start_decoding",
]
