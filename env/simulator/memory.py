"""How compiled functions reach the arrays: one record of addresses, one accessor an array.

Passing the arrays themselves would copy some 150 words and count references at every call, which
costs more than the simulation; a record is one pointer. `handle` makes it; whoever calls a
compiled function keeps the arrays alive meanwhile.

Does not know: what the arrays mean (`layout.py`).
"""

from pathlib import Path

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ..budget import BUCKET_DTYPE
from ..compiled import compiled, source_tag
from ..dispatch import NUM_TERMS, VIEW_DTYPE
from ..knobs import KNOBS_DTYPE
from ..latency import LATENCY_DTYPE
from ..lookahead.decide import CHOICE_DTYPE
from ..lookahead.lengths import NUM_LENGTH_BINS
from ..lookahead.mirror import MIRROR_DTYPE, ROW_DTYPE
from ..lookahead.settings import LOOKAHEAD_DTYPE, MAX_CANDIDATES
from ..lookahead.situation import JOB_DTYPE, NUM_LISTS, RUN_DTYPE
from ..pointers import pointer
from ..restrictions import GROUP_DTYPE
from ..shortlist import CANDIDATE_DTYPE, MAX_HOLDERS, SHORTLIST_SIZE
from ..topology import LINK_DTYPE, PORT_DTYPE
from ..value.features import SUMS_DTYPE
from ..value.labels import LABEL_DTYPE
from ..value.network import NUM_SCRATCH
from .calls import CALLED, address_of
from .layout import (
    ADAPTER_DTYPE,
    CACHE_ENTRY_DTYPE,
    EVENT_DTYPE,
    FLEET_DTYPE,
    GATEWAY_DTYPE,
    HOST_DTYPE,
    LIFE_DTYPE,
    NUM_PRIORITIES,
    PAGE_DTYPE,
    PLACEMENT_DTYPE,
    REPLICA_DTYPE,
    REQUEST_DTYPE,
    SCRAPED_DTYPE,
    SEQUENCE_DTYPE,
    SHADOW_DTYPE,
    SLOWDOWN_DTYPE,
    TRANSFER_DTYPE,
    SimulationArrays,
)

_COMPILED_FILES = (
    *(
        "called.py",
        "compiled.py",
        "dispatch.py",
        "energy.py",
        "gateway_counts.py",
        "jump.py",
        "knobs.py",
        "latency.py",
        "shortlist.py",
    ),
    *("budget.py", "masks.py", "restrictions.py", "shed_reason.py", "shadow.py", "topology.py"),
    *(f"lookahead/{n}.py" for n in ("decide", "lengths", "mirror", "rollout", "situation")),
    "lookahead/settings.py",
    *(f"value/{n}.py" for n in ("features", "judging", "labels", "network")),
    "../traces/hashing.py",
)
_SIZES = (
    "num_requests",
    "num_block_references",
    "num_replicas",
    "num_slots",
    "page_tokens",
    "num_entries",
    "table_size",
    "num_blocks",
    "num_words",
    "num_slowdowns",
    "num_events",
    "num_kinds",
    "num_linear",
    "num_tree_nodes",
    "num_gateways",
    "num_models",
    "num_host_entries",
    "host_table_size",
    "num_adapter_slots",
    "num_growing_slots",
    "num_links",
    "num_zones",
    "num_transfer_rows",
    "num_life",
    "num_placements",
    "num_pages",
    "num_groups",
    "num_mirror_rows",
    "num_ahead_linear",
    "num_value_weights",
    "num_label_rows",
)


def _source_files() -> list[Path]:
    """Return the files of the compiled code."""
    room = Path(__file__).parent
    return [*sorted(room.glob("*.py")), *(room.parent / name for name in _COMPILED_FILES)]


HANDLE_DTYPE = np.dtype(
    [(f"{name}_at", np.int64) for name in SimulationArrays._fields]
    + [(name, np.int64) for name in _SIZES]
    + [(f"call_{name}", np.int64) for name in CALLED]
    + [(f"source_{source_tag(_source_files())}", np.int8)]
)


