"""Which knobs rule: the policy's, or those of a named heuristic while the policy is in doubt.

Each window's proposal is judged. One doubt is enough: the fallback rules from this very tick. The
policy then goes on in shadow, and rules again after some good windows in a row; their number
doubles with each further trip, so no policy makes the fleet swing. A policy that has ruled long
enough is forgiven.

Does not know: the policy, the clock, or how regret is measured.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from ...env.config_file import Entry, known_name
from ...env.knobs import FloatArray, Knobs
from ...env.regret import Regret
from ..heuristics import HEURISTICS, heuristic
from .doubt import Doubt
from .projection import KnobLimits, Projection, project
from .trip_wire import TripWire, TripWireConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackConfig:
    """What replaces a policy, and when.

    Raises:
        ValueError: the heuristic is unknown, or a number makes no sense.
    """

    heuristic: str = "analytic-scorer"
    """Who rules while the policy does not."""
    late_s: float = 0.5
    """Age of the state that a proposal was made from, above which it is late."""
    window_s: float = 2.0
    """Time between proposals; one that is overdue by `late_s` is absent."""
    novelty: float = 1.0
    """Score of a state above which a proposal for it is not followed (`novelty.py`)."""
    recovery_windows: int = 10
    """Good windows in a row after which a policy rules again, after its first trip."""
    max_recovery_windows: int = 160
    """Most that this number doubles to. As many windows of ruling forgive all trips."""
    trip_wire: TripWireConfig = field(default_factory=TripWireConfig)

    def __post_init__(self) -> None:
        heuristic(self.heuristic)
        for name in ("late_s", "window_s", "novelty"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be above 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 1 <= self.recovery_windows <= self.max_recovery_windows:
            msg = (
                "recovery_windows must be at least 1 and at most max_recovery_windows "
                f"({self.max_recovery_windows}), got {self.recovery_windows}"
            )
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        wire = self.trip_wire
        return (
            f"'{self.heuristic}' rules in place of a policy whose proposal is absent, no number, "
            f"made from a state older than {self.late_s:g} s, or for a state of novelty above "
            f"{self.novelty:g}; and of a policy whose regret over {wire.windows} windows is above "
            f"{wire.limit:.0%}, until {self.recovery_windows} good windows have passed."
        )


def _is_known(name: str) -> str:
    return known_name("heuristic", name, HEURISTICS)


class FallbackEntry(Entry):
    """The `fallback:` of a policy file."""

    heuristic: Annotated[str, AfterValidator(_is_known)] = FallbackConfig().heuristic
    late_s: float = Field(default=FallbackConfig().late_s, gt=0)
    novelty: float = Field(default=FallbackConfig().novelty, gt=0)
    regret: float = Field(default=TripWireConfig().limit, gt=0, le=1)
    """Regret, as a share of the weight of requests, above which the trip-wire trips."""
    windows: int = Field(default=TripWireConfig().windows, ge=1)
    """Windows that the trip-wire pools."""
    recovery_windows: int = Field(default=FallbackConfig().recovery_windows, ge=1)
    max_recovery_windows: int | None = Field(default=None, ge=1)

    def config(self, window_s: float = FallbackConfig().window_s) -> FallbackConfig:
        """Return what the entry says, for windows of some length.

        Raises:
            ValueError: `recovery_windows` are more than their most.
        """
        most = self.max_recovery_windows
        if most is None:
            most = max(FallbackConfig().max_recovery_windows, self.recovery_windows)
        return FallbackConfig(
            heuristic=self.heuristic,
            late_s=self.late_s,
            window_s=window_s,
            novelty=self.novelty,
            recovery_windows=self.recovery_windows,
            max_recovery_windows=most,
            trip_wire=TripWireConfig(limit=self.regret, windows=self.windows),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """What a policy would set, and from when it is; nothing in it has been checked."""

    values: FloatArray
    bias: FloatArray = field(default_factory=lambda: np.zeros(0))
    state_at_s: float
    """Moment of the state that it was made from."""
    arrived_at_s: float
    """When it was there."""
    novelty: float = 0.0
    """How unlike the states of training that state is; 1 is the threshold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """Who rules, and why."""

    knobs: Knobs
    """To be set."""
    doubt: Doubt | None
    """Why the fallback rules: what is wrong now, else what made it rule; None: it does not."""
    projection: Projection | None
    """The proposal within its limits; None if there was none that could be."""
    shadow: Knobs | None
    """What to compare the ruling knobs with: the fallback's, or the policy's while it does not
    rule; None if that has none."""

    @property
    def is_fallback(self) -> bool:
        """Whether the fallback rules."""
        return self.doubt is not None


