"""The shield of one fleet: signals and states in, limits of replicas and emergency actions out.

The same for a simulated and a live fleet: it has no clock of its own and does no I/O. Whoever
drives it fills the signals and calls `tick` every 10 ms, `look` with every new state, and hands
`limits` to the fleet when they have changed.

Does not know: who drives it, or policies (`fallback.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...env.cluster import ClusterSpec
from ...env.masks import Mask
from ...env.restrictions import MaskArray, ReplicaLimits, no_limits
from ...env.state.cluster_state import ClusterState
from .alarm import Alarm
from .breaker_rules import BreakerRule
from .breakers import Breakers
from .controller import make_controller, tick
from .emergencies import Emergencies, EmergencyFleet
from .emergency_rules import DEFAULT_RULES, EmergencyRule
from .places import Places, places_of
from .projection import KnobLimits
from .signals import make_signals
from .staleness import DEFAULT_STALENESS, FeatureGroup, StalenessRule, judge_staleness


@dataclass(frozen=True, slots=True, kw_only=True)
class ShieldConfig:
    """All rules of a shield.

    Raises:
        ValueError: a span is not above 0, the state is looked at more often than the controller
            ticks, or a share is out of (0, 1].
    """

    emergencies: tuple[EmergencyRule, ...] = DEFAULT_RULES
    """One rule an emergency action."""
    staleness: tuple[StalenessRule, ...] = DEFAULT_STALENESS
    """What old data means."""
    breakers: tuple[BreakerRule, ...] = ()
    """Circuit breakers."""
    limits: KnobLimits | None = None
    """Limits on the knobs of a policy that has no fallback; None lets all knobs through."""
    tick_s: float = 0.01
    """Time between two looks of the response controller."""
    state_s: float = 0.1
    """Time between two looks of the breakers at the state."""
    window_s: float = 2.0
    """Time between two settings of the knobs: so long before the start the base counts as set."""
    max_silent_frac: float = 0.5
    """Largest share of the replicas that may be masked at a time for silence or for a queue that
    stands still."""

    def __post_init__(self) -> None:
        if not 0 < self.tick_s <= self.state_s:
            msg = f"tick_s must be above 0 and at most state_s ({self.state_s}), got {self.tick_s}"
            raise ValueError(msg)
        if not 0 < self.max_silent_frac <= 1:
            msg = f"max_silent_frac must be in (0, 1], got {self.max_silent_frac}"
            raise ValueError(msg)


class Shield:
    """The rules at work on one fleet, from one thread."""

    def __init__(
        self, config: ShieldConfig, cluster: ClusterSpec, *, places: Places | None = None
    ) -> None:
        """`places` say which replicas are where, if the cluster alone does not."""
        self.config = config
        self.emergencies = Emergencies(config.emergencies)
        """Actions in force, and the record of all."""
        self.alarms: list[Alarm] = []
        """All alarms of the breakers, in order of time."""
        self.barred_s: dict[Mask, float] = {}
        """Replica-seconds barred so far, by reason."""
        self.controller = make_controller(len(cluster.replicas), config.emergencies)
        self.fleet_signals, self.signals = make_signals(len(cluster.replicas))
        self._open = no_limits(cluster)
        self.limits = self._breaker_limits = self._open
        """What each replica may have at this moment."""
        places = places or places_of(cluster)
        self._breakers = Breakers(config.breakers, places) if config.breakers else None
        self._counted_at_s = 0.0
        self.is_any_silent = False
        """Whether a replica gives no sign of life."""
        self._settled_finding: tuple[bytes, bytes] | None = None

    def tick(self, fleet: EmergencyFleet) -> bool:
        """Take the signals of a moment, act, and return whether the limits have changed."""
        tick(self.controller, self.fleet_signals, self.signals)
        return self.obey(fleet)

    def obey(self, fleet: EmergencyFleet) -> bool:
        """Carry out what the last tick called for; return whether the limits have changed."""
        num = int(self.controller.detector.memory["num_transitions"][0])
        if num:
            self.emergencies.obey(self.controller.transitions[:num], fleet)
        if self._finding() == self._settled_finding:
            return False
        return self._settle(float(self.fleet_signals["now_s"][0]))

    def look(self, state: ClusterState) -> Sequence[Alarm]:
        """Let the breakers look at a state; return their alarms, and set `limits`."""
        alarms: Sequence[Alarm] = ()
        if self._breakers is not None:
            step = self._breakers.step(state)
            self._breaker_limits, alarms = step.limits, step.alarms
            self.alarms += alarms
        self._settle(state.now_s)
        return alarms

    def age(self, now_s: float) -> bool:
        """Mask what has grown too old meanwhile; return whether the limits have changed."""
        return self._settle(now_s)

    def _settle(self, now_s: float) -> bool:
        """Put together what bars each replica; return whether it is another than before."""
        self._count_barred(now_s)
        self._settled_finding = finding = self._finding()
        self.is_any_silent = any(finding[0])
        mine, barred = self._breaker_limits, self._silent() | self._stale(now_s)
        limits = ReplicaLimits(
            masks=self._open.masks | mine.masks | barred,
            max_outstanding=mine.max_outstanding,
            penalties=mine.penalties,
        )
        if _are_equal(limits, self.limits):
            return False
        self.limits = limits
        return True

    def _finding(self) -> tuple[bytes, bytes]:
        """Return what the detector finds: the rest that bars replicas is looked at less often."""
        detector = self.controller.detector
        return detector.is_silent.tobytes(), detector.is_stuck.tobytes()

    def _count_barred(self, now_s: float) -> None:
        """Add up for how long replicas were barred, by reason."""
        span_s, self._counted_at_s = now_s - self._counted_at_s, now_s
        if not self.limits.masks.any():
            return
        for reason in Mask:
            count = int(((self.limits.masks & np.uint16(reason)) != 0).sum())
            if count and reason is not Mask.SPILL:
                self.barred_s[reason] = self.barred_s.get(reason, 0.0) + count * span_s

    def _silent(self) -> MaskArray:
        """Mask replicas without a sign of life, and those whose queue stands still."""
        detector = self.controller.detector
        masks = np.zeros(detector.is_silent.size, np.uint16)
        masks[detector.is_stuck != 0] |= np.uint16(Mask.FULL)
        masks[detector.is_silent != 0] |= np.uint16(Mask.UNHEALTHY)
        if (masks != 0).sum() > self.config.max_silent_frac * masks.size:
            return np.zeros_like(masks)
        return masks

    def _stale(self, now_s: float) -> MaskArray:
        ages_s = {FeatureGroup.ENGINE_PAGE: now_s - self.signals["scraped_at_s"]}
        is_serving = self.signals["is_available"] != 0
        return judge_staleness(self.config.staleness, ages_s, is_serving).masks

    @property
    def barred_frac(self) -> float:
        """Share of the replicas to which nothing new may go, the spill tier aside."""
        return float(((self.limits.masks & ~np.uint16(Mask.SPILL)) != 0).mean())


def _are_equal(one: ReplicaLimits, other: ReplicaLimits) -> bool:
    return (
        np.array_equal(one.masks, other.masks)
        and np.array_equal(one.max_outstanding, other.max_outstanding)
        and np.array_equal(one.penalties, other.penalties)
    )
