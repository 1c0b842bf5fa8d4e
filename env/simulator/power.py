"""Energy of a replica's iterations and idle time, and what a power cap does to its iterations.

Does not know: where the powers come from (`..energy`), or what the energy costs (`tariff.py`).
"""

from ..compiled import compiled
from ..energy import BATCH_POWER_FRAC, MOST_BATCH, clock_frac, clocked_w
from ..latency import NUM_GEMMS, linear_time_s, other_time_s, position_time_s
from .memory import actual_of, replicas_of, throttled_of


@compiled
def demanded_w(sim, r, seqs, chunk):
    """Return the power of an iteration at full clock."""
    replica = replicas_of(sim)[r]
    power_w = replica.decode_w
    range_w = replica.decode_range_w / replica.share_factor
    power_w += range_w * BATCH_POWER_FRAC[min(seqs, MOST_BATCH)]
    if chunk > 0:
        share = min(1.0, chunk / replica.max_batch_tokens)
        power_w += share * (replica.prefill_w - power_w)
    return power_w


@compiled
def spend(sim, r, seqs, chunk, span_s):
    """Book the energy of iterations of one kind."""
    replica = replicas_of(sim)[r]
    power_w = demanded_w(sim, r, seqs, chunk)
    if power_w > replica.power_cap_w:
        clock = clock_frac(replica.idle_w, power_w, replica.power_cap_w)
        power_w = clocked_w(replica.idle_w, power_w, clock)
    replica.energy_j += power_w * span_s
    if chunk > 0:
        replica.prefill_j += power_w * span_s


@compiled
def stand_by(sim, r, span_s):
    """Book the energy of a span in which nothing runs; a negative span takes some back."""
    replica = replicas_of(sim)[r]
    replica.energy_j += replica.idle_w * span_s
    replica.idle_j += replica.idle_w * span_s


@compiled
def throttle(sim, r, seqs, chunk, positions):
    """Note what the cap adds to an iteration's time, and to each next one's of a jump."""
    replica, c, t = replicas_of(sim)[r], actual_of(sim)[r], throttled_of(sim)[r]
    clock = clock_frac(replica.idle_w, demanded_w(sim, r, seqs, chunk), replica.power_cap_w)
    replica.throttled_first_s = 0.0
    replica.throttled_slope_s = 0.0
    if clock == 1.0:
        return
    for i in range(NUM_GEMMS):
        t.gemm_token_s[i] = c.gemm_token_s[i] / clock
    t.expert_token_s = c.expert_token_s / clock
    t.head_seq_s = c.head_seq_s / clock
    t.prefill_attention_s = c.prefill_attention_s / clock
    t.window_attention_s = c.window_attention_s / clock
    tokens = float(chunk + seqs)
    replica.throttled_first_s = linear_time_s(t, tokens) - linear_time_s(c, tokens)
    replica.throttled_first_s += other_time_s(t, chunk, positions, seqs)
    replica.throttled_first_s -= other_time_s(c, chunk, positions, seqs)
    slope_s = (position_time_s(t, chunk) - position_time_s(c, chunk)) * float(chunk) * chunk
    replica.throttled_slope_s = slope_s
