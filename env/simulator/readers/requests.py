"""What the gateway's own record of requests says: a window's timings and counts, what is open.

Percentiles are exact, of the window's values, linear between two of them.

Does not know: engines. Everything here passes through the gateway.
"""

import numpy as np

from ...compiled import compiled
from ...state.feature import Node
from ...state.registry import column
from ...state.service_features import INPUT_BINS_TOKENS
from ..layout import FAILED, FINISHED, NUM_PRIORITIES, PENDING, SHED
from ..memory import fleet_of, gateways_of, requests_of
from .distributions import grouped, mean_of, percentile, variation

_R_TTFT_P50 = column(Node.REPLICA, "ttft_p50_s")
_R_TTFT_P99 = column(Node.REPLICA, "ttft_p99_s")
_R_TPOT_MEAN = column(Node.REPLICA, "tpot_mean_s")
_R_TPOT_P99 = column(Node.REPLICA, "tpot_p99_s")
_R_LATE = column(Node.REPLICA, "late_frac")
_R_RISK = column(Node.REPLICA, "sla_risk_frac")
_R_HOLD = column(Node.REPLICA, "hold_s")

_T_CV = column(Node.TENANT, "interarrival_cv")
_T_GAP_P99 = column(Node.TENANT, "interarrival_p99_s")
_T_BINS = column(Node.TENANT, f"input_le_{INPUT_BINS_TOKENS[0]}_frac")
_T_EXPECTED = column(Node.TENANT, "expected_output_tokens")
_T_OUTPUT_P10 = column(Node.TENANT, "output_p10_tokens")
_T_OUTPUT_P90 = column(Node.TENANT, "output_p90_tokens")
_T_HOLD = column(Node.TENANT, "hold_s")
_T_REUSE = column(Node.TENANT, "prefix_reuse_frac")
_T_RISK = column(Node.TENANT, "sla_risk_frac")
_T_TTFT_P50 = column(Node.TENANT, "ttft_p50_s")
_T_TTFT_P99 = column(Node.TENANT, "ttft_p99_s")
_T_TPOT_MEAN = column(Node.TENANT, "tpot_mean_s")
_T_TPOT_P99 = column(Node.TENANT, "tpot_p99_s")
_T_OUTSTANDING = column(Node.TENANT, "outstanding_requests")
_T_WAITING = column(Node.TENANT, "waiting_requests")
_T_WEIGHT = column(Node.TENANT, "priority_weight")

_F_OUTSTANDING = column(Node.FLEET, "outstanding_requests")
_F_LATE = column(Node.FLEET, "late_frac")

# A request without a token is at risk once it has used up this share of its limit.
RISK_FRAC = 0.5
# Columns of what is open on each replica, for each tenant: no token yet, all, at risk.
_WAITS, _OPEN, _AT_RISK = range(3)


@compiled
def _tenant_of(request):
    return min(request.query.priority, NUM_PRIORITIES - 1)


