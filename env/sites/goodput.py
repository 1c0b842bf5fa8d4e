"""Goodput: what an episode is judged by.

Does not know: episodes.
"""

import numpy as np

from ..kpis import is_met


def goodput(requests: np.ndarray) -> float:
    """Return the weighted share of requests that met both limits; one refused is a miss.

    Shapes: REQUEST_DTYPE [N], as of a drained fleet; 0 for none.
    """
    weights = requests["weight"]
    met = (weights * requests["worth_frac"])[is_met(requests)].sum()
    return float(met / weights.sum()) if weights.size else 0.0
