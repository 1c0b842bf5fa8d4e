"""How compiled functions reach the dispatcher's arrays: one record of addresses, `d` throughout.

Does not know: what the arrays mean (`live_arrays.py`), or what is done with them.
"""

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ...env.budget import BUCKET_DTYPE
from ...env.compiled import compiled
from ...env.dispatch import NUM_TERMS, QUERY_DTYPE, VIEW_DTYPE
from ...env.knobs import KNOBS_DTYPE
from ...env.latency import LATENCY_DTYPE
from ...env.lookahead.decide import CHOICE_DTYPE
from ...env.lookahead.lengths import NUM_LENGTH_BINS
from ...env.lookahead.mirror import MIRROR_DTYPE, ROW_DTYPE
from ...env.lookahead.settings import LOOKAHEAD_DTYPE
from ...env.pointers import pointer
from ...env.restrictions import GROUP_DTYPE
from ...env.shortlist import CANDIDATE_DTYPE, MAX_HOLDERS, SHORTLIST_SIZE
from ...env.value.features import SUMS_DTYPE
from ...env.value.network import NUM_SCRATCH, NUM_WEIGHTS
from .live_arrays import (
    CURSOR_DTYPE,
    DECISION_DTYPE,
    NUM_CHOICE_ROWS,
    NUM_CLASSES,
    REQUEST_DTYPE,
    SHADOW_SUM_DTYPE,
)


@compiled
def cursors_of(d):
    """Where walks and turns stand, and what is set for all requests."""
    return carray(pointer(d.cursors_at), (1,), CURSOR_DTYPE)[0]


@compiled
def query_of(d):
    """The request in hand."""
    return carray(pointer(d.query_at), (1,), QUERY_DTYPE)[0]


@compiled
def request_of(d):
    """The request in hand, beside its query."""
    return carray(pointer(d.request_at), (1,), REQUEST_DTYPE)[0]


@compiled
def views_of(d):
    """What is known of each replica [R]."""
    return carray(pointer(d.views_at), (d.num_replicas,), VIEW_DTYPE)


@compiled
def nominal_of(d):
    """Nominal latency coefficients [R]."""
    return carray(pointer(d.nominal_at), (d.num_replicas,), LATENCY_DTYPE)


@compiled
def knobs_of(d):
    """The knobs that rule."""
    return carray(pointer(d.knobs_at), (1,), KNOBS_DTYPE)[0]


@compiled
def bias_of(d, group):
    """What is added to each replica's cost for a group [R]."""
    rows = carray(pointer(d.bias_at), (d.num_groups, d.num_replicas), np.float64)
    return rows[group]


@compiled
def group_of(d, group):
    """What holds for a group of requests."""
    return carray(pointer(d.groups_at), (d.num_groups,), GROUP_DTYPE)[group]


@compiled
def bucket_of(d, group):
    """What is left of a group's budget."""
    return carray(pointer(d.buckets_at), (d.num_groups,), BUCKET_DTYPE)[group]


@compiled
def hits_of(d):
    """Prompt tokens of the request in hand that each replica has cached [R]."""
    return carray(pointer(d.hits_at), (d.num_replicas,), np.int64)


@compiled
def matched_of(d):
    """Replicas that have some of them, the first ones [R]."""
    return carray(pointer(d.matched_at), (d.num_replicas,), np.int64)


@compiled
def shortlist_of(d, kind):
    """Cheapest replicas of late for a kind of request, and room for holders."""
    shape = (d.num_shortlists, SHORTLIST_SIZE + MAX_HOLDERS)
    return carray(pointer(d.shortlists_at), shape, CANDIDATE_DTYPE)[kind]


@compiled
def floats_of(d, at):
    """The floats at an address [R]."""
    return carray(pointer(at), (d.num_replicas,), np.float64)


@compiled
def terms_of(d):
    """Scratch: terms of a cost [NUM_TERMS]."""
    return carray(pointer(d.terms_at), (NUM_TERMS,), np.float64)


@compiled
def random_of(at):
    """The state of a random stream [1]."""
    return carray(pointer(at), (1,), np.uint64)