class Fallback:
    """Judges one policy's proposals, window by window."""

    def __init__(
        self,
        config: FallbackConfig,
        *,
        base: Knobs,
        num_replicas: int,
        limits: KnobLimits | None = None,
        knobs: Knobs | None = None,
    ) -> None:
        """`base` has the knobs that a policy may not move; `knobs` replace the heuristic's."""
        self.config = config
        self.limits = limits or KnobLimits()
        self.knobs = self.limits.bounded(knobs or heuristic(config.heuristic).knobs)
        """What rules when the policy does not."""
        self._base, self._num_replicas = base, num_replicas
        self._wire = TripWire(config.trip_wire)
        self.begin(0.0)

    def begin(self, now_s: float, *, current: Knobs | None = None) -> Knobs:
        """Forget everything; return the base within the limits, which rules until the first window.

        A policy begins by ruling, and may move as far from the base as in any window; or from
        `current`, knobs that are in force already and are returned then.
        """
        self._wire.reset()
        self._current = self.limits.bounded(current or self._base)
        self._judged_at_s = now_s
        self._current_at_s = now_s - self.config.window_s
        self._cause: Doubt | None = None
        self._num_good = self._num_trips = self._num_ruled = 0
        self.counts: Counter[Doubt] = Counter()
        """Windows by what was wrong in them, those in shadow too."""
        self.num_switches = 0
        """Changes between policy and fallback."""
        return self._current

    @property
    def is_fallback(self) -> bool:
        """Whether the fallback rules."""
        return self._cause is not None

    @property
    def judged_at_s(self) -> float:
        """When a window was last judged, or the begin."""
        return self._judged_at_s

    @property
    def required_windows(self) -> int:
        """Good windows in a row that the policy needs, or would need after its next trip."""
        doublings = min(self._num_trips - (1 if self.is_fallback else 0), 62)
        most = self.config.max_recovery_windows
        return min(self.config.recovery_windows << doublings, most)

    def judge(
        self,
        proposal: Proposal | None,
        now_s: float,
        regret: Regret | None = None,
        *,
        has_failed: bool = False,
    ) -> Verdict:
        """Return who rules the next window.

        `regret` is that of the window that ends, shadow minus ruling, with the knobs of the last
        verdict; None if it was not measured. `has_failed` says that the policy raised.
        """
        if regret is not None and self.is_fallback:
            regret = regret.flipped()
        has_regret = self._wire.step(regret, release_windows=self.required_windows)
        self._judged_at_s = now_s
        projection: Projection | None = None
        doubt = Doubt.ERROR if has_failed else self._doubt_of_moment(proposal, now_s)
        if doubt is None and proposal is not None:
            projected = self._project(proposal, now_s)
            if isinstance(projected, Doubt):
                doubt = projected
            else:
                projection = projected
                doubt = self._doubt_of_score(proposal, has_regret)
        return self._verdict(doubt, projection)

    def watch(self, now_s: float) -> Verdict | None:
        """Return a verdict if the proposal for a window is overdue, else None; for every tick."""
        overdue_s = now_s - self._judged_at_s - self.config.window_s
        if self.is_fallback or overdue_s <= self.config.late_s:
            return None
        return self.judge(None, now_s)

    def _doubt_of_moment(self, proposal: Proposal | None, now_s: float) -> Doubt | None:
        if proposal is None:
            return Doubt.ABSENT
        if not np.isfinite([proposal.arrived_at_s, proposal.state_at_s]).all():
            return Doubt.NOT_FINITE
        age_s = max(now_s, proposal.arrived_at_s) - proposal.state_at_s
        # Clocks may differ a little, but a state from the future is no state.
        return None if abs(age_s) <= self.config.late_s else Doubt.LATE

    def _doubt_of_score(self, proposal: Proposal, has_regret: bool) -> Doubt | None:
        if not proposal.novelty <= self.config.novelty:
            return Doubt.NOVEL
        return Doubt.REGRET if has_regret else None

    def _project(self, proposal: Proposal, now_s: float) -> Projection | Doubt:
        """Project from where the policy was last, in shadow or not; what it leaves is its own."""
        projected = project(
            proposal.values,
            proposal.bias,
            current=self._current,
            base=self._base,
            num_replicas=self._num_replicas,
            span_s=now_s - self._current_at_s,
            limits=self.limits,
        )
        if isinstance(projected, Projection):
            self._current, self._current_at_s = projected.knobs, now_s
        return projected

    def _verdict(self, doubt: Doubt | None, projection: Projection | None) -> Verdict:
        self._note(doubt)
        policy = None if projection is None else projection.knobs
        if self._cause is not None:
            reason = doubt or self._cause
            return Verdict(knobs=self.knobs, doubt=reason, projection=projection, shadow=policy)
        assert policy is not None, "a policy without knobs cannot rule"
        return Verdict(knobs=policy, doubt=None, projection=projection, shadow=self.knobs)

    def _note(self, doubt: Doubt | None) -> None:
        """Count the window, and switch if it is time."""
        if doubt is not None:
            self.counts[doubt] += 1
            # The wire counts calm windows itself; they are good ones until it is released.
            is_calm = doubt is Doubt.REGRET and self._wire.is_calm
            self._num_good = self._num_good + 1 if is_calm else 0
            if not self.is_fallback:
                self._num_trips += 1
                self._num_ruled = 0
                self.num_switches += 1
            self._cause = doubt
            return
        if not self.is_fallback:
            self._num_ruled += 1
            if self._num_ruled >= self.config.max_recovery_windows:
                self._num_trips = 0
            return
        self._num_good += 1
        if self._num_good >= self.required_windows:
            self._cause = None
            self._num_good = 0
            self.num_switches += 1

    def counts_by_name(self) -> Mapping[str, int]:
        """Return how often each doubt was found; 0 where it never was."""
        return {str(doubt): self.counts[doubt] for doubt in Doubt}
