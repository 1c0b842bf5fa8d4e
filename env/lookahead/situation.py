"""From a mirror to the start of a rollout: who decodes, who waits, and how far prefill has come.

Prefill progress is no news that reaches a gateway. It is taken to be what the time since the last
first token allows, less than all of a prompt whose first token has not come.

Does not know: what comes after (`rollout.py`).
"""

import numpy as np

from ..compiled import compiled
from ..latency import (
    context_time_s,
    linear_time_s,
    other_time_s,
    position_time_s,
    window_positions,
    window_time_s,
)

# A request in a rollout: what stays the same over samples, then what moves.
JOB_DTYPE = np.dtype(
    [
        ("row", np.int64),
        ("priority", np.int64),
        ("sequences", np.int64),
        ("weight", np.float64),  # 0 if it has missed a limit already
        ("ready_s", np.float64),
        ("ttft_due_s", np.float64),
        ("tpot_limit_s", np.float64),
        ("input_tokens", np.int64),
        ("uncached_tokens", np.int64),
        ("begun_tokens", np.int64),  # prefilled by now, cached ones among them
        ("streamed_tokens", np.int64),
        ("streamed_at_s", np.float64),  # first token, NaN before
        ("is_started", np.int64),
        # What moves.
        ("length", np.int64),
        ("done_tokens", np.int64),
        ("left_tokens", np.int64),
        ("generated_tokens", np.int64),
        ("admission", np.int64),
        ("first_token_s", np.float64),
        ("finish_s", np.float64),  # infinity if it does not
    ]
)

# One replica in a rollout: what stays the same over samples, then what moves.
RUN_DTYPE = np.dtype(
    [
        ("start_s", np.float64),
        ("slow_factor", np.float64),
        ("batch_tokens", np.int64),
        ("min_chunk_tokens", np.int64),
        ("max_num_seqs", np.int64),
        ("kv_tokens", np.int64),
        ("num_jobs", np.int64),
        ("num_running", np.int64),  # jobs that decode: the first ones
        ("num_started", np.int64),  # of those that wait, the ones whose prefill has begun
        ("is_whole", np.int64),  # run to the very end, for whoever looks at the jobs
        ("new_place", np.int64),  # of the request in hand among those that wait
        ("new_row", np.int64),  # of the request in hand in the mirror
        # What moves.
        ("clock_s", np.float64),
        ("iteration", np.int64),
        ("num_decoding", np.int64),
        ("decode_seqs", np.int64),
        ("prefill_seqs", np.int64),
        ("context_tokens", np.int64),
        ("held_tokens", np.int64),
        ("num_prefilling", np.int64),
        ("prefill_first", np.int64),  # in the ring
        ("prefill_left_tokens", np.int64),
        ("next_waiting", np.int64),  # place in the queue
        ("end_waiting", np.int64),
        ("num_admissions", np.int64),
        ("is_closed", np.int64),  # to admission, for the iteration after a preemption
        ("goodput", np.float64),
        ("own_goodput", np.float64),  # the part of the request in hand
    ]
)
# Rows of the lists of job numbers.
QUEUE, RING, HEAP, START = range(4)
NUM_LISTS = 4


def make_lists(num_slots: int) -> np.ndarray:
    """Return the lists of job numbers that a rollout works with, int64 [4, 2 * slots + 2]."""
    return np.zeros((NUM_LISTS, 2 * num_slots + 2), dtype=np.int64)


@compiled
def layers_s(coefficients, linear_s, tokens):
    """Return the layers' time for some tokens, remembered in `linear_s` [T] (NaN: not yet)."""
    if tokens >= linear_s.size:
        return linear_time_s(coefficients, float(tokens))
    if np.isnan(linear_s[tokens]):
        linear_s[tokens] = linear_time_s(coefficients, float(tokens))
    return linear_s[tokens]


@compiled
def iteration_times_s(coefficients, linear_s, batch, start_tokens):
    """Return (time of an iteration, what each next one of the same kind takes more).

    `batch` is chunk tokens, sum of their positions, decoding sequences and their context tokens;
    `start_tokens` the first position of the chunk. Windows count as they stand at the first.
    """
    c = coefficients
    chunk, positions, seqs, context_tokens = batch
    context_s = context_time_s(c, chunk > 0)
    first_s = layers_s(c, linear_s, chunk + seqs) + context_s * (context_tokens + seqs)
    first_s += other_time_s(c, chunk, positions, seqs)
    slope_s = context_s * seqs + position_time_s(c, chunk) * float(chunk) * chunk
    if c.window_tokens > 0.0:
        reached = window_positions(c.window_tokens, float(chunk), float(start_tokens))
        windowed = min(float(context_tokens), c.window_tokens * seqs)
        first_s += window_time_s(c, chunk, reached, windowed)
    return first_s, slope_s


@compiled
def chunk_budget(run):
    """Return the prefill tokens that the next iteration has room for."""
    return max(run.batch_tokens - run.decode_seqs, run.min_chunk_tokens)


@compiled
def fill_job(job, i, row, margin, now_s):
    """Make a row of a mirror a job; limits that are still open shrink by the margin."""
    job.row = i
    job.priority = min(row.priority, 1)
    job.sequences = row.num_sequences
    job.weight = row.weight
    job.ready_s = row.placed_s
    job.ttft_due_s = row.arrival_s + margin * row.ttft_slo_s
    job.tpot_limit_s = margin * row.tpot_slo_s
    job.input_tokens = row.input_tokens
    job.uncached_tokens = row.uncached_tokens
    job.begun_tokens = row.input_tokens - row.uncached_tokens
    job.streamed_tokens = row.generated_tokens
    job.streamed_at_s = row.first_token_s
    job.is_started = 0
    if not np.isnan(row.first_token_s):
        # Its first token has come: in time or not is a fact.
        if row.first_token_s > row.arrival_s + row.ttft_slo_s:
            job.weight = 0.0
        job.ttft_due_s = np.inf