@compiled
def fill_open(handle, first, end, tables, waits_on):
    """Fill what is open among the requests from `first` to before `end`, by tenant and replica.

    Shapes: `tables` the features of replicas, tenants and the fleet, written; `waits_on`
    [tenants x R, 2], the attributes of the edges, written.
    """
    rows, tenants, fleet_row = tables
    sim, num_replicas = handle[0], rows.shape[0]
    now_s = fleet_of(sim).now_s
    counts = np.zeros((NUM_PRIORITIES, num_replicas, 3))
    for i in range(first, end):
        request = requests_of(sim)[i]
        if request.status in (FINISHED, SHED, FAILED, PENDING):
            continue
        count = counts[_tenant_of(request), request.replica]
        count[_OPEN] += 1.0
        if not np.isfinite(request.first_token_s):
            count[_WAITS] += 1.0
            limit_s = RISK_FRAC * request.query.ttft_slo_s
            count[_AT_RISK] += 1.0 if now_s - request.arrival_s > limit_s else 0.0
    total = 0.0
    for k in range(NUM_PRIORITIES):
        num_open, num_waiting, num_at_risk = 0.0, 0.0, 0.0
        for r in range(num_replicas):
            waits_on[k * num_replicas + r, 0] = counts[k, r, _WAITS]
            waits_on[k * num_replicas + r, 1] = counts[k, r, _OPEN]
            num_open += counts[k, r, _OPEN]
            num_waiting += counts[k, r, _WAITS]
            num_at_risk += counts[k, r, _AT_RISK]
        tenants[k, _T_OUTSTANDING], tenants[k, _T_WAITING] = num_open, num_waiting
        tenants[k, _T_RISK] = num_at_risk / num_waiting  # NaN where none waits
        tenants[k, _T_EXPECTED] = _expected_tokens(sim, k)
        total += num_open
    for r in range(num_replicas):
        num_waiting, num_at_risk = 0.0, 0.0
        for k in range(NUM_PRIORITIES):
            num_waiting += counts[k, r, _WAITS]
            num_at_risk += counts[k, r, _AT_RISK]
        rows[r, _R_RISK] = num_at_risk / num_waiting
    fleet_row[0, _F_OUTSTANDING] = total


@compiled
def _expected_tokens(sim, k):
    """Return the moving average of output lengths, the mean over gateways."""
    total = 0.0
    for g in range(sim.num_gateways):
        total += gateways_of(sim)[g].expected_output_tokens[k]
    return total / sim.num_gateways


@compiled
def fill_arrivals(handle, first, end, tenants):
    """Fill what the arrivals from `first` to before `end` were like.

    Shapes: `tenants` [tenants, features], written where there were arrivals.
    """
    sim, num = handle[0], max(0, end - first)
    num_bins = len(INPUT_BINS_TOKENS) + 1
    counts, weights = np.zeros(NUM_PRIORITIES), np.zeros(NUM_PRIORITIES)
    bins, last_s = np.zeros((NUM_PRIORITIES, num_bins)), np.full(NUM_PRIORITIES, np.nan)
    gaps_s, owners, num_gaps = np.empty(num), np.empty(num, np.int64), 0
    for i in range(first, end):
        request = requests_of(sim)[i]
        k = _tenant_of(request)
        counts[k] += 1.0
        weights[k] += request.weight
        place = 0
        while place < num_bins - 1 and request.query.input_tokens > INPUT_BINS_TOKENS[place]:
            place += 1
        bins[k, place] += 1.0
        if np.isfinite(last_s[k]):
            gaps_s[num_gaps], owners[num_gaps] = request.arrival_s - last_s[k], k
            num_gaps += 1
        last_s[k] = request.arrival_s
    sorted_s, starts = grouped(owners[:num_gaps], gaps_s[:num_gaps], NUM_PRIORITIES)
    for k in range(NUM_PRIORITIES):
        if counts[k] > 0.0:
            tenants[k, _T_WEIGHT] = weights[k] / counts[k]
            for b in range(num_bins):
                tenants[k, _T_BINS + b] = bins[k, b] / counts[k]
        own_s = sorted_s[starts[k] : starts[k + 1]]
        tenants[k, _T_CV] = variation(own_s)
        tenants[k, _T_GAP_P99] = percentile(own_s, 0.99)


