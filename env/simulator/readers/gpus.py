"""Features of GPUs: what all replicas on each do together.

Does not know: activity and power, which are observed (`observed.py`).
"""

import numpy as np

from ...compiled import compiled
from ...energy import clock_frac
from ...state.feature import Node
from ...state.registry import column
from ..layout import ASLEEP, DOWN, STOPPED
from ..memory import replicas_of
from ..power import demanded_w
from .facts import PRECISIONS
from .totals import (
    BUSY_S,
    COPIED_S,
    DECODED_TOKENS,
    ENERGY_J,
    GENERATED_TOKENS,
    ITERATIONS,
    MEAN_BUSY,
    PREFILL_ITERATIONS,
    PREFILL_S,
    PREFILL_TOKENS,
)
from .traffic import NVLINK_IN, NVLINK_OUT, PCIE_IN, PCIE_OUT
from .work import (
    ATTENTION_FLOPS,
    ITERATION_S,
    MATMUL_FLOPS,
    OVERHEAD_S,
    READ_BYTES,
    SENT_BYTES,
    TENSOR_S,
)

_ACHIEVED = column(Node.GPU, "achieved_flops")
_PEAKS = tuple(column(Node.GPU, f"peak_{precision}_flops") for precision in PRECISIONS)
_OF_PEAKS = tuple(column(Node.GPU, f"{precision}_peak_frac") for precision in PRECISIONS)
_TENSOR = column(Node.GPU, "tensor_activity_frac")
_TENSOR_TREND = column(Node.GPU, "tensor_activity_trend_per_s")
_ACTIVITY = column(Node.GPU, "sm_activity_frac")
_ACTIVITY_TREND = column(Node.GPU, "sm_activity_trend_per_s")
_IDLE_SURGE = column(Node.GPU, "sm_idle_surge_frac")
_NON_MATMUL = column(Node.GPU, "non_matmul_frac")
_PREFILL = column(Node.GPU, "prefill_frac")
_CLOCK = column(Node.GPU, "sm_clock_frac")
_POWER_LIMIT = column(Node.GPU, "power_limit_frac")
_THROTTLE = column(Node.GPU, "power_throttle_frac")
_JOULES = column(Node.GPU, "joules_per_token")
_USED = column(Node.GPU, "hbm_used_frac")
_WEIGHTS = column(Node.GPU, "weights_frac")
_KV_POOL = column(Node.GPU, "kv_pool_frac")
_KV_USED = column(Node.GPU, "kv_used_frac")
_BANDWIDTH = column(Node.GPU, "hbm_bandwidth_frac")
_BANDWIDTH_TREND = column(Node.GPU, "hbm_bandwidth_trend_per_s")
_NVLINK_TX = column(Node.GPU, "nvlink_tx_frac")
_NVLINK_RX = column(Node.GPU, "nvlink_rx_frac")
_PCIE_TX = column(Node.GPU, "pcie_tx_frac")
_PCIE_RX = column(Node.GPU, "pcie_rx_frac")
_IS_USABLE = column(Node.GPU, "is_usable")
_KV_USAGE = column(Node.REPLICA, "kv_usage_frac")

# Sums over the replicas of a GPU: this window's and the last one's shares, then the rest.
(
    _TENSOR_SUM,
    _LAST_TENSOR,
    _READ_SUM,
    _LAST_READ,
    _BUSY_SUM,
    _LAST_BUSY,
    _MEAN_BUSY_SUM,
    _OVERHEAD_SUM,
    _ITERATION_SUM,
    _ENERGY_SUM,
    _TOKEN_SUM,
    _NUM_SUMS,
) = range(12)


@compiled
def fill_moment(handle, facts, gpus, hosts, replicas, rows):
    """Fill what holds at this moment: memory, limits of power, whether a GPU can be used.

    Shapes: `facts` FACTS_DTYPE [R]; `gpus` GPU_DTYPE [G]; `hosts` HOST_DTYPE [H]; `replicas`
    [R, features]; `rows` [G, features], written.
    """
    for g in range(gpus.size):
        rows[g, _IS_USABLE] = rows[g, _POWER_LIMIT] = 1.0
        rows[g, _USED] = rows[g, _WEIGHTS] = rows[g, _KV_POOL] = rows[g, _KV_USED] = 0.0
    for h in range(hosts.size):
        r, row = hosts[h].replica, rows[hosts[h].gpu]
        replica, f = replicas_of(handle[0])[r], facts[r]
        limit_frac = _power_limit_frac(replica, f)
        row[_POWER_LIMIT] = min(row[_POWER_LIMIT], limit_frac)
        if replica.is_up != 0 or replica.is_unnoticed != 0:
            row[_USED] = min(1.0, row[_USED] + f.used_frac)
            row[_WEIGHTS] = min(1.0, row[_WEIGHTS] + f.weights_frac)
            row[_KV_POOL] = min(1.0, row[_KV_POOL] + f.kv_pool_frac)
            row[_KV_USED] += f.kv_pool_frac * replicas[r, _KV_USAGE]
        elif replica.state != STOPPED and replica.state != ASLEEP:
            # On its way up, or lost: how much is in memory is not known.
            row[_USED] = row[_WEIGHTS] = row[_KV_POOL] = row[_KV_USED] = np.nan
            if replica.state == DOWN:
                row[_IS_USABLE] = 0.0


