"""Requests of a span that broke a limit or were refused: what a scheduler is judged by.

A request counts in a span in which its first token came, or in which it was shed or failed. It is
a violation if that token was late, or if it was refused.

Does not know: states, or the encoder that is to foretell these shares.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..env.simulator.layout import FAILED, NUM_PRIORITIES, SHED
from ..env.state.feature import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Violations:
    """Shares of the requests of a span; NaN where none counts.

    Shapes (T tenants, R replicas): `tenant_frac` [T], `replica_frac` [R]. A request that was
    refused before it was sent belongs to no replica.
    """

    fleet_frac: float
    tenant_frac: FloatArray
    replica_frac: FloatArray


def violations_within(
    requests: np.ndarray, start_s: float, end_s: float, *, num_replicas: int
) -> Violations:
    """Return the shares of violations after `start_s`, up to and with `end_s`.

    Shapes: `requests` REQUEST_DTYPE [arrived].
    """
    first_token_s, over_s = requests["first_token_s"], requests["finish_s"]
    has_token = (first_token_s > start_s) & (first_token_s <= end_s)
    is_refused = np.isin(requests["status"], (SHED, FAILED)) & (over_s > start_s)
    is_refused &= over_s <= end_s
    counted = requests[has_token | is_refused]
    ttft_s = counted["first_token_s"] - counted["arrival_s"]
    is_late = ttft_s > counted["query"]["ttft_slo_s"]  # False for NaN
    is_broken = is_late | is_refused[has_token | is_refused]
    tenant = np.minimum(counted["query"]["priority"].astype(np.int64), NUM_PRIORITIES - 1)
    replica = counted["replica"].astype(np.int64)
    is_sent = replica >= 0
    return Violations(
        fleet_frac=float(_shares(np.zeros(len(counted), np.int64), is_broken, 1)[0]),
        tenant_frac=_shares(tenant, is_broken, NUM_PRIORITIES),
        replica_frac=_shares(replica[is_sent], is_broken[is_sent], num_replicas),
    )


def _shares(owner: NDArray[np.int64], is_broken: NDArray[np.bool_], num: int) -> FloatArray:
    """Return the share of broken ones of each owner, [num]; NaN where an owner has none."""
    total = np.bincount(owner, minlength=num).astype(np.float64)
    broken = np.bincount(owner, weights=is_broken, minlength=num)
    shares = np.full(num, np.nan)
    np.divide(broken, total, out=shares, where=total > 0)
    return shares
