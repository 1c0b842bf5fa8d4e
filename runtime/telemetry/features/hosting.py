"""What GPUs and replicas say of each other: KV in a GPU's memory, energy of a token.

Does not know: how the features of either were derived.
"""

import numpy as np

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import column
from .rack_constants import ReplicaConstants
from .readings import ScopeStatistics, last, rate

# Below this rate a replica does not produce tokens: its energy is not theirs.
_LEAST_TOKENS_PER_S = 1e-3


def masked_mean(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Return means over what is known: [S, R, G] weights, [S, G] values to [S, R]."""
    known = np.isfinite(values)
    totals = np.einsum("srg,sg->sr", weights, np.where(known, values, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = totals / np.einsum("srg,sg->sr", weights, known)
    return mean


class Hosting:
    """Fills the features of GPUs that their replicas tell of, and the other way.

    Shapes: `gpus` [S, G, features], `replicas` [S, R, features].
    """

    def __init__(self, constants: ReplicaConstants) -> None:
        self._hosts = constants.hosts
        self._kv_token_bytes = constants.kv_token_bytes
        self._is_hosting = constants.hosts.any(axis=1)  # [S, G]

    def fill(
        self,
        gpus: FloatArray,
        replicas: FloatArray,
        gpu_statistics: ScopeStatistics,
        replica_statistics: ScopeStatistics,
    ) -> None:
        """Fill in place."""
        replicas[..., column(Node.REPLICA, "hbm_bandwidth_frac")] = masked_mean(
            self._hosts, gpus[..., column(Node.GPU, "hbm_bandwidth_frac")]
        )
        self._fill_kv(gpus, replicas, replica_statistics)
        self._fill_energy(gpus, replicas, gpu_statistics)

    def _fill_kv(self, gpus: FloatArray, replicas: FloatArray, statistics: ScopeStatistics) -> None:
        page_bytes = statistics.of(last("kv_page_tokens")) * self._kv_token_bytes
        pool_bytes = page_bytes * replicas[..., column(Node.REPLICA, "kv_pages")]
        used_bytes = page_bytes * replicas[..., column(Node.REPLICA, "active_kv_pages")]
        hbm_bytes = gpus[..., column(Node.GPU, "hbm_bytes")]
        gpus[..., column(Node.GPU, "kv_pool_frac")] = self._summed(pool_bytes) / hbm_bytes
        gpus[..., column(Node.GPU, "kv_used_frac")] = self._summed(used_bytes) / hbm_bytes

    def _fill_energy(
        self, gpus: FloatArray, replicas: FloatArray, statistics: ScopeStatistics
    ) -> None:
        """Energy of all of a replica's GPUs over its tokens; the same for each of the GPUs."""
        tokens = replicas[..., column(Node.REPLICA, "prompt_tokens_per_s")]
        tokens = tokens + replicas[..., column(Node.REPLICA, "output_tokens_per_s")]
        watts = masked_mean(self._hosts, statistics.of(rate("energy_joules")))
        watts = watts * self._hosts.sum(axis=2)
        joules = watts / np.where(tokens > _LEAST_TOKENS_PER_S, tokens, np.nan)  # [S, R]
        of_gpu = masked_mean(self._hosts.transpose(0, 2, 1), joules)
        gpus[..., column(Node.GPU, "joules_per_token")] = of_gpu

    def _summed(self, values: FloatArray) -> FloatArray:
        """Return sums over each GPU's replicas, [S, R] to [S, G]; NaN where it serves none."""
        hosted = np.where(self._hosts > 0, values[..., None], 0.0).sum(axis=1)
        return np.where(self._is_hosting, hosted, np.nan)