def handle(arrays: SimulationArrays) -> np.ndarray:
    """Return the addresses and sizes of the arrays, HANDLE_DTYPE [1]."""
    record = np.zeros(1, dtype=HANDLE_DTYPE)
    for name, array in arrays._asdict().items():
        if not array.flags.c_contiguous:
            msg = f"array '{name}' must be contiguous, got strides {array.strides}"
            raise ValueError(msg)
        record[f"{name}_at"] = array.ctypes.data
    sizes = (
        arrays.requests.size,
        arrays.blocks.size,
        arrays.replicas.size,
        arrays.sequences.shape[1],
        arrays.page_phases.shape[1],
        arrays.cache.shape[1],
        arrays.cache_table.shape[1],
        *arrays.holders.shape,
        arrays.slowdowns.shape[1],
        arrays.events.size,
        *arrays.linear_s.shape,
        arrays.event_tree.size,
        arrays.gateways.size,
        arrays.shortlists.shape[0] // (arrays.gateways.size * NUM_PRIORITIES),
        arrays.host_cache.shape[1],
        arrays.host_table.shape[1],
        arrays.adapters.shape[1],
        arrays.growing.shape[1],
        arrays.links.size,
        arrays.zone_links.shape[0],
        arrays.transfers.size,
        arrays.life.size,
        arrays.placements.size,
        arrays.pages.shape[2],
        arrays.bias.shape[0],
        arrays.mirror_rows.shape[1],
        arrays.ahead_linear_s.shape[1],
        arrays.value_weights.size,
        arrays.labels.size,
    )
    for name, size in zip(_SIZES, sizes, strict=True):
        record[name] = size
    for name in CALLED:
        # What nobody calls is not compiled.
        if name != "look_ahead" or arrays.lookahead["num_candidates"][0] > 0:
            record[f"call_{name}"] = address_of(name, HANDLE_DTYPE)
    return record


@compiled
def fleet_of(sim):
    """The fleet's own record."""
    return carray(pointer(sim.fleet_at), (1,), FLEET_DTYPE)[0]


@compiled
def requests_of(sim):
    """Request table [N]."""
    return carray(pointer(sim.requests_at), (sim.num_requests,), REQUEST_DTYPE)


@compiled
def blocks_of(sim):
    """Dense ids of the requests' prompt blocks."""
    return carray(pointer(sim.blocks_at), (sim.num_block_references,), np.int32)


@compiled
def pinned_entries_of(sim):
    """Cache entries that running requests have pinned, in the places of their blocks."""
    return carray(pointer(sim.pinned_entries_at), (sim.num_block_references,), np.int32)


@compiled
def replicas_of(sim):
    """Replica table [R]."""
    return carray(pointer(sim.replicas_at), (sim.num_replicas,), REPLICA_DTYPE)


@compiled
def event_tree_of(sim):
    """When replicas next change in a visible way, s, as a tree of minima (`due.py`)."""
    return carray(pointer(sim.event_tree_at), (sim.num_tree_nodes,), np.float64)


@compiled
def actual_of(sim):
    """True latency coefficients [R]."""
    return carray(pointer(sim.actual_at), (sim.num_replicas,), LATENCY_DTYPE)


@compiled
def throttled_of(sim):
    """Scratch: latency coefficients at the clock that a power cap leaves [R]."""
    return carray(pointer(sim.throttled_at), (sim.num_replicas,), LATENCY_DTYPE)


@compiled
def nominal_of(sim):
    """Latency coefficients that the scheduler believes [R]."""
    return carray(pointer(sim.nominal_at), (sim.num_replicas,), LATENCY_DTYPE)


@compiled
def linear_s_of(sim, kind):
    """Remembered layer times of a kind of replica, by tokens [T]."""
    shape = (sim.num_kinds, sim.num_linear)
    return carray(pointer(sim.linear_s_at), shape, np.float64)[kind]


@compiled
def gateways_of(sim):
    """Gateway table [G]."""
    return carray(pointer(sim.gateways_at), (sim.num_gateways,), GATEWAY_DTYPE)


@compiled
def decode_bases_of(sim, kind):
    """Remembered nominal decode iterations of a kind of replica, by sequences [S]."""
    shape = (sim.num_kinds, sim.num_slots)
    return carray(pointer(sim.decode_bases_s_at), shape, np.float64)[kind]


@compiled
def views_of(sim, g):
    """A gateway's view of each replica [R]."""
    shape = (sim.num_gateways, sim.num_replicas)
    return carray(pointer(sim.views_at), shape, VIEW_DTYPE)[g]


