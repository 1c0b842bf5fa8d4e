"""The shield around one simulated fleet, at simulated time.

Every 10 ms the response controller looks at what a gateway and probes would see and acts at that
moment; every 100 ms the breakers look at the state. In training, knobs are brought within their
limits here; a policy that may be replaced by its fallback does so before (`guarded_policy.py`).

Does not know: policies.
"""

from dataclasses import dataclass

from ...env.guard import GuardReport
from ...env.knobs import Knobs
from ...env.simulated_fleet import SimulatedFleet
from .doubt import Doubt
from .guarded_loop import GuardedLoop, make_loop, run_guarded
from .projection import Projection, project
from .shield import Shield, ShieldConfig


@dataclass(slots=True)
class _Window:
    """What has been done since the last report."""

    size: float = 0.0
    is_overridden: bool = False
    num_begun: int = 0
    num_skipped: int = 0


class SimulatedShield:
    """A `Guard`: one for each fleet. `shield` is there once the fleet was reset."""

    shield: Shield

    def __init__(self, config: ShieldConfig | None = None) -> None:
        self.config = config or ShieldConfig()

    def begin(self, fleet: SimulatedFleet, knobs: Knobs) -> Knobs:
        """Forget everything for a fleet that was just reset; it begins with the base."""
        config = self.config
        self.shield = Shield(config, fleet.cluster)
        self._loop = self._make_loop()
        self._next_state_s = config.state_s
        self._window = _Window()
        self._base = knobs if config.limits is None else config.limits.bounded(knobs)
        self._current, self._current_at_s = self._base, fleet.now_s - config.window_s
        return self._base

    def _make_loop(self) -> GuardedLoop:
        shield, config = self.shield, self.config
        return make_loop(
            shield.controller,
            (shield.fleet_signals, shield.signals),
            tick_s=config.tick_s,
            ticks_per_probe=max(1, round(config.state_s / config.tick_s)),
        )

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
        emergencies = self.shield.emergencies
        before = emergencies.num_begun, emergencies.skipped.total()
        if self.shield.obey(fleet):
            self.set_limits(fleet)
        self._window.num_begun += emergencies.num_begun - before[0]
        self._window.num_skipped += emergencies.skipped.total() - before[1]

    def _look(self, fleet: SimulatedFleet) -> None:
        before = self.shield.limits
        if self.config.breakers:
            self.shield.look(fleet.state())
        else:
            self.shield.age(fleet.now_s)
        if self.shield.limits is not before:
            self.set_limits(fleet)

    def set_limits(self, fleet: SimulatedFleet) -> None:
        """Hand the fleet what each replica may have from this moment on."""
        fleet.limit(self.shield.limits)

    def report(self) -> GuardReport:
        """Return what was done since the last report."""
        window, self._window = self._window, _Window()
        return GuardReport(
            is_overridden=window.is_overridden,
            override_size=window.size,
            num_actions=window.num_begun,
            num_skipped=window.num_skipped,
            barred_frac=self.shield.barred_frac,
        )
