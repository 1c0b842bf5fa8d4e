"""Where the newest requests went, by their id; bounded, for whoever asks the admin port.

Does not know: why (`runtime/decision_log` keeps whole decisions).
"""

from collections import OrderedDict
from typing import Any

from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts

# As few as people ask for: what is kept longer is cold when its memory is used again.
_MAX_REQUESTS = 1024


class RecentPlacements:
    """A `DispatchListener` that remembers the newest requests."""

    def __init__(self, names: tuple[str, ...], max_requests: int = _MAX_REQUESTS) -> None:
        """`names` are those of the replicas."""
        self._names, self._max = names, max_requests
        self._found: OrderedDict[str, Placement | Refusal] = OrderedDict()

    def on_placed(self, placement: Placement) -> None:
        """Remember a placement."""
        self._keep(placement.facts.request_id, placement)

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """Remember a refusal."""
        self._keep(facts.request_id, refusal)

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """A placement knows its own end."""

    def _keep(self, request_id: str, what: Placement | Refusal) -> None:
        found = self._found
        found[request_id] = what
        if len(found) > self._max:
            found.popitem(last=False)

    def find(self, request_id: str) -> dict[str, Any] | None:
        """Return what is known of a request, as plain values; None if nothing."""
        what = self._found.get(request_id)
        if what is None:
            return None
        if isinstance(what, Refusal):
            return {"request_id": request_id, "refused": what.code, "message": what.message}
        end = what.end
        return {
            "request_id": request_id,
            "number": what.number,
            "replica": self._names[what.replica],
            "tried": [self._names[replica] for replica in what.tried],
            "hit_tokens": what.hit_tokens,
            "input_tokens": what.facts.input_tokens,
            "predicted_ttft_s": what.predicted_ttft_s,
            "placed_at_s": what.placed_at_s,
            "ending": None if end is None else str(end.ending),
            "status": None if end is None else end.status,
            "output_tokens": None if end is None else end.output_tokens,
        }
