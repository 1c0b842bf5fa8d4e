"""What the value network sees of a candidate: a replica's mirror, its times, and the request.

The first of it is an estimate in closed form: times of iterations as the coefficients say, all
prompts at a steady pace, remaining lengths exponential. Each running request then meets its limit
with a known probability, with the request in hand and without. The network learns what this misses.
All features are free of units: times over limits, tokens over capacities, weights over the weight
of the request in hand.

Does not know: the network (`network.py`), or rollouts.
"""

import numpy as np

from ..compiled import compiled, inlined
from ..lookahead.lengths import length_bin
from ..lookahead.situation import iteration_times_s

FEATURE_NAMES = (
    *("met_now", "own_met", "run_loss", "wait_loss"),
    *("ttft_share", "own_prefill_share", "queue_share", "backlog_share"),
    *("tpot_share", "tpot_share_full", "tpot_share_mixed", "own_stall_share"),
    *("run_kept", "wait_kept", "run_doubt", "run_doubt_with", "wait_doubt"),
    *("run_seqs_frac", "wait_seqs_frac", "lost_frac", "is_urgent"),
    *("kv_frac", "own_kv_frac", "hit_frac", "log_own_tokens", "log_run_tokens"),
    *("run_room", "run_banked", "log_slow_factor", "limit_ratio"),
    *("room_share", "held_frac"),
)
NUM_FEATURES = len(FEATURE_NAMES)
# Of the first features, which are the closed form itself: own chance, loss of those that run and
# of those that wait.
OWN_MET, RUN_LOSS, WAIT_LOSS = 1, 2, 3
# Doubt about those that run, without the request in hand and with it.
RUN_DOUBT, RUN_DOUBT_WITH = 14, 15
# Share of what ends that KV is freed by at least, whatever grows beside it.
_LEAST_RELEASE = 0.2
# All features are cut to this.
FEATURE_LIMIT = 6.0

# What one pass over a mirror sums up.
SUMS_DTYPE = np.dtype(
    [
        ("run_seqs", np.int64),
        ("context_tokens", np.int64),
        ("num_run", np.int64),
        ("num_lost", np.int64),
        ("wait_seqs", np.int64),
        ("wait_context_tokens", np.int64),
        ("pending_tokens", np.float64, (2,)),  # by priority
        ("held_tokens", np.float64),  # KV of those that run, shared prefixes apart
        ("left_tokens", np.float64),  # that they still make, on average
        # Times, s.
        ("decode_s", np.float64),  # of an iteration of those that run
        ("mixed_s", np.float64),  # with a chunk of prefill
        ("full_s", np.float64),  # of all, once those that wait decode as well
        ("with_s", np.float64),  # and the request in hand
        ("token_s", np.float64),  # a prompt token, decodes beside it
        ("queue_factor", np.float64),  # on the wait of class 1, for what comes before it later
        ("stall_s", np.float64),  # what a prompt token costs those that run
        # Outcome in closed form.
        ("run_kept", np.float64),
        ("run_loss", np.float64),
        ("run_doubt", np.float64),
        ("run_doubt_with", np.float64),
        ("run_room", np.float64),
        ("run_banked", np.float64),
        ("run_left_tokens", np.float64),
        ("run_weight", np.float64),
        ("wait_kept", np.float64),
        ("wait_loss", np.float64),
        ("wait_doubt", np.float64),
    ]
)


@inlined
def chance(banked_s, gain_s, mean_tokens):
    """Chance to end within the limit on time per token, remaining tokens exponential.

    `banked_s` is what has been saved so far, `gain_s` what each further token saves; either may be
    below 0.
    """
    if banked_s >= 0.0:
        if gain_s >= 0.0:
            return 1.0
        return 1.0 - np.exp(banked_s / (gain_s * mean_tokens))
    if gain_s <= 0.0:
        return 0.0
    return np.exp(banked_s / (gain_s * mean_tokens))


@inlined
def ramp(share, knobs):
    """Chance that a first token is in time which is foretold at a share of its limit."""
    return min(1.0, max(0.0, 0.5 + (knobs.value_center - share) / knobs.value_ramp))


@compiled
def count_rows(sums, mirror, rows):
    """Sum up who runs and who waits."""
    sums.run_seqs = sums.context_tokens = sums.num_run = 0
    sums.wait_seqs = sums.wait_context_tokens = 0
    sums.held_tokens = 0.0
    sums.pending_tokens[0] = sums.pending_tokens[1] = 0.0
    for i in range(mirror.num_rows):
        row = rows[i]
        if np.isnan(row.first_token_s):
            sums.wait_seqs += row.num_sequences
            sums.wait_context_tokens += row.num_sequences * row.input_tokens
            sums.pending_tokens[min(row.priority, 1)] += row.uncached_tokens
        else:
            sums.num_run += 1
            sums.run_seqs += row.num_sequences
            tokens = row.input_tokens + row.generated_tokens
            sums.context_tokens += row.num_sequences * tokens
            sums.held_tokens += row.uncached_tokens + row.num_sequences * row.generated_tokens


