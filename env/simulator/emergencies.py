"""What emergency actions change in a simulation, compiled.

Does not know: when an action is called for, or which replica or request it should take.
"""

import numpy as np

from ..compiled import compiled
from .due import wake
from .memory import fleet_of, replicas_of, requests_of


@compiled
def shrink(sim, index):
    """Cut a batch request that is dispatched for the first time, if batch requests are cut now.

    It loses the tokens beyond the limit and all sequences but one; its worth falls by the share
    of its tokens that it loses. What its answer would have left in the prefix cache is not there.
    """
    request, most_tokens = requests_of(sim)[index], fleet_of(sim).shrink_tokens
    if most_tokens == np.inf or request.query.priority == 0 or request.num_dispatches > 0:
        return
    sequences = 1 + request.extra_sequences
    tokens = min(request.output_tokens, np.int64(most_tokens))
    if tokens == request.output_tokens and sequences == 1:
        return
    request.worth_frac = tokens / (request.output_tokens * sequences)
    request.output_tokens = tokens
    request.extra_sequences = 0
    request.num_output_blocks = 0
    query = request.query
    query.expected_output_tokens = min(query.expected_output_tokens, most_tokens)


@compiled
def cap_batch_tokens(handle, r, share):
    """Leave a replica a share of its token budget from its next iteration on."""
    sim = handle[0]
    replicas_of(sim)[r].token_budget_frac = share
    wake(sim, r, fleet_of(sim).now_s)
