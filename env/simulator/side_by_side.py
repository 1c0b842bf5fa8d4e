"""Many fleets advanced in one call. The compiled loops run without the GIL, so threads help.

Does not know: what the fleets have in common; each keeps its own clock.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from itertools import pairwise

import numpy as np

from ..compiled import compiled
from .fleet_loop import num_open, run_until
from .memory import fleet_of

# Parts that the fleets are cut into for each worker, so that a slow one does not hold up the rest.
_PARTS_PER_WORKER = 4


@compiled
def run_many(handles, until_s):
    """Run each fleet up to its own moment. Shapes: HANDLE_DTYPE [n], float64 [n]."""
    for i in range(handles.size):
        run_until(handles[i : i + 1], until_s[i])


@compiled
def drain_many(handles, deadline_s, step_s):
    """Run each fleet on, step by step, until nothing is open or its deadline is reached.

    Shapes: HANDLE_DTYPE [n], float64 [n], scalar.
    """
    for i in range(handles.size):
        one = handles[i : i + 1]
        while num_open(one) > 0 and fleet_of(one[0]).now_s < deadline_s[i]:
            run_until(one, fleet_of(one[0]).now_s + step_s)


def over_parts(
    run: Callable[[np.ndarray, np.ndarray], None],
    handles: np.ndarray,
    until_s: np.ndarray,
    pool: Executor | None,
    num_workers: int,
) -> None:
    """Call a function on all fleets at once, or part by part on the threads of a pool."""
    num_parts = min(handles.size, _PARTS_PER_WORKER * num_workers)
    if pool is None or num_workers < 2 or num_parts < 2:
        run(handles, until_s)
        return
    edges = np.linspace(0, handles.size, num_parts + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(edges)]
    for _ in pool.map(lambda part: run(handles[part], until_s[part]), parts):
        pass