@compiled
def judge_knobs_of(d):
    """The knobs by which outcomes of choices on paper are foretold."""
    return carray(pointer(d.judge_at), (1,), KNOBS_DTYPE)[0]


@compiled
def shadow_of(d):
    """What choices on paper are compared for."""
    return carray(pointer(d.shadow_at), (1,), SHADOW_SUM_DTYPE)[0]


@compiled
def shadow_knobs_of(d):
    """The knobs that choose on paper."""
    return carray(pointer(d.shadow_knobs_at), (1,), KNOBS_DTYPE)[0]


@compiled
def decision_of(d, slot):
    """A decision that is kept in full."""
    return carray(pointer(d.decisions_at), (d.num_kept,), DECISION_DTYPE)[slot]


@compiled
def kept_views_of(d, slot):
    """What was known of each replica at a kept decision [R]."""
    return carray(pointer(d.kept_views_at), (d.num_kept, d.num_replicas), VIEW_DTYPE)[slot]


@compiled
def kept_hits_of(d, slot):
    """Cached prompt tokens at a kept decision [R]."""
    return carray(pointer(d.kept_hits_at), (d.num_kept, d.num_replicas), np.int64)[slot]


@compiled
def kept_bias_of(d, slot):
    """Bias at a kept decision [R]."""
    return carray(pointer(d.kept_bias_at), (d.num_kept, d.num_replicas), np.float64)[slot]


@compiled
def kept_terms_of(d, slot):
    """Parts of each replica's cost at a kept decision [R, NUM_TERMS]."""
    shape = (d.num_kept, d.num_replicas, NUM_TERMS)
    return carray(pointer(d.kept_terms_at), shape, np.float64)[slot]


@compiled
def kept_choices_of(d, slot):
    """Candidates that were judged by worth at a kept decision [C]."""
    return carray(pointer(d.kept_choices_at), (d.num_kept, d.num_choices), CHOICE_DTYPE)[slot]


@compiled
def lookahead_of(d):
    """Whether mirrors are kept, and what came of the last look."""
    return carray(pointer(d.lookahead_at), (1,), LOOKAHEAD_DTYPE)[0]


@compiled
def mirror_of(d, r):
    """What was sent to a replica and is open."""
    return carray(pointer(d.mirrors_at), (d.num_replicas,), MIRROR_DTYPE)[r]


@compiled
def rows_of(d, r):
    """The requests of a mirror, and one row more to write on [Q]."""
    shape = (d.num_replicas, d.num_mirror_rows)
    return carray(pointer(d.mirror_rows_at), shape, ROW_DTYPE)[r]


@compiled
def length_counts_of(d):
    """Answers that were seen whole, by class and length [P, bins]."""
    return carray(pointer(d.length_counts_at), (NUM_CLASSES, NUM_LENGTH_BINS), np.float64)


@compiled
def residuals_of(d):
    """Mean tokens still to come, by class and tokens so far [P, bins]."""
    return carray(pointer(d.residuals_at), (NUM_CLASSES, NUM_LENGTH_BINS), np.float64)


@compiled
def linear_s_of(d, r):
    """Remembered nominal layer times of a replica, by tokens [T]."""
    shape = (d.num_replicas, d.num_ahead_linear)
    return carray(pointer(d.ahead_linear_s_at), shape, np.float64)[r]


@compiled
def choices_of(d, place):
    """Candidates that are judged by worth: for those that rule, or on paper [C]."""
    shape = (NUM_CHOICE_ROWS, d.num_choices)
    return carray(pointer(d.ahead_choices_at), shape, CHOICE_DTYPE)[place]


@compiled
def weights_of(d):
    """Weights of the value network."""
    return carray(pointer(d.value_weights_at), (NUM_WEIGHTS,), np.float32)


@compiled
def scratch_of(d):
    """Scratch: features and hidden units [NUM_SCRATCH]."""
    return carray(pointer(d.value_scratch_at), (NUM_SCRATCH,), np.float32)


@compiled
def sums_of(d):
    """Scratch: sums over a mirror."""
    return carray(pointer(d.value_sums_at), (1,), SUMS_DTYPE)[0]
