"""All that is worked out from a prompt's bytes, in one compiled call.

One call in place of five saves more time than the work takes: handing arguments to compiled code
costs some 0.1 us each. Records are therefore handed over by address, and hashes as 63 bits.

Does not know: JSON or requests; what each part works out is written where it is named.
"""

import numpy as np

from ...agents.length_keys import fill_keys
from ...agents.output_length_kernel import NUM_KEYS, NUM_QUANTILES, lengths_at, predict
from ...agents.prompt_clusters import cluster_of, clusters_at
from ...env.compiled import compiled
from .prompt_kernel import NUM_TRAITS, count_traits, hash_blocks, head_hash, session_hash
from .token_estimate import estimate_tokens, tokens_at

NOTES_SIZE = NUM_KEYS + NUM_TRAITS
"""What is kept of a request to learn from its end: its keys, and the bits of its traits."""
# Places of `answer`.
INPUT_TOKENS, CLUSTER, MOST_TOKENS, MEAN = 0, 1, 2, 3
QUANTILES_AT = MEAN + 1
ANSWER_SIZE = QUANTILES_AT + NUM_QUANTILES

_63_BITS = np.uint64(0x7FFFFFFFFFFFFFFF)


@compiled
def understand(prompt, blocks, notes, answer, seed, given, who, addresses):
    """Work out tokens, blocks, cluster and answer length of a prompt; return its session's hash.

    Shapes: `prompt` uint8 [bytes]; `blocks` uint64 [full blocks]; `notes` uint64 [NOTES_SIZE];
    `answer` float64 [ANSWER_SIZE]: input tokens, cluster, most output tokens, then as
    `output_length_kernel.predict` writes. `given` is (session or 0, tokens if counted or 0, cluster
    or -1, limit of output tokens or 0, context of the model, whether it is greedy, where the
    messages begin); `who` (model, tenant, application); `addresses` those of the records (tokens,
    clusters, lengths).
    """
    session, counted, cluster, limit, context, is_greedy, first = given
    hash_blocks(prompt, np.uint64(seed), blocks)
    traits = notes[NUM_KEYS:].view(np.float64)
    count_traits(prompt, traits)
    tokens = float(counted) if counted > 0 else estimate_tokens(tokens_at(addresses[0]), traits)
    if session == 0:
        session = np.int64(session_hash(prompt[first:], np.uint64(seed)) & _63_BITS)
    if cluster < 0:
        cluster = cluster_of(clusters_at(addresses[1]), prompt)
    most_tokens = max(context - tokens, 1.0)
    if limit > 0:
        most_tokens = min(most_tokens, float(limit))
    head = head_hash(prompt, np.uint64(seed))
    shown_limit = -1 - limit if is_greedy else limit
    fill_keys(notes, who[0], who[1], who[2], session, head, tokens, shown_limit, cluster)
    answer[INPUT_TOKENS] = tokens
    answer[CLUSTER] = cluster
    answer[MOST_TOKENS] = most_tokens
    predict(lengths_at(addresses[2]), notes, most_tokens, answer[MEAN:])
    return session
