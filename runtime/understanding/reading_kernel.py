"""All that is worked out from a prompt's bytes, in one compiled call.

One call in place of five saves more time than the work takes: handing arguments to compiled code
costs some 0.1 us each. Records are therefore handed over by address, and hashes as 63 bits.

Does not know: JSON or requests; what each part works out is written where it is named.
"""

from pathlib import Path

import numpy as np

from ...agents.length_keys import fill_keys
from ...agents.output_length_kernel import (
    NUM_KEYS,
    NUM_QUANTILES,
    P90,
    learn,
    lengths_at,
    predict,
)
from ...agents.prompt_clusters import cluster_of, clusters_at
from ...env.compiled import compiled, inlined, source_tag
from .prompt_kernel import NUM_TRAITS, count_traits, hash_blocks, head_hash, session_hash
from .token_estimate import estimate_tokens, learn_tokens, tokens_at

TRAITS_AT = NUM_KEYS
ISSUED_AT = TRAITS_AT + NUM_TRAITS
NUM_NOTES = ISSUED_AT + NUM_QUANTILES
"""Numbers kept of a request to learn from its end, 64 bits each: its keys, the bits of its prompt's
traits, and those of the quantiles that were given for its answer's length."""

_AGENTS = Path(__file__).parents[2] / "agents"
_FILES = [
    *(Path(__file__).with_name(name) for name in ("prompt_kernel.py", "token_estimate.py")),
    *(_AGENTS / name for name in ("length_keys.py", "output_length_kernel.py")),
    *(_AGENTS / name for name in ("prompt_clusters.py", "quick_math.py")),
]
# numba's cache looks at the variables that a function closes over: with this one among them, it
# notices a change in a file that it does not look at.
_SOURCE = int(source_tag(_FILES), 16)
_63_BITS = np.uint64(0x7FFFFFFFFFFFFFFF)


@inlined
def _understand(raw, notes, seed, given, who, addresses):
    """Work out tokens, blocks, cluster and answer length of a prompt.

    Returns (hash of its session, input tokens, cluster, most output tokens, their mean, their 90 %
    quantile).

    Shapes: `raw` the bytes of a prompt; `notes` uint64 [NUM_NOTES + full blocks], whose end takes
    the blocks' hashes. `given` is (session or 0, tokens if counted or 0, cluster or -1, limit of
    output tokens or 0, context of the model, whether it is greedy, where the messages begin); `who`
    (model, tenant, application); `addresses` those of the records (tokens, clusters, lengths).
    """
    session, counted, cluster, limit, context, is_greedy, first = given
    prompt = np.frombuffer(raw, np.uint8)
    hash_blocks(prompt, np.uint64(seed), notes[NUM_NOTES:])
    traits = notes[TRAITS_AT:ISSUED_AT].view(np.float64)
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
    quantiles = notes[ISSUED_AT:NUM_NOTES].view(np.float64)
    mean = predict(lengths_at(addresses[2]), notes, most_tokens, quantiles)
    p90 = quantiles[P90]
    return session, np.int64(tokens + 0.5), cluster, np.int64(most_tokens), mean, p90


@inlined
def _learn_end(notes, prompt_tokens, tokens, cut, most_tokens, addresses):
    """Learn from the tokens that an engine counted in a prompt and its answer, each 0 for unknown.

    An answer that was cut off (`cut`) was at least so long. `addresses` are as for `_understand`.
    """
    if prompt_tokens > 0.0:
        traits = notes[TRAITS_AT:ISSUED_AT].view(np.float64)
        learn_tokens(tokens_at(addresses[0]), traits, prompt_tokens)
    if tokens > 0.0:
        issued = notes[ISSUED_AT:NUM_NOTES].view(np.float64)
        learn(lengths_at(addresses[2]), notes, tokens, cut, most_tokens, issued)


def _entry_points(source):
    """Return the functions that are called from Python, compiled for these sources."""

    @compiled
    def understand(raw, notes, seed, given, who, addresses):
        made_of = source  # noqa: F841
        return _understand(raw, notes, seed, given, who, addresses)

    @compiled
    def learn_end(notes, prompt_tokens, tokens, cut, most_tokens, addresses):
        made_of = source  # noqa: F841
        _learn_end(notes, prompt_tokens, tokens, cut, most_tokens, addresses)

    return understand, learn_end


understand, learn_end = _entry_points(_SOURCE)
