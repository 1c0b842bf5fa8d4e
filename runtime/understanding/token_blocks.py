"""Chained hashes of token ids: what a prefix is called, whoever names it.

The chain runs over the tokens, and a block's hash is the state of the chain at its last token. So
the hash of the first 128 tokens is the same whether they are one block or eight: an engine whose
blocks are larger or smaller than the gateway's is understood all the same.

    state = seed;  for each token: state = mix64(state ^ token);  after each full block: a hash

Does not know: where token ids come from, or who holds a block.
"""

import hashlib

import numpy as np
import numpy.typing as npt
from numba import njit

from ...traces.hashing import mix64

TokenIds = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

NO_ADAPTER = np.uint64(0)
"""Where the chain of a prompt begins that is for no adapter."""


@njit(cache=True, nogil=True)
def token_block_hashes(
    token_ids: TokenIds, block_tokens: int, seed: np.uint64 = NO_ADAPTER
) -> UInt64Array:
    """Return the hash of each full block of a prompt; what is left over has none.

    Shapes: token_ids int64 [T]; result [T // block_tokens].
    """
    out = np.empty(token_ids.size // block_tokens, np.uint64)
    state = np.uint64(seed)
    for block in range(out.size):
        for k in range(block * block_tokens, (block + 1) * block_tokens):
            state = mix64(state ^ np.uint64(token_ids[k]))
        out[block] = state
    return out


def adapter_seed(adapter: str | None) -> np.uint64:
    """Return where the chain of an adapter's prompts begins: its KV is nobody else's."""
    if adapter is None:
        return NO_ADAPTER
    digest = hashlib.blake2b(adapter.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))
