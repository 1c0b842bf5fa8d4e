"""Why a frame or a value was not used, and how often: nothing is lost on this path uncounted.

Does not know: who decides that a frame is bad (`frames.py`, the aggregator, the hub), or what is
logged about it.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType


class Reason(StrEnum):
    """Why something was not used; `meaning` says it in a sentence."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> "Reason":
        """Return the member `value`, which carries its meaning."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    TOO_LARGE = "too_large", "a body larger than any frame may be, refused before it is parsed"
    MALFORMED = "malformed", "bytes that are no frame: not msgpack, a wrong type, an unknown field"
    WRONG_SCHEMA = "wrong_schema", "a frame of another schema version"
    WRONG_SIGNALS = "wrong_signals", "a probe whose table of signals is not ours"
    WRONG_SHAPE = "wrong_shape", "a block of another size than the probe's hello promises"
    UNKNOWN_PROBE = "unknown_probe", "a frame of a probe that is not part of this rack"
    DUPLICATE = "duplicate", "a frame that was taken before"
    OUT_OF_ORDER = "out_of_order", "a frame older than one that was taken before"
    LATE = "late", "a frame sampled too long ago to say anything of the present"
    FROM_FUTURE = "from_future", "a frame sampled after it was received, beyond the clock's error"
    OLD_EPOCH = "old_epoch", "a frame that a probe sent before its latest restart"
    LOST = "lost", "a frame that never came: a gap in a probe's sequence"
    DROPPED = "dropped", "a frame thrown away because its queue or link was full or down"
    NOT_FINITE = "not_finite", "an infinite value, made absent"
    OUT_OF_RANGE = "out_of_range", "a value outside its signal's range, made absent"
    UNRELIABLE = (
        "unreliable",
        "a clock exchange that contradicts those before, or a frame of a probe that lies",
    )


class Counts:
    """How often each reason occurred, in all and by probe.

    Memory is bounded: only probes that were registered have counts of their own, so names that a
    hostile frame makes up never add one.
    """

    def __init__(self, probes: Iterable[str] = ()) -> None:
        self._total: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self._by_probe: dict[str, dict[Reason, int]] = {}
        for probe in probes:
            self.register(probe)

    def register(self, probe: str) -> None:
        """Give a probe counts of its own; one that has them keeps them."""
        self._by_probe.setdefault(probe, {})

    def forget(self, probe: str) -> None:
        """Drop a probe's own counts; the totals keep what it added."""
        self._by_probe.pop(probe, None)

    def add(self, reason: Reason, probe: str | None = None, number: int = 1) -> None:
        """Count `number` occurrences, and for the probe if it is registered.

        Raises:
            ValueError: the number is negative.
        """
        if number < 0:
            msg = f"number must be at least 0, got {number}: counts never go down"
            raise ValueError(msg)
        self._total[reason] += number
        if probe is not None and (own := self._by_probe.get(probe)) is not None:
            own[reason] = own.get(reason, 0) + number

    def __getitem__(self, reason: Reason) -> int:
        return self._total[reason]

    @property
    def total(self) -> int:
        """Occurrences of any reason."""
        return sum(self._total.values())

    @property
    def by_reason(self) -> Mapping[Reason, int]:
        """Occurrences of every reason, those at 0 too."""
        return MappingProxyType(self._total)

    def of_probe(self, probe: str) -> Mapping[Reason, int]:
        """Return the occurrences of one probe, those above 0; empty if it is not registered."""
        return MappingProxyType(self._by_probe.get(probe, {}))

    def __repr__(self) -> str:
        seen = ", ".join(f"{reason}={number}" for reason, number in self._total.items() if number)
        return f"Counts({seen})"
