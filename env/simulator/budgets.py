"""Budgets at dispatch: a request is charged to its group once, when it first comes.

It costs its prompt and what is expected of its answer, of all its sequences, after an emergency
has cut it. All gateways share a group's budget. What is refused for another reason costs nothing.

Does not know: where budgets come from, or how a bucket fills (`..budget`).
"""

from ..budget import give_back, has_budget, take_from_bucket
from ..compiled import compiled
from .emergencies import shrink
from .layout import NUM_PRIORITIES
from .memory import buckets_of, gateways_of, groups_of, requests_of
from .queues import waiting_list


@compiled
def charge(sim, index, now_s):
    """Charge a request to its group; return whether it may be served.

    Over budget it is refused, or made a batch request, free of charge, if its group says so.
    """
    request = requests_of(sim)[index]
    query, group = request.query, groups_of(sim)[request.query.group]
    if request.num_dispatches > 0 or not has_budget(group):
        return True
    sequences = 1 + request.extra_sequences
    tokens = query.input_tokens + sequences * query.expected_output_tokens
    if take_from_bucket(buckets_of(sim)[group.budget_group], group, tokens, now_s):
        request.paid_tokens = tokens
        return True
    if group.is_demoting == 0:
        return False
    if query.priority == 0:
        query.priority = NUM_PRIORITIES - 1
        expected = gateways_of(sim)[request.gateway].expected_output_tokens
        query.expected_output_tokens = expected[waiting_list(request)]
        shrink(sim, index)
    return True


@compiled
def refund(sim, index):
    """Give a refused request's group back what it was charged."""
    request = requests_of(sim)[index]
    if request.paid_tokens > 0.0:
        group = groups_of(sim)[request.query.group]
        give_back(buckets_of(sim)[group.budget_group], group, request.paid_tokens)
        request.paid_tokens = 0.0
