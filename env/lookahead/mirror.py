"""The mirror of a replica: what a gateway knows of the requests that it has sent there.

Rows stand in the order in which requests were placed. Whoever keeps a mirror calls `place`,
`see_first_token`, `see_tokens` and `leave` as these things come by; nothing here looks into an
engine.

Does not know: true lengths, true speeds, or what other gateways have sent.
"""

import numpy as np

from ..compiled import compiled
from .lengths import draw_length
from .settings import MAX_SAMPLES

ROW_DTYPE = np.dtype(
    [
        ("key", np.int64),  # whatever its keeper knows the request by
        ("priority", np.int64),
        ("input_tokens", np.int64),
        ("uncached_tokens", np.int64),  # as the gateway believes
        ("num_sequences", np.int64),
        ("weight", np.float64),
        ("ttft_slo_s", np.float64),
        ("tpot_slo_s", np.float64),
        ("arrival_s", np.float64),
        ("placed_s", np.float64),
        ("first_token_s", np.float64),  # NaN before
        ("generated_tokens", np.int64),  # streamed so far
        ("most_output_tokens", np.int64),
        ("num_draws", np.int64),
        ("lengths", np.int64, (MAX_SAMPLES,)),  # whole output lengths drawn for it
    ]
)

MIRROR_DTYPE = np.dtype(
    [
        # The engine's settings.
        ("max_num_seqs", np.int64),
        ("max_batch_tokens", np.int64),
        ("min_chunk_tokens", np.int64),  # prefill tokens that an iteration takes at least
        ("kv_tokens", np.int64),
        # What was seen.
        ("num_rows", np.int64),
        ("num_dropped", np.int64),  # placed when all rows were taken
        ("version", np.int64),  # changes with the rows
        ("progress_at_s", np.float64),  # last first token, or when the backlog began
        ("stepped_at_s", np.float64),  # last token of any: the iteration in progress began then
        # The outcome without any request more, remembered.
        ("without_version", np.int64),
        ("without_at_s", np.float64),
        ("without_factor", np.float64),
        ("without", np.float64, (MAX_SAMPLES,)),
    ]
)

NOBODY = -1


@compiled
def find_row(mirror, rows, key):
    """Return the row of a request, or NOBODY."""
    for i in range(mirror.num_rows - 1, -1, -1):
        if rows[i].key == key:
            return i
    return NOBODY


@compiled
def write_row(row, key, query, weight, num_sequences, arrival_s, uncached_tokens, now_s):
    """Fill a row for a request that is about to be placed; `query` is a QUERY_DTYPE record."""
    row.key = key
    row.priority = query.priority
    row.input_tokens = query.input_tokens
    row.uncached_tokens = uncached_tokens
    row.num_sequences = num_sequences
    row.weight = weight
    row.ttft_slo_s = query.ttft_slo_s
    row.tpot_slo_s = query.tpot_slo_s
    row.arrival_s = arrival_s
    row.placed_s = now_s
    row.first_token_s = np.nan
    row.generated_tokens = 0
    row.most_output_tokens = np.int64(1) << np.int64(40)
    row.num_draws = 0
    row.lengths[:] = 0


@compiled
def has_pending(mirror, rows):
    """Whether a request is without its first token."""
    i = mirror.num_rows - 1  # the latest are the likeliest
    while i >= 0 and not np.isnan(rows[i].first_token_s):
        i -= 1
    return i >= 0


@compiled
def place(mirror, rows, now_s):
    """Take the row written behind the last one as that of a request which was placed.

    The last row stays free, for the next to be written; a mirror that is full drops the request.
    """
    if mirror.num_rows + 1 >= rows.size:
        mirror.num_dropped += 1
        return
    if not has_pending(mirror, rows):
        mirror.progress_at_s = now_s
    mirror.num_rows += 1
    mirror.version += 1


@compiled
def see_first_token(mirror, rows, key, now_s):
    """Note a first token."""
    i = find_row(mirror, rows, key)
    mirror.progress_at_s = now_s
    mirror.stepped_at_s = now_s
    if i != NOBODY:
        rows[i].first_token_s = now_s
        rows[i].generated_tokens = 1
        mirror.version += 1


@compiled
def see_tokens(mirror, rows, key, generated_tokens, now_s):
    """Note how many tokens of a request have been streamed, the last of them now."""
    i = find_row(mirror, rows, key)
    mirror.stepped_at_s = max(mirror.stepped_at_s, now_s)
    if i != NOBODY:
        rows[i].generated_tokens = generated_tokens


@compiled
def leave(mirror, rows, key):
    """Take out a request that ended or went elsewhere."""
    i = find_row(mirror, rows, key)
    if i == NOBODY:
        mirror.num_dropped = max(0, mirror.num_dropped - 1)
        return
    for j in range(i, mirror.num_rows - 1):
        rows[j] = rows[j + 1]
    mirror.num_rows -= 1
    mirror.version += 1


@compiled
def clear_mirror(mirror):
    """Forget all requests of a replica that crashed."""
    mirror.num_rows = 0
    mirror.num_dropped = 0
    mirror.version += 1


@compiled
def draw_lengths(row, counts, seed, num_samples):
    """Draw the lengths of a request that it has none of or has outgrown; return if any was."""
    has_drawn = False
    for s in range(num_samples):
        if row.lengths[s] <= row.generated_tokens:
            row.lengths[s] = draw_length(
                counts, row.generated_tokens, row.most_output_tokens, seed, row.key,
                row.num_draws, s, num_samples,
            )  # fmt: skip
            has_drawn = True
    if has_drawn:
        row.num_draws += 1
    return has_drawn


__all__ = [
    "MIRROR_DTYPE",
    "NOBODY",
    "ROW_DTYPE",
    "clear_mirror",
    "draw_lengths",
    "find_row",
    "has_pending",
    "leave",
    "place",
    "see_first_token",
    "see_tokens",
    "write_row",
]
