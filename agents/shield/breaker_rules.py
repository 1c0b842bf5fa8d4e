"""Rules of the circuit breakers: what is watched, when a breaker opens, what follows, how it ends.

A rule watches one feature of the state registry on every node of its kind. YAML:

    breakers:
      - {name: memory-pressure, metric: gpu.hbm_used_frac, above: 0.92, for_s: 3, then: degrade,
         amount: 0.5, recover: {below: 0.88, for_s: 5, cool_down_s: 10}, alarm: warning}

Does not know: values (`breakers.py`), or how a file is read (`breaker_file.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ...env.hardware import nearest_name
from ...env.state.feature import Feature, Node
from ...env.state.registry import FEATURES
from .alarm import Severity

METRICS: dict[str, Feature] = {f"{feature.node}.{feature.name}": feature for feature in FEATURES}
"""Every feature that a rule may watch, as rules name it."""
TARGETS: dict[Node, str] = {
    Node.GPU: "every replica on that GPU",
    Node.REPLICA: "that replica",
    Node.SERVER: "every replica on that server",
    Node.LINK: "every replica behind that link",
    Node.ZONE: "every replica in that zone",
}
"""Whom a rule on each kind of node is about."""


# Units that read badly after a number.
_UNIT_WORDS = {"1/s": "a second", "0 or 1": "", "log": "", "ratio": ""}


class Effect(StrEnum):
    """What an open breaker does to the replicas at its place."""

    ALARM = "alarm"  # nothing: it only tells
    DEGRADE = "degrade"  # they cost more in the score
    QUARANTINE = "quarantine"  # they get no requests
    MAINTENANCE = "maintenance"  # the same, and people are told to look after them


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How a breaker closes again."""

    threshold: float
    """The value is quiet at or beyond it, on the good side."""
    for_s: float = 10.0
    """How long it must be quiet, half open."""
    cool_down_s: float = 10.0
    """Shortest time open; doubled each time that it opens again soon."""
    probes: int = 3
    """Requests at a time that a barred replica gets half open. With 0 nothing is tried: the breaker
    goes half open, as closed to requests as before, only when the value is quiet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """One rule.

    Raises:
        ValueError: it is impossible or contradicts itself; one line a fault, the YAML key first.
    """

    name: str
    metric: str
    """A key of `METRICS`: `gpu.hbm_used_frac`."""
    threshold: float
    is_above: bool = True
    """It opens above the threshold, else below."""
    for_s: float = 0.0
    """How long the value must be beyond the threshold, without `consecutive`."""
    consecutive: int | None = None
    """Observations in a row that must be beyond it."""
    effect: Effect = Effect.ALARM
    amount: float = 0.0
    """Penalty of a degraded replica, in units of the score (predicted TTFT over its limit)."""
    outstanding_frac: float | None = None
    """Share of its batch slots that a degraded replica may have outstanding."""
    recovery: Recovery
    severity: Severity = Severity.WARNING
    max_open_frac: float = 0.5
    """Largest share of the replicas of a model that may be barred at a time."""

    def __post_init__(self) -> None:
        faults = [*metric_faults(self.metric)]
        if not faults:
            faults = [*_threshold_faults(self), *_recovery_faults(self), *_effect_faults(self)]
        if faults:
            raise ValueError("\n".join(faults))

    @property
    def feature(self) -> Feature:
        """The feature that it watches."""
        return METRICS[self.metric]

    @property
    def node(self) -> Node:
        """The kind of node that it watches."""
        return self.feature.node

    @property
    def is_barring(self) -> bool:
        """Its replicas get no requests while it is open."""
        return self.effect in (Effect.QUARANTINE, Effect.MAINTENANCE)

    def sentence(self) -> str:
        """Return what the rule does, in one sentence."""
        meaning = f" ({self.feature.meaning})" if self.feature.meaning else ""
        start = f"When {self.metric}{meaning} is {self.condition()}, {self.consequence()}"
        recovery, most = self.recovery, "at most" if self.is_above else "at least"
        quiet = f"once that has been {most} {value_text(self.feature, recovery.threshold)}"
        if recovery.for_s:
            quiet = f"{quiet} for {recovery.for_s:g} s"
        if self.effect is Effect.ALARM or not recovery.probes:
            end = f"after {recovery.cool_down_s:g} s at the earliest it ends, {quiet}"
        else:
            requests = "request" if recovery.probes == 1 else "requests"
            trial = f"with {recovery.probes} {requests} at a time" if self.is_barring else "at half"
            end = f"after {recovery.cool_down_s:g} s it is tried {trial}, and it ends {quiet}"
        if not self.is_barring:
            return f"{start}; {end}."
        share = f"at most {self.max_open_frac:.0%} of a model's replicas are barred at a time"
        return f"{start}; {end}; {share}, beyond that there is only an alarm."

    def condition(self) -> str:
        """Return when its breakers open: `above 92 % for 3 s`."""
        side = "above" if self.is_above else "below"
        text = f"{side} {value_text(self.feature, self.threshold)}"
        if self.consecutive is not None and self.consecutive > 1:
            return f"{text} in {self.consecutive} observations in a row"
        return f"{text} for {self.for_s:g} s" if self.for_s else text

    def consequence(self) -> str:
        """Return what follows while one of its breakers is open."""
        alarm = "" if self.severity is Severity.NONE else f"an alarm ({self.severity}) is raised"
        if self.effect is Effect.ALARM:
            return alarm
        parts = ["gets no requests"]
        if self.effect is Effect.MAINTENANCE:
            parts = ["is under maintenance watch and gets no requests"]
        elif self.effect is Effect.DEGRADE:
            parts = [f"costs {self.amount:g} more in the score"] if self.amount else []
            if self.outstanding_frac is not None:
                parts.append(f"may have {self.outstanding_frac:.0%} of its batch slots in use")
        return f"{TARGETS[self.node]} {' and '.join(parts)}" + (f", and {alarm}" if alarm else "")


def value_text(feature: Feature, value: float) -> str:
    """Return a value with its unit: shares in percent."""
    if feature.unit.startswith("share"):
        return f"{100 * value:.4g} %"
    unit = _UNIT_WORDS.get(feature.unit, feature.unit)
    return f"{value:.4g} {unit}".rstrip()


def metric_faults(metric: str) -> Iterator[str]:
    """Yield what is wrong with the name of a metric."""
    if metric not in METRICS:
        nearest = nearest_name(metric, METRICS)
        hint = f"did you mean {nearest!r}?" if nearest else "the form is node.feature,"
        yield f"metric: unknown metric {metric!r}; {hint} docs/state.md lists all"


def _threshold_faults(rule: BreakerRule) -> Iterator[str]:
    scale, key, value = rule.feature.scale, "above" if rule.is_above else "below", rule.threshold
    bounds = f"[{scale.low:g}, {scale.high:g}] ({rule.feature.unit})"
    if not scale.low <= value <= scale.high:
        is_percent = scale.high == 1 and 1 < value <= 100
        hint = f"; did you mean {value / 100:g}?" if is_percent else ""
        yield f"{key}: {value:g} is outside the range {bounds} of {rule.metric}{hint}"
    elif value == (scale.high if rule.is_above else scale.low):
        yield (
            f"{key}: {rule.metric} is never {key} {value:g}, the rule would never fire; its range "
            f"is {bounds}, choose a value inside"
        )


def _recovery_faults(rule: BreakerRule) -> Iterator[str]:
    recovery, scale = rule.recovery, rule.feature.scale
    key, most = ("below", "most") if rule.is_above else ("above", "least")
    value = recovery.threshold
    if not scale.low <= value <= scale.high:
        yield (
            f"recover.{key}: {value:g} is outside the range [{scale.low:g}, {scale.high:g}] "
            f"of {rule.metric}"
        )
    elif (value > rule.threshold) if rule.is_above else (value < rule.threshold):
        yield (
            f"recover.{key}: must be at {most} the threshold {rule.threshold:g}, got {value:g}; "
            "the breaker would close in breach"
        )
    if not recovery.cool_down_s > 0:
        yield f"recover.cool_down_s: must be above 0, got {recovery.cool_down_s:g}"
    if recovery.probes < 0 or not recovery.for_s >= 0:
        yield f"recover: probes and for_s must be at least 0, got {recovery}"


def _effect_faults(rule: BreakerRule) -> Iterator[str]:
    effect, is_placeless = rule.effect, rule.node in (Node.TENANT, Node.FLEET)
    if is_placeless and effect is not Effect.ALARM:
        yield (
            f"then: a rule on the {rule.node} may only alarm, it stands on no replica; "
            f"got '{effect}'"
        )
    if effect is Effect.DEGRADE and not rule.amount > 0 and rule.outstanding_frac is None:
        yield (
            f"amount: 'degrade' needs a penalty above 0 (TTFT limits) or outstanding_frac, "
            f"got {rule.amount:g}"
        )
    if effect is not Effect.DEGRADE and (rule.amount or rule.outstanding_frac is not None):
        yield f"amount: only 'degrade' has an amount or outstanding_frac, got '{effect}'; remove it"
    if effect in (Effect.ALARM, Effect.MAINTENANCE) and rule.severity is Severity.NONE:
        yield f"alarm: '{effect}' without an alarm does not tell anybody; choose a severity"
    if not 0 < rule.max_open_frac <= 1:
        yield f"max_open_frac: must be in (0, 1], got {rule.max_open_frac:g}"
    if not rule.for_s >= 0 or (rule.consecutive is not None and rule.consecutive < 1):
        yield (
            "for_s: must be at least 0, and consecutive at least 1, got "
            f"{rule.for_s} and {rule.consecutive}"
        )
