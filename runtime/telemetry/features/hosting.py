"""What GPUs and replicas say of each other: KV in a GPU's memory, energy of a token.

Does not know: how the features of either were derived.
"""

import numpy as np

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import column
from .grouping import Grouping
from .rack_constants import ReplicaConstants
from .readings import ScopeStatistics, last, rate

# Below this rate a replica does not produce tokens: its energy is not theirs.
_LEAST_TOKENS_PER_S = 1e-3


class Hosting:
    """Fills the features of GPUs that their replicas tell of, and the other way.

    Shapes: `gpus` [S, G, features], `replicas` [S, R, features].
    """

    def __init__(self, constants: ReplicaConstants) -> None:
        num_servers, num_replicas, num_gpus = constants.hosts.shape
        s, r, g = np.nonzero(constants.hosts)
        gpus, replicas = s * num_gpus + g, s * num_replicas + r
        self._to_replicas = Grouping(gpus, replicas, num_servers * num_replicas)
        self._to_gpus = Grouping(replicas, gpus, num_servers * num_gpus)
        self._kv_token_bytes = constants.kv_token_bytes.ravel()

    def fill(
        self,
        gpus: FloatArray,
        replicas: FloatArray,
        gpu_statistics: ScopeStatistics,
        replica_statistics: ScopeStatistics,
    ) -> None:
        """Fill in place."""
        flat_gpus = gpus.reshape(-1, gpus.shape[-1])
        flat_replicas = replicas.reshape(-1, replicas.shape[-1])
        bandwidth_frac = flat_gpus[:, column(Node.GPU, "hbm_bandwidth_frac")]
        flat_replicas[:, column(Node.REPLICA, "hbm_bandwidth_frac")] = self._to_replicas.means(
            bandwidth_frac
        )
        page_tokens = replica_statistics.of(last("kv_page_tokens")).ravel()
        self._fill_kv(flat_gpus, flat_replicas, page_tokens * self._kv_token_bytes)
        watts = gpu_statistics.of(rate("energy_joules")).ravel()
        self._fill_energy(flat_gpus, flat_replicas, watts)

    def _fill_kv(self, gpus: FloatArray, replicas: FloatArray, page_bytes: FloatArray) -> None:
        hbm_bytes = gpus[:, column(Node.GPU, "hbm_bytes")]
        for name, pages in (("kv_pool_frac", "kv_pages"), ("kv_used_frac", "active_kv_pages")):
            own_bytes = page_bytes * replicas[:, column(Node.REPLICA, pages)]
            gpus[:, column(Node.GPU, name)] = self._to_gpus.sums(own_bytes) / hbm_bytes

    def _fill_energy(self, gpus: FloatArray, replicas: FloatArray, watts: FloatArray) -> None:
        """Energy of all of a replica's GPUs over its tokens; the same for each of the GPUs."""
        tokens = replicas[:, column(Node.REPLICA, "prompt_tokens_per_s")]
        tokens = tokens + replicas[:, column(Node.REPLICA, "output_tokens_per_s")]
        tokens = np.where(tokens > _LEAST_TOKENS_PER_S, tokens, np.nan)
        joules = self._to_replicas.sums(watts) / tokens
        gpus[:, column(Node.GPU, "joules_per_token")] = self._to_gpus.means(joules)