@compiled
def scraped_of(sim, g):
    """The counters of each replica as a gateway last read them [R]."""
    shape = (sim.num_gateways, sim.num_replicas)
    return carray(pointer(sim.scraped_at), shape, SCRAPED_DTYPE)[g]


@compiled
def shortlist_of(sim, g, model, priority):
    """A gateway's cheapest replicas of late for requests of a kind, and room for holders."""
    num_rows = sim.num_gateways * sim.num_models * NUM_PRIORITIES
    shape = (num_rows, SHORTLIST_SIZE + MAX_HOLDERS)
    row = (g * sim.num_models + model) * NUM_PRIORITIES + priority
    return carray(pointer(sim.shortlists_at), shape, CANDIDATE_DTYPE)[row]


@compiled
def sequences_of(sim, r):
    """Heap of a replica's decoding sequences [S]."""
    shape = (sim.num_replicas, sim.num_slots)
    return carray(pointer(sim.sequences_at), shape, SEQUENCE_DTYPE)[r]


@compiled
def page_phases_of(sim, r):
    """Decoding sequences of a replica by the iteration at which they need a page."""
    shape = (sim.num_replicas, sim.page_tokens)
    return carray(pointer(sim.page_phases_at), shape, np.int64)[r]


@compiled
def cache_of(sim, r):
    """Prefix-cache entries of a replica [C]."""
    shape = (sim.num_replicas, sim.num_entries)
    return carray(pointer(sim.cache_at), shape, CACHE_ENTRY_DTYPE)[r]


@compiled
def cache_table_of(sim, r):
    """Hash table from block to cache entry of a replica [H]."""
    shape = (sim.num_replicas, sim.table_size)
    return carray(pointer(sim.cache_table_at), shape, np.int32)[r]


@compiled
def holders_of(sim):
    """Bit masks of the replicas that hold each block [B, words]."""
    return carray(pointer(sim.holders_at), (sim.num_blocks, sim.num_words), np.uint64)


@compiled
def slowdowns_of(sim, r):
    """Changes of a replica's slow-down [K]."""
    shape = (sim.num_replicas, sim.num_slowdowns)
    return carray(pointer(sim.slowdowns_at), shape, SLOWDOWN_DTYPE)[r]


@compiled
def events_of(sim):
    """What happens to the fleet from outside, in order of time."""
    return carray(pointer(sim.events_at), (sim.num_events,), EVENT_DTYPE)


@compiled
def knobs_of(sim):
    """The knobs in force."""
    return carray(pointer(sim.knobs_at), (1,), KNOBS_DTYPE)[0]


@compiled
def bias_of(sim, group):
    """What is added to each replica's cost for a request of a group, infinite: masked [R]."""
    shape = (sim.num_groups, sim.num_replicas)
    return carray(pointer(sim.bias_at), shape, np.float64)[group]


@compiled
def groups_of(sim):
    """What holds for each group of requests [groups]."""
    return carray(pointer(sim.groups_at), (sim.num_groups,), GROUP_DTYPE)


@compiled
def buckets_of(sim):
    """What is left of each group's budget [groups]."""
    return carray(pointer(sim.buckets_at), (sim.num_groups,), BUCKET_DTYPE)


@compiled
def hits_of(sim):
    """Scratch: cached prompt tokens of the request in hand [R]."""
    return carray(pointer(sim.hits_at), (sim.num_replicas,), np.int64)


@compiled
def matched_of(sim):
    """Scratch: the replicas whose hits are not 0; the first `num_matched` count [R]."""
    return carray(pointer(sim.matched_at), (sim.num_replicas,), np.int64)


@compiled
def terms_of(sim):
    """Scratch: parts of a score [NUM_TERMS]."""
    return carray(pointer(sim.terms_at), (NUM_TERMS,), np.float64)


@compiled
def random_of(sim, stream):
    """State of one random stream [1]: 2 g dispatch, 2 g + 1 scrapes of gateway g."""
    shape = (2 * sim.num_gateways,)
    return carray(pointer(sim.random_at), shape, np.uint64)[stream : stream + 1]


@compiled
def hosts_of(sim):
    """Host memory of each replica [R]."""
    return carray(pointer(sim.hosts_at), (sim.num_replicas,), HOST_DTYPE)


