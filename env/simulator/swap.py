"""Preemption by swap: a sequence's KV goes to host memory and comes back before it decodes again.

A swapped request waits at the head of its priority's list, keeps its tokens, and is admitted
like others, without prefill. What the prefix cache still holds of it is not copied back.
Both copies are waited for by the iteration at whose start they happen.

Does not know: who is preempted or admitted.
Source: vLLM V0 `core/scheduler.py` (`_preempt_by_swap`, `_swap_in`); V1 only recomputes.
"""

from ..compiled import compiled
from .host_tier import take_host_pages
from .kv_pages import cache_prompt, request_pages
from .life import Moment, note
from .memory import fleet_of, hosts_of, replicas_of, requests_of
from .sequences import held_tokens, start_decoding


@compiled
def swap_out(sim, r, index):
    """Copy the KV of a request that has left the batch to host memory, if there is room."""
    replica, request = replicas_of(sim)[r], requests_of(sim)[index]
    pages = request_pages(request, held_tokens(request), fleet_of(sim))
    if take_host_pages(sim, r, pages):
        request.host_pages = pages
        replica.copy_s += pages * hosts_of(sim)[r].page_copy_s
        replica.num_swaps += 1
        note(sim, index, Moment.SWAPPED_OUT, replica.clock_s, r, pages)


@compiled
def swap_in(sim, r, index, pages):
    """Copy a request's KV back into pages that it has taken, and let it decode."""
    request, host = requests_of(sim)[index], hosts_of(sim)[r]
    replicas_of(sim)[r].copy_s += pages * host.page_copy_s
    host.free_pages += request.host_pages
    request.host_pages = 0
    note(sim, index, Moment.SWAPPED_IN, replicas_of(sim)[r].clock_s, r, pages)
    cache_prompt(sim, r, request)
    start_decoding(sim, r, index, held_tokens(request))
