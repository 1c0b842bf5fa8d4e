"""What a gateway counts of its connections and answers.

Does not know: requests' tokens or choices (`dispatcher/totals.py`).
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class GatewayCounts:
    """Counters since the start, and the connections of this moment."""

    connections: int = 0
    """Open now."""
    num_connections: int = 0
    num_connections_refused: int = 0
    num_requests: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    """Answers by HTTP status."""
    num_retries: int = 0
    """Requests sent to another replica."""
    num_evicted: int = 0
    """Of these, for the silence of a replica."""
    num_aborts: int = 0
    """Clients that went away before their answer was whole."""
    num_cut: int = 0
    """Answers that ended before they were whole."""
    num_timeouts: int = 0
    """Requests whose deadline passed."""
    num_slow_clients: int = 0
    """Connections closed because a client was slow to send or to read."""
    num_malformed: int = 0
    """Requests that were no proper HTTP."""
    num_faults: int = 0
    """Requests ended by an error of this program's own; each is in the log."""
    num_connects: int = 0
    num_connect_failures: int = 0
    body_bytes_in: int = 0
    body_bytes_out: int = 0

    def count_answer(self, status: int) -> None:
        """Count an answer."""
        self.answers[status] = self.answers.get(status, 0) + 1
