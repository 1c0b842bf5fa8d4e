"""Which model of a cluster a request is for, by name.

Does not know: replicas or requests beyond their models' names.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..cluster import ClusterSpec
from ..hardware import unknown_name_message
from ..model_version import split_key, version_order


def served_models(cluster: ClusterSpec) -> tuple[str, ...]:
    """Return the models that a cluster serves, in the order of its first replicas of each."""
    return tuple(dict.fromkeys(replica.model for replica in cluster.replicas))


def model_of_names(names: Sequence[str], served: Sequence[str], workload: str) -> np.ndarray:
    """Return the place of each name among the served models, int64 [len(names)].

    A bare name stands for the newest version of it that is served.

    Raises:
        ValueError: a name is not served.
    """
    places = dict(_newest_versions(served)) | {key: place for place, key in enumerate(served)}
    for name in names:
        if name not in places:
            text = unknown_name_message("model", name, served)
            msg = f"workload '{workload}': {text}; map the trace's names with model_map"
            raise ValueError(msg)
    return np.array([places[name] for name in names], dtype=np.int64)


def _newest_versions(served: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the bare names of models with versions and the places of these, the newest last."""
    split = [(*split_key(key), place) for place, key in enumerate(served)]
    found = [(version_order(version), name, place) for name, version, place in split if version]
    for _, name, place in sorted(found):
        yield name, place
