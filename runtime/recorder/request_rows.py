"""Requests between their arrival and the moment at which they are written, in order of arrival.

Does not know: files, threads or clocks.
"""

from dataclasses import dataclass

from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts

# A request that is open while this much later ones arrive is waited for no longer, s.
HOLD_S = 120.0


@dataclass(slots=True)
class RequestRow:
    """One request: noted when it comes, filled when it ends."""

    facts: RequestFacts
    placement: Placement | None = None
    end: RequestEnd | None = None
    refusal: Refusal | None = None
    refused_at_s: float = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether its fate is known."""
        return self.end is not None or self.refusal is not None


class RequestRows:
    """All requests that are not written yet.

    They are told apart by their facts, not by their ids: clients choose those, and may do so twice.
    """

    def __init__(self, max_rows: int) -> None:
        self.num_dropped = 0
        """Requests for which there was no room."""
        self._max_rows = max_rows
        self._rows: dict[int, RequestRow] = {}
        self._newest_at_s = -float("inf")

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, placement: Placement) -> None:
        """Note where a request was sent."""
        row = self._rows.get(id(placement.facts)) or self._new(placement.facts)
        if row is not None:
            row.placement = placement

    def refuse(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """Note that a request was refused, at once or after a replica was lost."""
        row = self._rows.get(id(facts)) or self._new(facts)
        if row is not None:
            row.refusal, row.refused_at_s = refusal, now_s

    def end(self, placement: Placement, end: RequestEnd) -> None:
        """Note how a request ended."""
        row = self._rows.get(id(placement.facts))
        if row is not None:
            row.placement, row.end = placement, end

    def _new(self, facts: RequestFacts) -> RequestRow | None:
        if len(self._rows) >= self._max_rows:
            self.num_dropped += 1
            return None
        self._newest_at_s = max(self._newest_at_s, facts.arrived_at_s)
        # The row keeps the facts, so no others get their id.
        row = self._rows[id(facts)] = RequestRow(facts)
        return row

    def take(self, *, is_last: bool = False) -> list[RequestRow]:
        """Take the requests from the first on that have ended, in order of arrival.

        One that is open holds back those behind it, but no longer than `HOLD_S`, and not if this
        is the last time; written later, it counts as come after them.
        """
        taken = []
        for key, row in list(self._rows.items()):
            if row.is_settled:
                taken.append(self._rows.pop(key))
            elif not is_last and self._newest_at_s - row.facts.arrived_at_s < HOLD_S:
                break
        taken.sort(key=lambda row: row.facts.arrived_at_s)
        return taken