@inlined
def chunk_room(sums, mirror, knobs):
    """Return the prefill tokens that an iteration has room for, beside those that run."""
    budget = np.int64(mirror.max_batch_tokens * knobs.batch_tokens_scale) - sums.run_seqs
    return max(budget, mirror.min_chunk_tokens)


@compiled
def _time(sums, mirror, new, latency, now_s, knobs):
    """Fill the times, and take off what prefill has probably done since the last first token."""
    coefficients, linear_s, slow_factor, stretch, usage_frac = latency
    # Prefixes that are shared are held as well; the engine's page knows them.
    sums.held_tokens = max(sums.held_tokens, usage_frac * mirror.kv_tokens)
    pending = sums.pending_tokens[0] + sums.pending_tokens[1]
    budget = chunk_room(sums, mirror, knobs)
    chunk = max(np.int64(1), min(budget, np.int64(pending) + new.uncached_tokens))
    positions = 0.5 * chunk * float(max(chunk, new.input_tokens))
    run = (0, 0.0, sums.run_seqs, sums.context_tokens)
    mixed = (chunk, positions, sums.run_seqs, sums.context_tokens)
    seqs, tokens = (
        sums.run_seqs + sums.wait_seqs,
        sums.context_tokens + sums.wait_context_tokens,
    )
    full = (0, 0.0, seqs, tokens)
    more = (0, 0.0, seqs + new.num_sequences, tokens + new.num_sequences * new.input_tokens)
    sums.decode_s = slow_factor * iteration_times_s(coefficients, linear_s, run, 0)[0]
    sums.mixed_s = slow_factor * iteration_times_s(coefficients, linear_s, mixed, 0)[0]
    full_s = slow_factor * iteration_times_s(coefficients, linear_s, full, 0)[0]
    with_s = slow_factor * iteration_times_s(coefficients, linear_s, more, 0)[0]
    future = 1.0 if knobs.value_future == 0.0 else stretch**knobs.value_future
    sums.queue_factor = stretch**knobs.value_queue if knobs.value_queue > 0.0 else 1.0
    sums.full_s = future * (sums.decode_s + knobs.value_growth * (full_s - sums.decode_s))
    sums.with_s = sums.full_s + future * (with_s - full_s)
    sums.token_s = sums.mixed_s / chunk
    sums.stall_s = knobs.value_stall * max(0.0, sums.mixed_s - sums.decode_s) / chunk
    if pending > 0.0:
        done = min(max(0.0, now_s - mirror.progress_at_s) / sums.token_s, 0.95 * pending)
        first = min(done, 0.95 * sums.pending_tokens[0])
        sums.pending_tokens[0] -= first
        sums.pending_tokens[1] -= min(done - first, 0.95 * sums.pending_tokens[1])


@compiled
def _judge_running(sums, mirror, rows, residuals, new, knobs):
    """Foretell those that decode, with the request in hand and without."""
    pending = sums.pending_tokens[0] + sums.pending_tokens[1]
    stall_s = pending * sums.stall_s
    own_stall_s = new.uncached_tokens * sums.stall_s
    sums.run_kept = sums.run_loss = sums.run_doubt = sums.run_doubt_with = 0.0
    sums.run_room = sums.run_banked = sums.run_left_tokens = sums.run_weight = 0.0
    sums.num_lost = 0
    left_tokens = 0.0
    for i in range(mirror.num_rows):
        row = rows[i]
        if np.isnan(row.first_token_s):
            continue
        seen_tokens = residuals[min(row.priority, 1), length_bin(row.generated_tokens + 1)]
        mean_tokens = knobs.value_length * seen_tokens
        left_tokens += mean_tokens
        if row.first_token_s > row.arrival_s + row.ttft_slo_s:
            sums.num_lost += 1
            continue
        limit_s = knobs.slo_margin * row.tpot_slo_s
        spent_s = max(mirror.stepped_at_s, row.first_token_s) - row.first_token_s
        banked_s = limit_s * (row.generated_tokens - 1) - spent_s
        kept = chance(banked_s - stall_s, limit_s - sums.full_s, mean_tokens)
        kept_with = chance(banked_s - stall_s - own_stall_s, limit_s - sums.with_s, mean_tokens)
        sums.run_kept += row.weight * kept
        sums.run_loss += row.weight * (kept_with - kept)
        sums.run_doubt += row.weight * kept * (1.0 - kept)
        sums.run_doubt_with += row.weight * kept_with * (1.0 - kept_with)
        sums.run_room += row.weight * (1.0 - sums.full_s / limit_s)
        sums.run_banked += row.weight * min(2.0, max(-2.0, banked_s / (limit_s * mean_tokens)))
        sums.run_left_tokens += row.weight * mean_tokens
        sums.run_weight += row.weight
    sums.left_tokens = left_tokens / max(1.0, float(sums.num_run))


