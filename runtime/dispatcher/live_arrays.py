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
from ...env.restrictions import GROUP_DTYPE, Restrictions, unrestricted
from ...env.shadow import JUDGE_KNOBS
from ...env.shortlist import CANDIDATE_DTYPE, MAX_HOLDERS, SHORTLIST_SIZE
from ...env.simulator.setup import replica_coefficients
from ...env.simulator.shadow import shadow_arrays

NUM_CLASSES = 2
"""Priorities: interactive and batch."""

CURSOR_DTYPE = np.dtype(
    [
        ("cursor", np.int64),  # round robin goes on here
        ("walk", np.int64),  # the walk for candidates goes on here
        ("num_candidates", np.int64),  # steps of that walk; 0 scores all replicas
        ("shed_limits", np.float64),  # most TTFT limits a predicted TTFT may be
        ("spill_tokens", np.float64),  # requests of at most so many tokens may spill
        ("most_output_tokens", np.float64),  # of a batch request, while an emergency cuts them
        ("keep_every", np.int64),  # every n-th decision is kept in full; 0: none
        ("num_decided", np.int64),
        ("next_slot", np.int64),  # of the ring of decisions
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
    """All arrays. R replicas, G groups, M models, D decisions in the ring."""

    cursors: np.ndarray  # CURSOR_DTYPE [1]
    query: np.ndarray  # QUERY_DTYPE [1], of the request in hand
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


_SIZES = ("num_replicas", "num_groups", "num_shortlists", "num_kept")
_FILES = (
    *("compiled.py", "dispatch.py", "gateway_counts.py", "latency.py", "knobs.py", "masks.py"),
    *("shadow.py", "shortlist.py", "budget.py", "restrictions.py", "pointers.py"),
    "../traces/hashing.py",
)


def _tag() -> str:
    here, env = Path(__file__).parent, Path(__file__).parents[2] / "env"
    own = [here / "live_arrays.py", here / "live_kernel.py", here / "prefix_kernel.py"]
    return source_tag([*own, *(env / name for name in _FILES)])


HANDLE_DTYPE = np.dtype(
    [(f"{name}_at", np.int64) for name in LiveArrays._fields]
    + [(name, np.int64) for name in _SIZES]
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
    return record


def allocate(
    cluster: ClusterSpec,
    *,
    models: np.ndarray,
    knobs: Knobs,
    seed: int,
    num_candidates: int,
    num_kept: int,
) -> LiveArrays:
    """Return the arrays of a gateway that knows nothing yet of its replicas but what they are.

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