@compiled
def _fill_jobs(run, mirror, rows, jobs, margin, now_s):
    """Make jobs of all rows: those that decode first."""
    run.decode_seqs = run.context_tokens = 0
    count = 0
    for i in range(mirror.num_rows):
        if not np.isnan(rows[i].first_token_s):
            fill_job(jobs[count], i, rows[i], margin, now_s)
            job = jobs[count]
            run.decode_seqs += job.sequences
            run.context_tokens += job.sequences * (job.input_tokens + job.streamed_tokens - 1)
            count += 1
    run.num_running = count
    for i in range(mirror.num_rows):
        if np.isnan(rows[i].first_token_s):
            fill_job(jobs[count], i, rows[i], margin, now_s)
            count += 1
    run.num_jobs = count


@compiled
def _start_jobs(run, jobs, start, by_s):
    """Take the most urgent, oldest of those that waited at a moment as in prefill."""
    left, count, seqs = 0, 0, run.decode_seqs
    budget = chunk_budget(run)
    for priority in range(2):
        for j in range(run.num_running, run.num_jobs):
            job = jobs[j]
            has_slot = seqs == 0 or seqs + job.sequences <= run.max_num_seqs
            if job.priority == priority and job.ready_s <= by_s and left < budget and has_slot:
                job.is_started = 1
                seqs += job.sequences
                left += job.uncached_tokens
                start[count] = j
                count += 1
    run.num_started = count


@compiled
def _spend_progress(run, jobs, start, tokens):
    """Spread prefilled tokens over the started jobs; each lacks one token at least."""
    for i in range(run.num_started):
        job = jobs[start[i]]
        part = min(tokens, max(0, job.uncached_tokens - 1))
        job.begun_tokens += part
        tokens -= part


@compiled
def _estimate_progress(run, mirror, jobs, lists, coefficients, linear_s, now_s):
    """Estimate when the iteration in progress began, and how far prefill had come by then."""
    run.start_s = now_s
    has_running, has_pending = run.num_running > 0, run.num_jobs > run.num_running
    run.num_started = 0
    if not has_running and not has_pending:
        return
    chunk = 0
    if has_pending:
        _start_jobs(run, jobs, lists[START], mirror.progress_at_s)
        for i in range(run.num_started):
            chunk += jobs[lists[START, i]].uncached_tokens
        chunk = min(chunk, chunk_budget(run))
    positions = chunk * (chunk + 1) / 2.0
    step_s, _ = iteration_times_s(
        coefficients, linear_s, (chunk, positions, run.decode_seqs, run.context_tokens), 0
    )
    step_s *= run.slow_factor
    if has_running:
        began_s = mirror.stepped_at_s
        steps = int((began_s - mirror.progress_at_s) / step_s + 0.5)
    else:
        steps = int((now_s - mirror.progress_at_s) / step_s)
        began_s = mirror.progress_at_s + steps * step_s
    _spend_progress(run, jobs, lists[START], max(0, steps) * chunk)
    # What is in progress ends later than now, however long it takes.
    run.start_s = min(now_s, max(began_s, now_s - step_s))


@compiled
def _queue_up(run, jobs, start, new_priority):
    """List those that wait behind the started ones; find the place of the request in hand."""
    count = run.num_started
    run.new_place = count
    for priority in range(2):
        for j in range(run.num_running, run.num_jobs):
            if jobs[j].priority == priority and jobs[j].is_started == 0:
                start[count] = j
                count += 1
        if priority == min(new_priority, 1):
            run.new_place = count


@compiled
def prepare(run, mirror, rows, jobs, lists, latency, now_s, limits):
    """Fill jobs, queue and start of a replica's rollouts from its mirror.

    The row behind the mirror's last one is that of the request in hand; its job is the last.

    Shapes: `rows` ROW_DTYPE [S], `jobs` JOB_DTYPE [S], `lists` of `make_lists`; `latency` is the
    nominal coefficients, their table of layer times, and the slow factor measured; `limits` is
    the shares of the token budget and of the sequences' slots that are in use, and the margin on
    service limits.
    """
    coefficients, linear_s, slow_factor = latency
    margin = limits[2]
    run.slow_factor = slow_factor
    run.batch_tokens = int(mirror.max_batch_tokens * limits[0])
    run.max_num_seqs = max(1, int(mirror.max_num_seqs * limits[1]))
    run.min_chunk_tokens = mirror.min_chunk_tokens
    run.kv_tokens = mirror.kv_tokens
    _fill_jobs(run, mirror, rows, jobs, margin, now_s)
    _estimate_progress(run, mirror, jobs, lists, coefficients, linear_s, now_s)
    new_row = rows[mirror.num_rows]
    run.new_row = mirror.num_rows
    fill_job(jobs[run.num_jobs], mirror.num_rows, new_row, margin, now_s)
    _queue_up(run, jobs, lists[START], new_row.priority)


__all__ = [
    "HEAP",
    "JOB_DTYPE",
    "NUM_LISTS",
    "QUEUE",
    "RING",
    "RUN_DTYPE",
    "START",
    "chunk_budget",
    "iteration_times_s",
    "make_lists",
    "prepare",
]
