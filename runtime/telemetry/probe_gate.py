"""Which samples of a rack's probes are taken: each once, in order, in time, of the right epoch.

Does not know: what is in a sample, or clocks (it is given moments in hub time).
"""

from dataclasses import dataclass
from typing import Final

from .reasons import Reason

_NUM_REMEMBERED: Final = 64
"""Sequence numbers behind the newest, of which it is known whether they came."""
_MAX_RATE_HZ: Final = 1000.0
_MAX_JUMP: Final = 1000
"""A sequence may run ahead by as many as the fastest probe sends in the time, and so many more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a sample's moment may be off."""

    late_s: float = 2.0
    """A sample older than this says nothing of the present."""
    future_s: float = 0.005
    """Beyond the clock's error bound: what the timer of a busy machine may be off."""


@dataclass(slots=True)
class _Probe:
    epoch: int | None = None
    newest: int | None = None
    seen_bits: int = 0
    """Bit i: sequence `newest` - i came."""
    at_s: float = -float("inf")
    received_at_s: float = -float("inf")
    num_time_faults: int = 0


class ProbeGate:
    """Admits samples of the probes of a rack, by index."""

    def __init__(self, num_probes: int, limits: Limits | None = None) -> None:
        self._limits = limits if limits is not None else Limits()
        self._probes = [_Probe() for _ in range(num_probes)]
        self.num_lost = 0
        """Gaps in sequences since it was set to 0."""

    def greet(self, probe: int, epoch: int) -> bool | None:
        """Take the epoch of a hello: True for a new one, False for a known one, None if old.

        A moment that was taken before stays the newest across restarts.
        """
        one = self._probes[probe]
        if one.epoch is not None and epoch <= one.epoch:
            return False if epoch == one.epoch else None
        one.epoch, one.newest, one.seen_bits = epoch, None, 0
        return True

    def order_fault(self, probe: int, epoch: int, sequence: int, now_s: float) -> Reason | None:
        """Return why a sample's place in its sequence forbids to take it; remember that it came."""
        one = self._probes[probe]
        if one.epoch is None or epoch > one.epoch:
            return Reason.UNKNOWN_PROBE  # its hello has not come yet
        if epoch < one.epoch:
            return Reason.OLD_EPOCH
        if one.newest is None:
            one.newest, one.seen_bits = sequence, 1
            return None
        ahead = sequence - one.newest
        if ahead > 0:
            if ahead > _MAX_JUMP + _MAX_RATE_HZ * max(0.0, now_s - one.received_at_s):
                return Reason.UNRELIABLE
            self.num_lost += ahead - 1
            kept = (one.seen_bits << ahead) if ahead < _NUM_REMEMBERED else 0
            one.seen_bits = (kept | 1) & ((1 << _NUM_REMEMBERED) - 1)
            one.newest = sequence
            return None
        if -ahead < _NUM_REMEMBERED and not one.seen_bits >> -ahead & 1:
            one.seen_bits |= 1 << -ahead
            return Reason.OUT_OF_ORDER
        return Reason.DUPLICATE if -ahead < _NUM_REMEMBERED else Reason.OUT_OF_ORDER

    def admit(
        self, probe: int, at_s: float, error_bound_s: float, received_at_s: float
    ) -> float | Reason:
        """Return the moment that a sample counts for, or why it does not count.

        Moments of a probe never go back: within the clock's error a sample counts for just after
        the one before it, beyond it is refused.
        """
        one = self._probes[probe]
        slack_s = error_bound_s + self._limits.future_s
        fault = None
        if at_s > received_at_s + slack_s:
            fault = Reason.FROM_FUTURE
        elif at_s < received_at_s - self._limits.late_s:
            fault = Reason.LATE
        elif at_s <= one.at_s - slack_s:
            fault = Reason.OUT_OF_ORDER
        if fault is not None:
            one.num_time_faults += 1
            return fault
        one.num_time_faults = 0
        one.at_s = max(min(at_s, received_at_s), one.at_s + 1e-6)
        one.received_at_s = received_at_s
        return one.at_s

    def num_time_faults(self, probe: int) -> int:
        """Return how many samples in a row were refused for their moment."""
        return self._probes[probe].num_time_faults
