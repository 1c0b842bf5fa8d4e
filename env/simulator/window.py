"""What happened in one window, counted in one pass over the requests.

Does not know: what a count is used for.
"""

import numpy as np

from ..compiled import compiled
from .layout import FAILED, FINISHED, NUM_PRIORITIES, SHED
from .memory import fleet_of, requests_of

# Places in the totals of a window.
NUM_FINISHED, NUM_SHED, NUM_FAILED, CREDIT, ARRIVED_WEIGHT = range(5)
# Columns of a tenant's totals.
ARRIVED, INPUT_TOKENS, REFUSED, WITH_TOKEN, LATE, ENDED, MISSED, TTFT_LIMIT, TPOT_LIMIT = range(9)
NUM_COLUMNS = 9


@compiled
def meets_limits(request):
    """Whether a request finished within both its limits; the definition of `kpis.is_met`."""
    if request.status != FINISHED:
        return False
    if not request.first_token_s - request.arrival_s <= request.query.ttft_slo_s:
        return False
    later = request.output_tokens - 1
    if later <= 0:
        return request.query.tpot_slo_s >= 0.0
    return (request.finish_s - request.first_token_s) / later <= request.query.tpot_slo_s


@compiled
def _tenant_row(request, tenants):
    return tenants[min(request.query.priority, NUM_PRIORITIES - 1)]


@compiled
def _add_ended(request, totals, tenants):
    if request.status == FINISHED:
        tenant = _tenant_row(request, tenants)
        totals[NUM_FINISHED] += 1.0
        tenant[ENDED] += 1.0
        if meets_limits(request):
            totals[CREDIT] += request.weight * request.worth_frac
        else:
            tenant[MISSED] += 1.0
    elif request.status == SHED:
        totals[NUM_SHED] += 1.0
    elif request.status == FAILED:
        totals[NUM_FAILED] += 1.0


@compiled
def _add_arrived(request, tenants):
    tenant = _tenant_row(request, tenants)
    tenant[ARRIVED] += 1.0
    tenant[INPUT_TOKENS] += request.query.input_tokens
    tenant[TTFT_LIMIT] += request.query.ttft_slo_s
    tenant[TPOT_LIMIT] += request.query.tpot_slo_s
    tenant[REFUSED] += 1.0 if request.status == SHED else 0.0
    if np.isfinite(request.first_token_s):
        tenant[WITH_TOKEN] += 1.0
        ttft_s = request.first_token_s - request.arrival_s
        tenant[LATE] += 1.0 if ttft_s > request.query.ttft_slo_s else 0.0


@compiled
def window_totals(handle, start_s, first, num_settled):
    """Return (totals [5], tenants [NUM_PRIORITIES, 9], number settled) of a window up to now.

    It began at `start_s`, when `first` was the next request to arrive, and of the requests before
    `num_settled` all had ended; the last result is that number for the next window.
    """
    fleet, requests = fleet_of(handle[0]), requests_of(handle[0])
    totals, tenants = np.zeros(5), np.zeros((NUM_PRIORITIES, NUM_COLUMNS))
    is_settled = True
    for row in range(num_settled, fleet.next_arrival):
        request = requests[row]
        is_over = request.finish_s <= fleet.now_s
        is_settled = is_settled and is_over
        num_settled += 1 if is_settled else 0
        # A refusal at the very start of the window belongs to it: its arrival does.
        if is_over and (row >= first or request.finish_s > start_s):
            _add_ended(request, totals, tenants)
        if row >= first:
            totals[ARRIVED_WEIGHT] += request.weight
            _add_arrived(request, tenants)
    return totals, tenants, num_settled
