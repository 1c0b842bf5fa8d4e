"""The dispatcher's memory: what a live gateway knows of its replicas, as arrays and one handle.

Does not know: what is done with them (`live_kernel.py`).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...env.budget import BUCKET_DTYPE, full_buckets
from ...env.cluster import ClusterSpec, Role, kv_pages
from ...env.compiled import source_tag
from ...env.dispatch import NUM_TERMS, QUERY_DTYPE, VIEW_DTYPE, full_chunk_token_s
from ...env.knobs import Knobs
from ...env.lookahead.decide import CHOICE_DTYPE
from ...env.lookahead.mirror_arrays import empty_mirrors, mirror_arrays
from ...env.lookahead.settings import (
    NETWORK_CANDIDATES,
    Judge,
    LookaheadSettings,
    no_lookahead,
)
from ...env.restrictions import GROUP_DTYPE, Restrictions, unrestricted
from ...env.shadow import JUDGE_KNOBS
from ...env.shortlist import CANDIDATE_DTYPE, MAX_HOLDERS, SHORTLIST_SIZE
from ...env.simulator.setup import INITIAL_OUTPUT_TOKENS, replica_coefficients
from ...env.simulator.shadow import shadow_arrays
from ...env.value.features import SUMS_DTYPE
from ...env.value.network import NUM_SCRATCH, closed_form

NUM_CLASSES = 2
"""Priorities: interactive and batch."""
NUM_CHOICE_ROWS = 2
"""Choices by worth whose candidates are remembered: the last that ruled, and the last on paper."""

CURSOR_DTYPE = np.dtype(
    [
        ("cursor", np.int64),  # round robin goes on here
        ("walk", np.int64),  # the walk for candidates goes on here
        ("num_candidates", np.int64),  # steps of that walk; 0 scores all replicas
        ("shed_limits", np.float64),  # most TTFT limits a predicted TTFT may be
        ("spill_tokens", np.float64),  # requests of at most so many tokens may spill
        ("most_output_tokens", np.float64),  # of a batch request, while an emergency cuts them
        ("keep_every", np.int64),  # every n-th decision is kept in full; 0: none
        ("next_slot", np.int64),  # of the ring of decisions
    ]
)

# The request in hand, beside its query.
REQUEST_DTYPE = np.dtype(
    [
        ("number", np.int64),  # of the decision, from 1
        ("weight", np.float64),
        ("arrived_at_s", np.float64),
        ("priority", np.int64),  # of one that ends
        ("whole_tokens", np.int64),  # of its answer; 0 if that is not whole
    ]
)

SHADOW_SUM_DTYPE = np.dtype(
    [
        ("every", np.int64),
        ("num_seen", np.int64),
        ("cursor", np.int64),
        *((name, np.float64) for name in ("num_sampled", "weight", "weight_2", "difference")),
        *((name, np.float64) for name in ("difference_2", "squared_2")),
    ]
)

DECISION_DTYPE = np.dtype(
    [
        ("number", np.int64),
        ("at_s", np.float64),
        ("query", QUERY_DTYPE),
        ("choice", np.int64),  # the best candidate, chosen or not
        ("status", np.int64),  # a `PLACED`, or the reason of a refusal
        ("hit_tokens", np.int64),
    ]
)


class LiveArrays(NamedTuple):
    """All arrays. R replicas, G groups, M models, D decisions in the ring.

    Those of mirrors and of worth are empty where no request can be placed by worth: C candidates,
    Q rows of a mirror, P classes.
    """

    cursors: np.ndarray  # CURSOR_DTYPE [1]
    query: np.ndarray  # QUERY_DTYPE [1], of the request in hand
    request: np.ndarray  # REQUEST_DTYPE [1], the same
    views: np.ndarray  # VIEW_DTYPE [R]
    nominal: np.ndarray  # LATENCY_DTYPE [R]
    knobs: np.ndarray  # KNOBS_DTYPE [1]
    bias: np.ndarray  # float64 [G, R]: the sum of the next three
    group_costs: np.ndarray  # float64 [G, R], infinite where masked
    knob_bias: np.ndarray  # float64 [R]
    penalties: np.ndarray  # float64 [R]
    groups: np.ndarray  # GROUP_DTYPE [G]
    buckets: np.ndarray  # BUCKET_DTYPE [G]
    hits: np.ndarray  # int64 [R]
    matched: np.ndarray  # int64 [R]
    terms: np.ndarray  # float64 [NUM_TERMS]
    random: np.ndarray  # uint64 [1]
    shortlists: np.ndarray  # CANDIDATE_DTYPE [M * 2, SHORTLIST_SIZE + MAX_HOLDERS]
    shadow: np.ndarray  # SHADOW_SUM_DTYPE [1]
    shadow_knobs: np.ndarray  # KNOBS_DTYPE [1]
    judge: np.ndarray  # KNOBS_DTYPE [1]
    shadow_bias: np.ndarray  # float64 [R]
    shadow_costs: np.ndarray  # float64 [R]
    shadow_factors: np.ndarray  # float64 [R]
    shadow_random: np.ndarray  # uint64 [1]
    decisions: np.ndarray  # DECISION_DTYPE [D]
    kept_views: np.ndarray  # VIEW_DTYPE [D, R]
    kept_hits: np.ndarray  # int64 [D, R]
    kept_bias: np.ndarray  # float64 [D, R]
    kept_terms: np.ndarray  # float64 [D, R, NUM_TERMS]
    kept_choices: np.ndarray  # CHOICE_DTYPE [D, C], replica NOBODY where there is none
    token_at_s: np.ndarray  # float64 [R], when something last came from each
    lookahead: np.ndarray  # LOOKAHEAD_DTYPE [1]
    mirrors: np.ndarray  # MIRROR_DTYPE [R]
    mirror_rows: np.ndarray  # ROW_DTYPE [R, Q]
    length_counts: np.ndarray  # float64 [P, bins]
    residuals: np.ndarray  # float64 [P, bins]
    ahead_linear_s: np.ndarray  # float64 [R, T], remembered layer times, NaN if not yet
    ahead_choices: np.ndarray  # CHOICE_DTYPE [NUM_CHOICE_ROWS, C]
    value_weights: np.ndarray  # float32 [NUM_WEIGHTS]
    value_sums: np.ndarray  # SUMS_DTYPE [1], scratch
    value_scratch: np.ndarray  # float32 [NUM_SCRATCH], scratch


_SIZES = (
    *("num_replicas", "num_groups", "num_shortlists", "num_kept"),
    *("num_mirror_rows", "num_ahead_linear", "num_choices"),
)
CALLED = ("look_ahead", "catch_up", "mirror_placed", "mirror_first_token", "mirror_end")
"""What is called through its address, which a handle gets from `live_worth.connect`."""
_FILES = (
    *(
        "called.py",
        "compiled.py",
        "dispatch.py",
        "gateway_counts.py",
        "latency.py",
        "knobs.py",
        "masks.py",
    ),
    *("shadow.py", "shortlist.py", "budget.py", "restrictions.py", "pointers.py"),
    *("shed_reason.py", "simulator/bits.py", "../traces/hashing.py"),
    *(f"lookahead/{n}.py" for n in ("decide", "lengths", "mirror", "settings", "situation")),
    *(f"value/{n}.py" for n in ("features", "judging", "network", "pace")),
)


def _tag() -> str:
    here, env = Path(__file__).parent, Path(__file__).parents[2] / "env"
    own = ("live_arrays", "live_kernel", "live_memory", "live_worth", "prefix_kernel")
    return source_tag([*(here / f"{n}.py" for n in own), *(env / name for name in _FILES)])


HANDLE_DTYPE = np.dtype(
    [(f"{name}_at", np.int64) for name in LiveArrays._fields]
    + [(name, np.int64) for name in _SIZES]
    + [(f"call_{name}", np.int64) for name in CALLED]
    + [(f"source_{_tag()}", np.int8)]
)


def handle(arrays: LiveArrays) -> np.ndarray:
    """Return the addresses and sizes of the arrays, HANDLE_DTYPE [1]."""
    record = np.zeros(1, HANDLE_DTYPE)
    for name, array in arrays._asdict().items():
        assert array.flags.c_contiguous, f"array '{name}' must be contiguous"
        record[f"{name}_at"] = array.ctypes.data
    record["num_replicas"], record["num_groups"] = arrays.views.size, arrays.groups.size
    record["num_shortlists"], record["num_kept"] = len(arrays.shortlists), arrays.decisions.size
    record["num_mirror_rows"] = arrays.mirror_rows.shape[1]
    record["num_ahead_linear"] = arrays.ahead_linear_s.shape[1]
    record["num_choices"] = arrays.ahead_choices.shape[1]
    return record


def allocate(
    cluster: ClusterSpec,
    *,
    models: np.ndarray,
    knobs: Knobs,
    seed: int,
    num_candidates: int,
    num_kept: int,
    can_place_by_worth: bool,
) -> LiveArrays:
    """Return the arrays of a gateway that knows nothing yet of its replicas but what they are.

    `num_candidates` is for choices by cost in large fleets.

    Shapes: `models` int64 [R], which of the models that are asked for each serves.
    """
    num_replicas = len(cluster.replicas)
    nominal = replica_coefficients(cluster)
    restrictions = unrestricted(num_replicas)
    cursors = np.zeros(1, CURSOR_DTYPE)
    cursors["num_candidates"] = num_candidates
    cursors["shed_limits"] = cursors["most_output_tokens"] = np.inf
    shadow = shadow_arrays(num_replicas)
    num_kept = max(1, num_kept)
    shortlists = np.zeros(
        ((int(models.max()) + 1) * NUM_CLASSES, SHORTLIST_SIZE + MAX_HOLDERS), CANDIDATE_DTYPE
    )
    shortlists["replica"] = -1
    return LiveArrays(
        cursors=cursors,
        query=np.zeros(1, QUERY_DTYPE),
        request=np.zeros(1, REQUEST_DTYPE),
        views=_views(cluster, nominal, models),
        nominal=nominal,
        knobs=knobs.record(),
        knob_bias=np.zeros(num_replicas),
        penalties=np.zeros(num_replicas),
        hits=np.zeros(num_replicas, np.int64),
        matched=np.zeros(num_replicas, np.int64),
        terms=np.zeros(NUM_TERMS),
        random=np.full(1, seed, np.uint64),
        shortlists=shortlists,
        decisions=np.zeros(num_kept, DECISION_DTYPE),
        kept_views=np.zeros((num_kept, num_replicas), VIEW_DTYPE),
        kept_hits=np.zeros((num_kept, num_replicas), np.int64),
        kept_bias=np.zeros((num_kept, num_replicas)),
        kept_terms=np.zeros((num_kept, num_replicas, NUM_TERMS)),
        **group_arrays(restrictions),
        token_at_s=np.zeros(num_replicas),
        **_worth_arrays(cluster, num_kept, is_on=can_place_by_worth),
        shadow=np.zeros(1, SHADOW_SUM_DTYPE),
        shadow_knobs=shadow["shadow_knobs"],
        judge=JUDGE_KNOBS.record(),
        shadow_bias=shadow["shadow_bias"],
        shadow_costs=shadow["shadow_costs"],
        shadow_factors=shadow["shadow_factors"],
        shadow_random=shadow["shadow_random"],
    )


def group_arrays(restrictions: Restrictions) -> dict[str, np.ndarray]:
    """Return the arrays that rules fill; buckets are full."""
    costs = np.where(restrictions.masks != 0, np.inf, restrictions.penalties)
    groups = restrictions.groups.astype(GROUP_DTYPE)
    return {
        "bias": np.ascontiguousarray(costs),
        "group_costs": np.ascontiguousarray(costs).copy(),
        "groups": groups,
        "buckets": full_buckets(groups).astype(BUCKET_DTYPE),
    }


def _worth_arrays(cluster: ClusterSpec, num_kept: int, *, is_on: bool) -> dict[str, np.ndarray]:
    """Return mirrors and scratch; next to nothing unless they are to be kept."""
    record, replicas = no_lookahead(), cluster.replicas if is_on else ()
    if is_on:
        record = LookaheadSettings(num_candidates=NETWORK_CANDIDATES).record()
    record["judge"] = Judge.NETWORK
    num_choices = int(record["num_candidates"][0])
    page_tokens = np.array([replica.page_tokens for replica in replicas], np.int64)
    pages = [kv_pages(cluster, replica) for replica in replicas]
    usable = [n - int(r.kv_watermark_frac * n) for n, r in zip(pages, replicas, strict=True)]
    mirrors = empty_mirrors(
        np.array([replica.max_num_seqs for replica in replicas], np.int64),
        np.array([replica.max_batch_tokens for replica in replicas], np.int64),
        page_tokens,
        np.array(usable, np.int64) * page_tokens,
    )
    kept = mirror_arrays(
        mirrors,
        num_gateways=1,
        num_priorities=NUM_CLASSES,
        mean_output_tokens=INITIAL_OUTPUT_TOKENS,
        is_on=is_on,
    )
    return {
        **kept,
        "lookahead": record,
        "kept_choices": np.zeros((num_kept, num_choices), CHOICE_DTYPE),
        "ahead_choices": np.zeros((NUM_CHOICE_ROWS, num_choices), CHOICE_DTYPE),
        "value_weights": closed_form().weights,
        "value_sums": np.zeros(1, SUMS_DTYPE),
        "value_scratch": np.zeros(NUM_SCRATCH, np.float32),
    }


def _views(cluster: ClusterSpec, nominal: np.ndarray, models: np.ndarray) -> np.ndarray:
    views = np.zeros(nominal.size, VIEW_DTYPE)
    views["model"] = models
    views["slow_factor"] = views["prefill_stretch"] = 1.0
    views["max_outstanding"] = np.inf
    for r, replica in enumerate(cluster.replicas):
        views["role"][r] = list(Role).index(replica.role)
        views["kv_capacity_tokens"][r] = kv_pages(cluster, replica) * replica.page_tokens
        views["prefill_token_s"][r] = full_chunk_token_s(
            nominal[r], float(replica.max_batch_tokens)
        )
    return views