@compiled
def host_cache_of(sim, r):
    """Prefix-cache entries in a replica's host memory [C']."""
    shape = (sim.num_replicas, sim.num_host_entries)
    return carray(pointer(sim.host_cache_at), shape, CACHE_ENTRY_DTYPE)[r]


@compiled
def host_table_of(sim, r):
    """Hash table from block to host cache entry of a replica [H']."""
    shape = (sim.num_replicas, sim.host_table_size)
    return carray(pointer(sim.host_table_at), shape, np.int32)[r]


@compiled
def adapters_of(sim, r):
    """Adapter slots of a replica [L]."""
    shape = (sim.num_replicas, sim.num_adapter_slots)
    return carray(pointer(sim.adapters_at), shape, ADAPTER_DTYPE)[r]


@compiled
def growing_of(sim, r):
    """Heap of a replica's decoding requests shorter than the attention window [S]."""
    shape = (sim.num_replicas, sim.num_growing_slots)
    return carray(pointer(sim.growing_at), shape, SEQUENCE_DTYPE)[r]


@compiled
def links_of(sim):
    """Links of the cluster [L]."""
    return carray(pointer(sim.links_at), (sim.num_links,), LINK_DTYPE)


@compiled
def ports_of(sim):
    """Where each replica is attached to the links [R]."""
    return carray(pointer(sim.ports_at), (sim.num_replicas,), PORT_DTYPE)


@compiled
def zone_links_of(sim):
    """The link from each zone to each other [Z, Z]."""
    return carray(pointer(sim.zone_links_at), (sim.num_zones, sim.num_zones), np.int64)


@compiled
def transfers_of(sim):
    """Transfers, the fleet's `num_transfers` first ones in progress [T]."""
    return carray(pointer(sim.transfers_at), (sim.num_transfer_rows,), TRANSFER_DTYPE)


@compiled
def life_of(sim):
    """Notes of the watched request [L]."""
    return carray(pointer(sim.life_at), (sim.num_life,), LIFE_DTYPE)


@compiled
def placements_of(sim):
    """What the gateway went by at each placement of the watched request [P]."""
    return carray(pointer(sim.placements_at), (sim.num_placements,), PLACEMENT_DTYPE)


@compiled
def seen_views_of(sim, placement):
    """The gateway's view at a placement of the watched request [R]."""
    shape = (sim.num_placements, sim.num_replicas)
    return carray(pointer(sim.seen_views_at), shape, VIEW_DTYPE)[placement]


@compiled
def seen_hits_of(sim, placement):
    """Cached prompt tokens at a placement of the watched request [R]."""
    shape = (sim.num_placements, sim.num_replicas)
    return carray(pointer(sim.seen_hits_at), shape, np.int64)[placement]


@compiled
def seen_choices_of(sim, placement):
    """What the lookahead found at a placement of the watched request [MAX_CANDIDATES]."""
    shape = (sim.num_placements, MAX_CANDIDATES)
    return carray(pointer(sim.seen_choices_at), shape, CHOICE_DTYPE)[placement]


@compiled
def late_pages_of(sim, g, r):
    """Metrics pages of a replica that are on their way to a gateway [P]."""
    shape = (sim.num_gateways, sim.num_replicas, sim.num_pages)
    return carray(pointer(sim.pages_at), shape, PAGE_DTYPE)[g, r]


@compiled
def group_costs_of(sim, group):
    """Penalties of each replica for a request of a group, infinite where masked [R]."""
    shape = (sim.num_groups, sim.num_replicas)
    return carray(pointer(sim.group_costs_at), shape, np.float64)[group]


@compiled
def penalties_of(sim):
    """Penalties of each replica from the shield [R]."""
    return carray(pointer(sim.penalties_at), (sim.num_replicas,), np.float64)


@compiled
def shadow_of(sim):
    """What the shadow's choices are compared for."""
    return carray(pointer(sim.shadow_at), (1,), SHADOW_DTYPE)[0]


@compiled
def shadow_knobs_of(sim):
    """The knobs of the shadow."""
    return carray(pointer(sim.shadow_knobs_at), (1,), KNOBS_DTYPE)[0]