@compiled
def _power_limit_frac(replica, facts):
    """Return the cap on each GPU over its limit, from the cap on the replica (`cap_w`)."""
    if replica.power_cap_w == np.inf:
        return 1.0
    idle_w = facts.num_gpus * (facts.gpu_idle_w + facts.host_w) * facts.gpu_frac
    above_w = (replica.power_cap_w - idle_w) / (facts.num_gpus * facts.compute_frac)
    return (facts.gpu_idle_w + above_w) / facts.tdp_w


@compiled
def _add(sums, row, f, window, last):
    """Add what a replica did in this window and in the last one to its GPU."""
    span_s, added, work, means = window
    last_span_s, last_added, last_work = last
    sums[_TENSOR_SUM] += f.compute_frac * _tensor_frac(added, work, span_s)
    sums[_BUSY_SUM] += f.compute_frac * min(1.0, added[BUSY_S] / span_s)
    sums[_READ_SUM] += work[READ_BYTES] / span_s / f.hbm_bytes_per_s
    if last_span_s > 0.0:
        sums[_LAST_TENSOR] += f.compute_frac * _tensor_frac(last_added, last_work, last_span_s)
        sums[_LAST_BUSY] += f.compute_frac * min(1.0, last_added[BUSY_S] / last_span_s)
        sums[_LAST_READ] += last_work[READ_BYTES] / last_span_s / f.hbm_bytes_per_s
    sums[_MEAN_BUSY_SUM] += f.compute_frac * means[MEAN_BUSY]
    sums[_OVERHEAD_SUM] += work[OVERHEAD_S]
    sums[_ITERATION_SUM] += work[ITERATION_S]
    sums[_ENERGY_SUM] += added[ENERGY_J]
    sums[_TOKEN_SUM] += added[PREFILL_TOKENS] + added[GENERATED_TOKENS]
    matmul_flops = work[MATMUL_FLOPS] / f.num_gpus / span_s
    attention_flops = work[ATTENTION_FLOPS] / f.num_gpus / span_s
    row[_ACHIEVED] += matmul_flops + attention_flops
    for p in range(len(_PEAKS)):
        peak = f.peak_flops[p]
        share = matmul_flops / peak if f.precision == p else 0.0
        share += attention_flops / peak if f.attention_precision == p else 0.0
        if np.isfinite(peak):
            row[_OF_PEAKS[p]] = min(1.0, row[_OF_PEAKS[p]] + share)
    row[_PREFILL] += f.compute_frac * min(1.0, added[PREFILL_S] / span_s)


@compiled
def _tensor_frac(added, work, span_s):
    return min(added[BUSY_S], work[TENSOR_S]) / span_s


@compiled
def _add_traffic(row, f, window, traffic):
    """Add what a replica's GPUs send and get, as shares of what each could."""
    span_s, added, work, _ = window
    sent = work[SENT_BYTES] / span_s
    pcie_out, pcie_in = traffic[PCIE_OUT] / f.num_gpus, traffic[PCIE_IN] / f.num_gpus
    pcie_in += added[COPIED_S] / span_s * f.pcie_copy_bytes_per_s
    if f.nvlink_bytes_per_s > 0.0:
        out = sent + traffic[NVLINK_OUT] / f.num_gpus
        into = sent + traffic[NVLINK_IN] / f.num_gpus
        row[_NVLINK_TX] = min(1.0, row[_NVLINK_TX] + out / f.nvlink_bytes_per_s)
        row[_NVLINK_RX] = min(1.0, row[_NVLINK_RX] + into / f.nvlink_bytes_per_s)
    else:
        pcie_out, pcie_in = pcie_out + sent, pcie_in + sent
    row[_PCIE_TX] = min(1.0, row[_PCIE_TX] + pcie_out / f.pcie_bytes_per_s)
    row[_PCIE_RX] = min(1.0, row[_PCIE_RX] + pcie_in / f.pcie_bytes_per_s)


