"""LoRA adapter slots of one replica: which adapters are on the GPU, and who uses them.

A running request holds its adapter's slot. An adapter that is not there takes an empty slot or
that of the idle adapter used longest ago, and its load is waited for by the next iteration; if
running requests use all slots, it cannot come.

Does not know: requests' queues, KV pages or what an adapter computes.
Source: vLLM `v1/core/sched/scheduler.py` (at most `max_loras` adapters in a batch; a request whose
adapter would exceed it is passed over) and its LRU cache of adapters.
"""

from ..compiled import compiled
from .layout import NONE
from .memory import adapters_of, replicas_of


@compiled
def _find_slot(sim, r, adapter):
    """Return the adapter's slot, else the one that it could take, else `NONE`."""
    slots, best = adapters_of(sim, r), NONE
    for slot in range(replicas_of(sim)[r].max_adapters):
        if slots[slot].adapter == adapter:
            return slot
        is_idle = slots[slot].num_running == 0
        if is_idle and (best == NONE or slots[slot].last_use < slots[best].last_use):
            best = slot
    return best


@compiled
def can_use_adapter(sim, r, adapter):
    """Whether a request with this adapter finds it loaded or a slot to load it into."""
    if adapter == 0 or replicas_of(sim)[r].max_adapters == 0:
        return True
    return _find_slot(sim, r, adapter) != NONE


@compiled
def use_adapter(sim, r, adapter):
    """Hold an adapter for a request that starts to run, loading it where needed."""
    replica = replicas_of(sim)[r]
    if adapter == 0 or replica.max_adapters == 0:
        return
    slot = adapters_of(sim, r)[_find_slot(sim, r, adapter)]
    if slot.adapter == adapter:
        replica.num_adapter_hits += 1
    else:
        slot.adapter = adapter
        replica.num_adapter_loads += 1
        replica.copy_s += replica.adapter_load_s
    slot.num_running += 1
    slot.last_use = replica.num_admissions


@compiled
def leave_adapter(sim, r, adapter):
    """Let go of the adapter of a request that stops running; it stays loaded."""
    if adapter == 0 or replicas_of(sim)[r].max_adapters == 0:
        return
    slot = adapters_of(sim, r)[_find_slot(sim, r, adapter)]
    slot.num_running -= 1
    slot.last_use = replicas_of(sim)[r].num_admissions


@compiled
def clear_adapters(sim, r):
    """Unload everything, as a crashed engine does."""
    slots = adapters_of(sim, r)
    for slot in range(slots.size):
        slots[slot].adapter = 0
        slots[slot].num_running = 0
        slots[slot].last_use = 0
