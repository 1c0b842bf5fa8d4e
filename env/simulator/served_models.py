"""Which model of a cluster a request is for, by name.

Does not know: replicas or requests beyond their models' names.
"""

from collections.abc import Sequence

import numpy as np

from ..cluster import ClusterSpec
from ..hardware import unknown_name_message


def served_models(cluster: ClusterSpec) -> tuple[str, ...]:
    """Return the models that a cluster serves, in the order of its first replicas of each."""
    return tuple(dict.fromkeys(replica.model for replica in cluster.replicas))


def model_of_names(names: Sequence[str], served: Sequence[str], workload: str) -> np.ndarray:
    """Return the place of each name among the served models, int64 [len(names)].

    Raises:
        ValueError: a name is not served.
    """
    for name in names:
        if name not in served:
            text = unknown_name_message("model", name, served)
            msg = f"workload '{workload}': {text}; map the trace's names with model_map"
            raise ValueError(msg)
    return np.array([served.index(name) for name in names], dtype=np.int64)