@compiled
def judge_of(sim):
    """The knobs by which outcomes are foretold."""
    return carray(pointer(sim.judge_at), (1,), KNOBS_DTYPE)[0]


@compiled
def shadow_bias_of(sim):
    """Bias of each replica under the shadow's knobs [R]."""
    return carray(pointer(sim.shadow_bias_at), (sim.num_replicas,), np.float64)


@compiled
def shadow_costs_of(sim):
    """Scratch: what is added to each replica's cost for the shadow [R]."""
    return carray(pointer(sim.shadow_costs_at), (sim.num_replicas,), np.float64)


@compiled
def shadow_factors_of(sim):
    """Scratch: slow factors of the knobs that rule [R]."""
    return carray(pointer(sim.shadow_factors_at), (sim.num_replicas,), np.float64)


@compiled
def shadow_random_of(sim):
    """State of the shadow's random stream [1]."""
    return carray(pointer(sim.shadow_random_at), (1,), np.uint64)


@compiled
def lookahead_of(sim):
    """Settings of the lookahead, and what came of it last."""
    return carray(pointer(sim.lookahead_at), (1,), LOOKAHEAD_DTYPE)[0]


@compiled
def mirrors_of(sim, g):
    """What a gateway knows of each replica for the lookahead [R]."""
    shape = (sim.num_gateways, sim.num_replicas)
    return carray(pointer(sim.mirrors_at), shape, MIRROR_DTYPE)[g]


@compiled
def mirror_rows_of(sim, g, r):
    """Requests that a gateway has at a replica, and one row more to write on [Q]."""
    shape = (sim.num_gateways, sim.num_replicas, sim.num_mirror_rows)
    return carray(pointer(sim.mirror_rows_at), shape, ROW_DTYPE)[g, r]


@compiled
def length_counts_of(sim, g):
    """Answers that a gateway has seen whole, by priority and length [P, bins]."""
    shape = (sim.num_gateways, NUM_PRIORITIES, NUM_LENGTH_BINS)
    return carray(pointer(sim.length_counts_at), shape, np.float64)[g]


@compiled
def ahead_choices_of(sim):
    """Candidates of the last request that was looked at [MAX_CANDIDATES]."""
    return carray(pointer(sim.ahead_choices_at), (MAX_CANDIDATES,), CHOICE_DTYPE)


@compiled
def ahead_run_of(sim):
    """Scratch: the rollout in hand."""
    return carray(pointer(sim.ahead_run_at), (1,), RUN_DTYPE)[0]


@compiled
def ahead_jobs_of(sim):
    """Scratch: the requests of the rollout in hand [Q + 1]."""
    return carray(pointer(sim.ahead_jobs_at), (sim.num_mirror_rows + 1,), JOB_DTYPE)


@compiled
def ahead_lists_of(sim):
    """Scratch: lists of those requests."""
    shape = (NUM_LISTS, 2 * sim.num_mirror_rows + 4)
    return carray(pointer(sim.ahead_lists_at), shape, np.int64)


@compiled
def ahead_linear_s_of(sim, r):
    """Remembered nominal layer times of a replica, by tokens [T]."""
    shape = (sim.num_replicas, sim.num_ahead_linear)
    return carray(pointer(sim.ahead_linear_s_at), shape, np.float64)[r]


@compiled
def residuals_of(sim, g):
    """Mean tokens still to come, by priority and tokens so far [P, bins]."""
    shape = (sim.num_gateways, NUM_PRIORITIES, NUM_LENGTH_BINS)
    return carray(pointer(sim.residuals_at), shape, np.float64)[g]


@compiled
def value_weights_of(sim):
    """Weights of the value network."""
    return carray(pointer(sim.value_weights_at), (sim.num_value_weights,), np.float32)


@compiled
def value_sums_of(sim):
    """Scratch: sums over a mirror."""
    return carray(pointer(sim.value_sums_at), (1,), SUMS_DTYPE)[0]


@compiled
def value_scratch_of(sim):
    """Scratch: features and hidden units [NUM_SCRATCH]."""
    return carray(pointer(sim.value_scratch_at), (NUM_SCRATCH,), np.float32)


@compiled
def labels_of(sim):
    """What candidates were worth by rollouts, with their features [L]."""
    return carray(pointer(sim.labels_at), (sim.num_label_rows,), LABEL_DTYPE)
