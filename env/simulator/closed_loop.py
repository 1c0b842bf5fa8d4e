"""A closed loop of clients: so many requests in flight, and the next when one of them ends.

The moment at which a request ends on a lazily advanced replica has to be an event of its own then,
because something new happens at it. In an open loop nothing here costs more than a comparison.

Does not know: where a request goes, or why it ended.
Source: the client of serving benchmarks (vLLM's `--max-concurrency`, InferenceMAX).
"""

import numpy as np

from ..compiled import compiled
from .memory import fleet_of, requests_of


@compiled
def on_end(sim, now_s):
    """Let the next held request arrive, in place of one that finished, failed or was shed."""
    fleet = fleet_of(sim)
    if fleet.next_release < sim.num_requests:
        requests_of(sim)[fleet.next_release].arrival_s = now_s + fleet.closed_loop_gap_s
        fleet.next_release += 1


@compiled
def holds_back(sim):
    """Whether requests wait for others to end, so that no replica's change may be missed."""
    return fleet_of(sim).next_release < sim.num_requests


def hold_back(requests: np.ndarray, num_clients: int) -> int:
    """Let the first requests arrive at 0 and hold the others; return the index of the first held.

    With 0 clients the loop is open, and nothing is held. Shapes: `requests` REQUEST_DTYPE [N],
    changed in place.
    """
    if num_clients == 0:
        return int(requests.size)
    requests["arrival_s"][:num_clients] = 0.0
    requests["arrival_s"][num_clients:] = np.inf
    return min(num_clients, int(requests.size))
