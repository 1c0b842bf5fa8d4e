"""Makes the arrays that a gateway keeps to judge placements by their worth.

Does not know: how placements are judged, or when.
"""

import numpy as np

from .lengths import fill_residuals, prior_lengths
from .mirror import MIRROR_DTYPE, NOBODY, ROW_DTYPE

# Requests that a mirror holds: for each of its engine's slots, beyond that, and at most.
_ROWS_PER_SLOT = 2
_SPARE_ROWS = 128
_MOST_ROWS = 1024


def empty_mirrors(
    max_num_seqs: np.ndarray,
    max_batch_tokens: np.ndarray,
    min_chunk_tokens: np.ndarray | int,
    kv_tokens: np.ndarray,
) -> np.ndarray:
    """Return mirrors of engines with these settings that nothing was sent to.

    Shapes: all [R] -> MIRROR_DTYPE [R].
    """
    mirrors = np.zeros(max_num_seqs.size, dtype=MIRROR_DTYPE)
    mirrors["max_num_seqs"], mirrors["max_batch_tokens"] = max_num_seqs, max_batch_tokens
    mirrors["min_chunk_tokens"], mirrors["kv_tokens"] = min_chunk_tokens, kv_tokens
    mirrors["without_version"] = NOBODY
    return mirrors


def mirror_arrays(
    mirrors: np.ndarray,
    *,
    num_gateways: int,
    num_priorities: int,
    mean_output_tokens: float,
    is_on: bool,
) -> dict[str, np.ndarray]:
    """Return the arrays by their names, next to nothing in them where they are not used.

    `mean_output_tokens` is what answers are taken to be before any has ended.

    Shapes: `mirrors` MIRROR_DTYPE [R].
    """
    slots = int(mirrors["max_num_seqs"].max(initial=0))
    num_rows = min(_ROWS_PER_SLOT * slots + _SPARE_ROWS, _MOST_ROWS) if is_on else 1
    most_tokens = int(mirrors["max_batch_tokens"].max(initial=0)) + slots if is_on else 0
    prior = np.tile(prior_lengths(mean_output_tokens), (num_gateways * num_priorities, 1))
    residuals = np.zeros_like(prior)
    for i in range(prior.shape[0]):
        fill_residuals(residuals[i], prior[i])
    return {
        "mirrors": np.tile(mirrors, num_gateways),
        "mirror_rows": np.zeros((num_gateways * mirrors.size, num_rows), dtype=ROW_DTYPE),
        "length_counts": prior,
        "residuals": residuals,
        "ahead_linear_s": np.full((mirrors.size, most_tokens + 1), np.nan),
    }


__all__ = ["empty_mirrors", "mirror_arrays"]
