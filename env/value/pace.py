"""Tokens that answers have probably come to by now, by the pace of their replica.

A gateway that does not count the tokens of each answer knows how long an iteration of what it sent
there takes, and that each gives every answer one token.

Does not know: engines; the simulated gateway counts tokens instead.
"""

import numpy as np

from ..compiled import compiled
from ..lookahead.situation import iteration_times_s
from .features import chunk_room, count_rows

# Iterations for which the last thing that came from a replica tells when one ended.
_FRESH_ITERATIONS = 1.5


@compiled
def see_pace(mirror, rows, sums, latency, heard_at_s, now_s, knobs):
    """Bring streamed tokens, and the moment of the last one, up to now.

    `heard_at_s` is when something last came from the replica: the end of an iteration, if it is no
    longer ago than one takes. Answers that do not stream go on unheard. To be called before a row
    comes, gets its first token, or leaves, as each changes the pace.

    Shapes: `mirror` is a MIRROR_DTYPE record, `rows` ROW_DTYPE [S]; `sums` a SUMS_DTYPE record,
    scratch; `latency` is the nominal coefficients, their table of layer times, and the slow factor.
    """
    count_rows(sums, mirror, rows)
    if sums.num_run == 0 or now_s <= mirror.stepped_at_s:
        return
    coefficients, linear_s, slow_factor = latency
    pending = np.int64(sums.pending_tokens[0] + sums.pending_tokens[1])
    chunk = min(pending, chunk_room(sums, mirror, knobs))
    batch = (chunk, 0.5 * chunk * (chunk + 1), sums.run_seqs, sums.context_tokens)
    first_s, slope_s = iteration_times_s(coefficients, linear_s, batch, 0)
    first_s, slope_s = slow_factor * first_s, slow_factor * slope_s
    span_s = now_s - mirror.stepped_at_s
    # On average over the span, as contexts grow.
    step_s = first_s + 0.5 * slope_s * max(0.0, span_s / first_s - 1.0)
    ended_s = mirror.stepped_at_s + np.floor(span_s / step_s) * step_s
    if ended_s < heard_at_s <= now_s or now_s - heard_at_s < _FRESH_ITERATIONS * step_s:
        ended_s = min(heard_at_s, now_s)
    steps = np.int64((ended_s - mirror.stepped_at_s) / step_s + 0.5)
    if steps <= 0:
        return
    for i in range(mirror.num_rows):
        if not np.isnan(rows[i].first_token_s):
            rows[i].generated_tokens += steps
    mirror.stepped_at_s = ended_s


__all__ = ["see_pace"]
