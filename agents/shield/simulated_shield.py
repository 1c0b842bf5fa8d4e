"""The shield around one simulated fleet, at simulated time.

Every 10 ms the response controller looks at what a gateway and probes would see and acts at that
moment; every 100 ms the breakers look at the state. In training, knobs are brought within their
limits here; a policy that may be replaced by its fallback does so before (`guarded_policy.py`).

Does not know: policies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...env.guard import GuardReport
from ...env.knobs import Knobs
from ...env.masks import Mask
from ...env.restrictions import MaskArray, ReplicaLimits, no_limits
from ...env.simulated_fleet import SimulatedFleet
from .alarm import Alarm
from .breaker_rules import BreakerRule
from .breakers import Breakers
from .controller import make_controller
from .doubt import Doubt
from .emergencies import Emergencies
from .emergency_rules import DEFAULT_RULES, EmergencyRule
from .guarded_loop import GuardedLoop, make_loop, run_guarded
from .places import places_of
from .projection import KnobLimits, Projection, project
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
    """Largest share of the replicas that may be masked for silence at a time."""

    def __post_init__(self) -> None:
        if not 0 < self.tick_s <= self.state_s:
            msg = f"tick_s must be above 0 and at most state_s ({self.state_s}), got {self.tick_s}"
            raise ValueError(msg)
        if not 0 < self.max_silent_frac <= 1:
            msg = f"max_silent_frac must be in (0, 1], got {self.max_silent_frac}"
            raise ValueError(msg)


@dataclass(slots=True)
class _Window:
    """What has been done since the last report."""

    size: float = 0.0
    is_overridden: bool = False
    num_begun: int = 0
    num_skipped: int = 0


class SimulatedShield:
    """A `Guard`: one for each fleet."""

    def __init__(self, config: ShieldConfig | None = None) -> None:
        self.config = config or ShieldConfig()
        self._emergencies = Emergencies(self.config.emergencies)
        self._alarms: list[Alarm] = []

    @property
    def emergencies(self) -> Emergencies:
        """Actions in force, and the record of all."""
        return self._emergencies

    @property
    def alarms(self) -> Sequence[Alarm]:
        """Alarms since the start, in order of time."""
        return self._alarms

    @property
    def limits(self) -> ReplicaLimits:
        """What each replica may have at this moment."""
        return self._limits

    def begin(self, fleet: SimulatedFleet, knobs: Knobs) -> Knobs:
        """Forget everything for a fleet that was just reset; it begins with the base."""
        config, num_replicas = self.config, len(fleet.cluster.replicas)
        self._loop = self._make_loop(num_replicas)
        self._emergencies = Emergencies(config.emergencies)
        self._alarms = []
        self._open = no_limits(fleet.cluster)
        self._limits = self._breaker_limits = self._open
        self._breakers = self._make_breakers(fleet)
        self._next_state_s = config.state_s
        self._window = _Window()
        self.barred_s: dict[Mask, float] = {}
        """Replica-seconds barred so far, by reason."""
        self._counted_at_s = fleet.now_s
        self._base = knobs if config.limits is None else config.limits.bounded(knobs)
        self._current, self._current_at_s = self._base, fleet.now_s - config.window_s
        return self._base

    def _make_breakers(self, fleet: SimulatedFleet) -> Breakers | None:
        if not self.config.breakers:
            return None
        return Breakers(self.config.breakers, places_of(fleet.cluster))

    def _make_loop(self, num_replicas: int) -> GuardedLoop:
        ticks_per_probe = max(1, round(self.config.state_s / self.config.tick_s))
        controller = make_controller(num_replicas, self.config.emergencies)
        return make_loop(controller, tick_s=self.config.tick_s, ticks_per_probe=ticks_per_probe)

    def admit(self, fleet: SimulatedFleet, knobs: Knobs) -> Knobs:
        """Return the knobs that are let through: those asked for, within the limits."""
        limits = self.config.limits
        if limits is None:
            return knobs
        projected = project(
            knobs.values,
            knobs.replica_bias,
            current=self._current,
            base=self._base,
            num_replicas=len(fleet.cluster.replicas),
            span_s=fleet.now_s - self._current_at_s,
            limits=limits,
        )
        assert not isinstance(projected, Doubt), f"knobs that exist were refused: {projected}"
        self._note(projected)
        self._current, self._current_at_s = projected.knobs, fleet.now_s
        return projected.knobs

    def _note(self, projection: Projection) -> None:
        self._window.size = max(self._window.size, projection.size)
        self._window.is_overridden |= projection.is_overridden

    def run(self, fleet: SimulatedFleet, until_s: float) -> None:
        """Run the fleet up to a moment, acting on the way."""
        while fleet.now_s < until_s:
            is_called = run_guarded(fleet.handle, self._loop, min(until_s, self._next_state_s))
            if is_called:
                self._obey(fleet)
            if fleet.now_s >= self._next_state_s:
                self._look(fleet)
                # Counted from the start, so that moments do not drift.
                looks = round(fleet.now_s / self.config.state_s) + 1
                self._next_state_s = looks * self.config.state_s

    def _obey(self, fleet: SimulatedFleet) -> None:
        controller, emergencies = self._loop.controller, self._emergencies
        num = int(controller.detector.memory["num_transitions"][0])
        before = emergencies.num_begun, emergencies.skipped.total()
        emergencies.obey(controller.transitions[:num], fleet)
        self._window.num_begun += emergencies.num_begun - before[0]
        self._window.num_skipped += emergencies.skipped.total() - before[1]
        self._limit(fleet)

    def _look(self, fleet: SimulatedFleet) -> None:
        """Let the breakers look at the state, and mask what is silent or too old."""
        if self._breakers is not None:
            step = self._breakers.step(fleet.state())
            self._breaker_limits = step.limits
            self._alarms += step.alarms
        self._limit(fleet)

    def _limit(self, fleet: SimulatedFleet) -> None:
        """Put together what bars each replica, and tell the fleet if it has changed."""
        self._count_barred(fleet.now_s)
        mine, barred = self._breaker_limits, self._silent() | self._stale()
        limits = ReplicaLimits(
            masks=self._open.masks | mine.masks | barred,
            max_outstanding=mine.max_outstanding,
            penalties=mine.penalties,
        )
        if not _are_equal(limits, self._limits):
            fleet.limit(limits)
            self._limits = limits

    def _count_barred(self, now_s: float) -> None:
        """Add up for how long replicas were barred, by reason."""
        span_s, self._counted_at_s = now_s - self._counted_at_s, now_s
        for reason in Mask:
            count = int(((self._limits.masks & np.uint16(reason)) != 0).sum())
            if count and reason is not Mask.SPILL:
                self.barred_s[reason] = self.barred_s.get(reason, 0.0) + count * span_s

    def _silent(self) -> MaskArray:
        is_silent = self._loop.controller.detector.is_silent != 0
        if is_silent.sum() > self.config.max_silent_frac * is_silent.size:
            is_silent = np.zeros_like(is_silent)
        return np.where(is_silent, int(Mask.UNHEALTHY), 0).astype(np.uint16)

    def _stale(self) -> MaskArray:
        signals, now_s = self._loop.signals, self._loop.fleet_signals["now_s"][0]
        ages_s = {FeatureGroup.ENGINE_PAGE: now_s - signals["scraped_at_s"]}
        is_serving = signals["is_available"] != 0
        return judge_staleness(self.config.staleness, ages_s, is_serving).masks

    def report(self) -> GuardReport:
        """Return what was done since the last report."""
        window, self._window = self._window, _Window()
        is_barred = (self._limits.masks & ~np.uint16(Mask.SPILL)) != 0
        return GuardReport(
            is_overridden=window.is_overridden,
            override_size=window.size,
            num_actions=window.num_begun,
            num_skipped=window.num_skipped,
            barred_frac=float(is_barred.mean()),
        )


def _are_equal(one: ReplicaLimits, other: ReplicaLimits) -> bool:
    return (
        np.array_equal(one.masks, other.masks)
        and np.array_equal(one.max_outstanding, other.max_outstanding)
        and np.array_equal(one.penalties, other.penalties)
    )