@compiled
def fill_first_tokens(handle, rows_range, span, tables):
    """Fill what the first tokens of the window were like.

    Shapes: `rows_range` (first, end) of the requests that may have had one; `span` (start_s,
    end_s); `tables` the features of replicas, tenants and the fleet, written.
    """
    rows, tenants, fleet_row = tables
    sim, num_replicas = handle[0], rows.shape[0]
    num = max(0, rows_range[1] - rows_range[0])
    ttft_s, places, owners = np.empty(num), np.empty(num, np.int64), np.empty(num, np.int64)
    late = np.zeros((num_replicas, 2))
    tokens = np.zeros((NUM_PRIORITIES, 2))
    count = 0
    for i in range(rows_range[0], rows_range[1]):
        request = requests_of(sim)[i]
        if not (span[0] < request.first_token_s <= span[1]):
            continue
        r, k = request.replica, _tenant_of(request)
        ttft_s[count], places[count], owners[count] = request.first_token_s, r, k
        ttft_s[count] -= request.arrival_s
        late[r, 0] += 1.0
        late[r, 1] += 1.0 if ttft_s[count] > request.query.ttft_slo_s else 0.0
        tokens[k, 0] += request.query.input_tokens
        tokens[k, 1] += request.hit_tokens
        count += 1
    by_replica, starts = grouped(places[:count], ttft_s[:count], num_replicas)
    for r in range(num_replicas):
        own_s = by_replica[starts[r] : starts[r + 1]]
        rows[r, _R_TTFT_P50] = percentile(own_s, 0.5)
        rows[r, _R_TTFT_P99] = percentile(own_s, 0.99)
        rows[r, _R_LATE] = late[r, 1] / late[r, 0]  # NaN where none came
    by_tenant, starts = grouped(owners[:count], ttft_s[:count], NUM_PRIORITIES)
    for k in range(NUM_PRIORITIES):
        own_s = by_tenant[starts[k] : starts[k + 1]]
        tenants[k, _T_TTFT_P50] = percentile(own_s, 0.5)
        tenants[k, _T_TTFT_P99] = percentile(own_s, 0.99)
        tenants[k, _T_REUSE] = tokens[k, 1] / tokens[k, 0]
    fleet_row[0, _F_LATE] = late[:, 1].sum() / late[:, 0].sum()


@compiled
def fill_ended(handle, rows_range, span, tables):
    """Fill what the requests that finished in the window were like; arguments as above."""
    rows, tenants, _ = tables
    sim, num_replicas = handle[0], rows.shape[0]
    num = max(0, rows_range[1] - rows_range[0])
    tpot_s, outputs = np.empty(num), np.empty(num)
    places, owners = np.empty(num, np.int64), np.empty(num, np.int64)
    # Sum and number of holding times.
    of_replicas, of_tenants = np.zeros((num_replicas, 2)), np.zeros((NUM_PRIORITIES, 2))
    count = 0
    for i in range(rows_range[0], rows_range[1]):
        request = requests_of(sim)[i]
        if request.status != FINISHED or not (span[0] < request.finish_s <= span[1]):
            continue
        r, k, later = request.replica, _tenant_of(request), request.output_tokens - 1
        decode_s = request.finish_s - request.first_token_s
        tpot_s[count] = decode_s / later if later > 0 else np.nan
        outputs[count] = request.output_tokens
        places[count], owners[count] = r, k
        for sums in (of_replicas[r], of_tenants[k]):
            sums[0] += request.finish_s - request.arrival_s
            sums[1] += 1.0
        count += 1
    by_replica, starts = grouped(places[:count], tpot_s[:count], num_replicas)
    for r in range(num_replicas):
        own_s = by_replica[starts[r] : starts[r + 1]]
        rows[r, _R_TPOT_MEAN], rows[r, _R_TPOT_P99] = mean_of(own_s), percentile(own_s, 0.99)
        rows[r, _R_HOLD] = of_replicas[r, 0] / of_replicas[r, 1]
    by_tenant, starts = grouped(owners[:count], tpot_s[:count], NUM_PRIORITIES)
    lengths, firsts = grouped(owners[:count], outputs[:count], NUM_PRIORITIES)
    for k in range(NUM_PRIORITIES):
        own_s, own = by_tenant[starts[k] : starts[k + 1]], lengths[firsts[k] : firsts[k + 1]]
        tenants[k, _T_TPOT_MEAN], tenants[k, _T_TPOT_P99] = mean_of(own_s), percentile(own_s, 0.99)
        tenants[k, _T_HOLD] = of_tenants[k, 0] / of_tenants[k, 1]
        tenants[k, _T_OUTPUT_P10], tenants[k, _T_OUTPUT_P90] = (
            percentile(own, 0.1),
            percentile(own, 0.9),
        )