@compiled
def _clock(sim, r, window):
    """Return the mean clock of the window under the power cap, and the share of time below 1."""
    span_s, added, _, _ = window
    replica = replicas_of(sim)[r]
    if replica.power_cap_w == np.inf or added[ITERATIONS] <= 0.0:
        return 1.0, 0.0
    seqs = np.int64(np.round(added[DECODED_TOKENS] / added[ITERATIONS]))
    clock, throttled = 1.0, 0.0
    prefill_frac = min(1.0, added[PREFILL_S] / span_s)
    decode_frac = max(0.0, min(1.0, added[BUSY_S] / span_s) - prefill_frac)
    for phase in range(2):
        chunk, share = np.int64(0), decode_frac
        if phase == 0:
            num = max(1.0, added[PREFILL_ITERATIONS])
            chunk, share = np.int64(np.ceil(added[PREFILL_TOKENS] / num)), prefill_frac
        power_w = demanded_w(sim, r, seqs, chunk)
        reached = clock_frac(replica.idle_w, power_w, replica.power_cap_w)
        clock -= share * (1.0 - reached)
        throttled += share if reached < 1.0 else 0.0
    return clock, throttled


@compiled
def _begin(gpus, rows):
    """Set what adds up over replicas to 0; what a GPU does not have stays absent."""
    for g in range(gpus.size):
        row = rows[g]
        for i in (_ACHIEVED, _PREFILL, _THROTTLE, _PCIE_TX, _PCIE_RX):
            row[i] = 0.0
        row[_CLOCK] = 1.0
        for p in range(len(_PEAKS)):
            row[_OF_PEAKS[p]] = 0.0 if np.isfinite(row[_PEAKS[p]]) else np.nan
        if gpus[g].nvlink >= 0:
            row[_NVLINK_TX] = row[_NVLINK_RX] = 0.0


@compiled
def fill_window(handle, facts, places, window, last, rows, sums):
    """Fill what GPUs did in the window.

    Shapes: `facts` FACTS_DTYPE [R]; `places` (GPU_DTYPE [G], HOST_DTYPE [H]); `window` (span_s,
    added [R, NUM_TOTALS], works [R, NUM_WORKS], means [R, NUM_MEANS], traffic [R, NUM_TRAFFIC])
    and `last` the first three of the window before it; `rows` [G, features], written; `sums`
    [link nodes, 2], bytes/s of all-reduces out and in, added to.
    """
    gpus, hosts = places
    span_s, added, works, means, traffic = window
    last_span_s, last_added, last_works = last
    shares = np.zeros((gpus.size, _NUM_SUMS))
    _begin(gpus, rows)
    for h in range(hosts.size):
        g, r = hosts[h].gpu, hosts[h].replica
        own = (span_s, added[r], works[r], means[r])
        _add(shares[g], rows[g], facts[r], own, (last_span_s, last_added[r], last_works[r]))
        _add_traffic(rows[g], facts[r], own, traffic[r])
        clock, throttled = _clock(handle[0], r, own)
        rows[g, _CLOCK] = min(rows[g, _CLOCK], clock)
        rows[g, _THROTTLE] = max(rows[g, _THROTTLE], throttled)
        link = gpus[g].nvlink if gpus[g].nvlink >= 0 else gpus[g].pcie
        sums[link, 0] += works[r, SENT_BYTES] / span_s
        sums[link, 1] += works[r, SENT_BYTES] / span_s
    for g in range(gpus.size):
        if gpus[g].replica < 0:
            rows[g, _ACTIVITY] = 0.0
        _finish(shares[g], span_s if last_span_s > 0.0 else 0.0, rows[g])


@compiled
def _finish(sums, trend_s, row):
    """Fill shares and trends from the sums of a GPU; `trend_s` is 0 before a second window."""
    row[_TENSOR] = min(1.0, sums[_TENSOR_SUM])
    row[_BANDWIDTH] = min(1.0, sums[_READ_SUM])
    row[_PREFILL] = min(1.0, row[_PREFILL])
    if trend_s > 0.0:
        busy, last_busy = min(1.0, sums[_BUSY_SUM]), min(1.0, sums[_LAST_BUSY])
        row[_TENSOR_TREND] = (row[_TENSOR] - min(1.0, sums[_LAST_TENSOR])) / trend_s
        row[_ACTIVITY_TREND] = (busy - last_busy) / trend_s
        row[_BANDWIDTH_TREND] = (row[_BANDWIDTH] - min(1.0, sums[_LAST_READ])) / trend_s
        row[_IDLE_SURGE] = max(0.0, min(1.0, sums[_MEAN_BUSY_SUM]) - busy)
    if sums[_ITERATION_SUM] > 0.0:
        row[_NON_MATMUL] = min(1.0, sums[_OVERHEAD_SUM] / sums[_ITERATION_SUM])
    if sums[_TOKEN_SUM] > 0.0:
        row[_JOULES] = sums[_ENERGY_SUM] / sums[_TOKEN_SUM]