@compiled
def room_wait_s(sums, mirror, tokens, seqs, knobs):
    """Return how long until KV and slots for so many more tokens and sequences become free.

    Those that run end at a steady pace and give back what they hold; until then they grow.
    """
    over_kv = (sums.held_tokens + tokens - mirror.kv_tokens) / max(sums.held_tokens, 1.0)
    over_slots = (sums.run_seqs + seqs - mirror.max_num_seqs) / max(float(sums.run_seqs), 1.0)
    over = max(over_kv, over_slots)
    if over <= 0.0:
        return 0.0
    grown = sums.left_tokens * sums.run_seqs / max(sums.held_tokens, 1.0)
    over /= max(_LEAST_RELEASE, 1.0 - grown)
    return knobs.value_kv * over * sums.left_tokens * sums.full_s


@inlined
def _shares(sums, mirror, new, knobs, place, left_s):
    """Return the predicted TTFT of one that waits over its limit, without and with the one in hand.

    `place` is its class, the tokens up to its own, the sequences up to it, and the tokens that the
    request in hand puts before it.
    """
    priority, before, seqs, delay_tokens = place
    factor = sums.queue_factor if priority == 1 else 1.0
    wait_s = max(before * sums.token_s, room_wait_s(sums, mirror, before, seqs, knobs))
    share = factor * wait_s / left_s
    if delay_tokens == 0.0:
        return share, share
    later = before + delay_tokens
    room_s = room_wait_s(sums, mirror, later, seqs + new.num_sequences, knobs)
    return share, factor * max(later * sums.token_s, room_s) / left_s


@inlined
def _kept_waiting(sums, row, new, knobs, place, shares):
    """Return the chance of one that waits, without and with the request in hand.

    `place` is the tokens up to its own, those that it will make, and those that the request in
    hand puts before it.
    """
    before, mean_tokens, delay_tokens = place
    limit_s = knobs.slo_margin * row.tpot_slo_s
    pending = sums.pending_tokens[0] + sums.pending_tokens[1]
    behind_s = max(0.0, pending - before) * sums.stall_s
    own_s = (new.uncached_tokens - delay_tokens) * sums.stall_s
    kept = ramp(shares[0], knobs) * chance(-behind_s, limit_s - sums.full_s, mean_tokens)
    later = chance(-behind_s - own_s, limit_s - sums.with_s, mean_tokens)
    return kept, ramp(shares[1], knobs) * later


@compiled
def _judge_waiting(sums, mirror, rows, residuals, new, knobs, now_s):
    """Foretell those that wait; return the prompt tokens that stand before the one in hand."""
    urgent_tokens = sums.pending_tokens[0]
    pending = urgent_tokens + sums.pending_tokens[1]
    sums.wait_kept = sums.wait_loss = sums.wait_doubt = 0.0
    new_priority = min(new.priority, 1)
    passed, passed_urgent, seqs = 0.0, 0.0, 0
    for i in range(mirror.num_rows):
        row = rows[i]
        if not np.isnan(row.first_token_s):
            continue
        priority = min(row.priority, 1)
        if priority == 0:
            passed_urgent += row.uncached_tokens
            before = min(passed_urgent, urgent_tokens)
        else:
            passed += row.uncached_tokens
            before = min(urgent_tokens + passed, pending)
        left_s = row.arrival_s + knobs.slo_margin * row.ttft_slo_s - now_s
        if left_s <= 0.0:
            continue
        seqs += row.num_sequences
        delay_tokens = float(new.uncached_tokens) if priority > new_priority else 0.0
        shares = _shares(sums, mirror, new, knobs, (priority, before, seqs, delay_tokens), left_s)
        mean_tokens = knobs.value_length * residuals[priority, 0]
        place = (before, mean_tokens, delay_tokens)
        kept, kept_with = _kept_waiting(sums, row, new, knobs, place, shares)
        sums.wait_kept += row.weight * kept
        sums.wait_loss += row.weight * (kept_with - kept)
        sums.wait_doubt += row.weight * kept_with * (1.0 - kept_with)
    return urgent_tokens if new_priority == 0 else pending


@compiled
def _write_own(out, sums, mirror, new, tokens, now_s, knobs):
    """Write the features of the request in hand; `tokens` is those ahead, and those it makes."""
    ahead_tokens, own_tokens = tokens
    limit_s = knobs.slo_margin * new.tpot_slo_s
    left_s = max(new.arrival_s + knobs.slo_margin * new.ttft_slo_s - now_s, 1e-6)
    pending = sums.pending_tokens[0] + sums.pending_tokens[1]
    own_s = new.uncached_tokens * sums.token_s
    seqs = sums.wait_seqs + new.num_sequences
    room_s = room_wait_s(sums, mirror, ahead_tokens + new.uncached_tokens, seqs, knobs)
    factor = 1.0 if new.priority == 0 else sums.queue_factor
    wait_s = max(ahead_tokens * sums.token_s, room_s) + own_s
    share = (factor * wait_s + sums.mixed_s) / left_s
    behind_s = max(0.0, pending - ahead_tokens) * sums.stall_s
    in_time = ramp(share, knobs)
    out[0] = in_time * chance(0.0, limit_s - sums.decode_s, own_tokens)
    out[1] = in_time * chance(-behind_s, limit_s - sums.with_s, own_tokens)
    out[4] = share
    out[5] = own_s / left_s
    out[6] = ahead_tokens * sums.token_s / left_s
    out[7] = pending * sums.token_s / left_s
    out[8] = sums.decode_s / limit_s
    out[9] = sums.with_s / limit_s
    out[10] = sums.mixed_s / limit_s
    out[11] = behind_s / (limit_s * own_tokens)
    out[20] = 1.0 if new.priority == 0 else 0.0
    out[22] = (new.input_tokens + own_tokens) / mirror.kv_tokens
    out[23] = 1.0 - new.uncached_tokens / new.input_tokens
    out[24] = 0.2 * np.log(own_tokens)
    out[29] = 0.2 * np.log(left_s / limit_s)
    out[30] = room_s / left_s


@compiled
def _write_others(out, sums, mirror, new, slow_factor):
    """Write the features of those that a replica has, and of the replica."""
    per_weight = 1.0 / max(new.weight, 1e-9)
    per_run = 1.0 / max(sums.run_weight, 1e-9)
    out[2] = sums.run_loss * per_weight
    out[3] = sums.wait_loss * per_weight
    out[12] = 0.25 * sums.run_kept * per_weight
    out[13] = 0.25 * sums.wait_kept * per_weight
    out[14] = sums.run_doubt * per_weight
    out[15] = sums.run_doubt_with * per_weight
    out[16] = sums.wait_doubt * per_weight
    out[17] = sums.run_seqs / mirror.max_num_seqs
    out[18] = sums.wait_seqs / mirror.max_num_seqs
    out[19] = sums.num_lost / max(1.0, float(mirror.num_rows))
    out[21] = (sums.context_tokens + sums.wait_context_tokens) / mirror.kv_tokens
    out[25] = 0.2 * np.log(max(1.0, sums.run_left_tokens * per_run))
    out[26] = sums.run_room * per_run
    out[27] = sums.run_banked * per_run
    out[28] = np.log(slow_factor)
    out[31] = sums.held_tokens / mirror.kv_tokens


@compiled
def fill_features(out, mirror, rows, residuals, latency, now_s, knobs, sums):
    """Fill the features of a replica for the request behind its mirror's last row.

    Shapes: `out` float32 [NUM_FEATURES]; `rows` ROW_DTYPE [S]; `residuals` float64 [priorities,
    NUM_LENGTH_BINS], mean tokens left by tokens so far; `latency` is the nominal coefficients,
    their table of layer times, the slow factor measured, the stretch of TPOT by prefill, and the
    share of KV in use by the last page;
    `knobs` is a KNOBS_DTYPE record, `sums` a SUMS_DTYPE one, scratch.
    """
    new = rows[mirror.num_rows]
    count_rows(sums, mirror, rows)
    _time(sums, mirror, new, latency, now_s, knobs)
    _judge_running(sums, mirror, rows, residuals, new, knobs)
    ahead_tokens = _judge_waiting(sums, mirror, rows, residuals, new, knobs, now_s)
    own_tokens = knobs.value_length * residuals[min(new.priority, 1), 0]
    _write_own(out, sums, mirror, new, (ahead_tokens, own_tokens), now_s, knobs)
    _write_others(out, sums, mirror, new, latency[2])
    for i in range(NUM_FEATURES):
        out[i] = min(FEATURE_LIMIT, max(-FEATURE_LIMIT, out[i]))


__all__ = [
    "FEATURE_LIMIT",
    "FEATURE_NAMES",
    "NUM_FEATURES",
    "OWN_MET",
    "RUN_DOUBT",
    "RUN_DOUBT_WITH",
    "RUN_LOSS",
    "SUMS_DTYPE",
    "WAIT_LOSS",
    "chance",
    "chunk_room",
    "count_rows",
    "fill_features",
    "ramp",
]
