"""The section `breakers` of a policy file: its items, and every fault with its line.

Does not know: the other sections (`agents/constraints`), or the state of a breaker.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...env.config_file import DATA_DIR, Entry, entries, faults_message, read_yaml
from ...env.yaml_lines import key_lines, line_of
from ...traces.errors import ConfigError
from .alarm import Severity
from .breaker_rules import BreakerRule, Effect, Recovery, metric_faults

SECTION = "breakers"
DEFAULT_POLICY = DATA_DIR / "policies" / "default.yaml"
"""The rules that come with the package."""


class RecoverEntry(Entry):
    """`recover` of a breaker in a policy file."""

    above: float | None = Field(default=None, allow_inf_nan=False)
    """The value is quiet at or above it; for a rule with `below`. Default: its threshold."""
    below: float | None = Field(default=None, allow_inf_nan=False)
    """The value is quiet at or below it; for a rule with `above`. Default: its threshold."""
    for_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """How long the value must be quiet before the breaker closes, s."""
    cool_down_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Shortest time open, s; doubled, up to eightfold, each time that it opens again soon."""
    probes: int = Field(default=3, ge=0)
    """Requests at a time that a barred replica gets half open; 0 tries nothing before the value is
    quiet."""


class BreakerEntry(Entry):
    """One item of `breakers` in a policy file."""

    name: str = Field(min_length=1)
    """What alarms call it; unique."""
    metric: str
    """What is watched, `node.feature`: a feature of the state on every node of its kind."""
    above: float | None = Field(default=None, allow_inf_nan=False)
    """The breaker opens when the value is above it; this or `below`."""
    below: float | None = Field(default=None, allow_inf_nan=False)
    """The breaker opens when the value is below it; this or `above`."""
    for_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How long the value must be beyond it, s; default: at once."""
    consecutive: int | None = Field(default=None, ge=1)
    """Fresh observations in a row that must be beyond it; this or `for_s`."""
    then: Annotated[Effect, Field(strict=False)]
    """What it does to the replicas there: `alarm`, `degrade`, `quarantine` or `maintenance`."""
    amount: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Penalty of a degraded replica, in units of the score (predicted TTFT over its limit)."""
    outstanding_frac: float | None = Field(default=None, gt=0, le=1)
    """Share of its batch slots that a degraded replica may have outstanding."""
    recover: RecoverEntry = Field(default_factory=RecoverEntry)
    """How it closes again."""
    alarm: Annotated[Severity, Field(strict=False)] = Severity.WARNING
    """How urgent its alarm is: `none`, `info`, `warning` or `critical`."""
    max_open_frac: float = Field(default=0.5, gt=0, le=1)
    """Largest share of a model's replicas that may be barred; beyond it there is an alarm only."""

    def rule(self) -> BreakerRule:
        """Return the rule.

        Raises:
            ValueError: it is impossible or contradicts itself; one line a fault, the key first.
        """
        faults = list(self._form_faults())
        if faults:
            raise ValueError("\n".join([*faults, *metric_faults(self.metric)]))
        is_above = self.above is not None
        threshold = self.above if self.above is not None else self.below
        quiet = self.recover.below if is_above else self.recover.above
        assert threshold is not None, "a form fault otherwise"
        return BreakerRule(
            name=self.name,
            metric=self.metric,
            threshold=threshold,
            is_above=is_above,
            for_s=self.for_s or 0.0,
            consecutive=self.consecutive,
            effect=self.then,
            amount=self.amount,
            outstanding_frac=self.outstanding_frac,
            recovery=Recovery(
                threshold=threshold if quiet is None else quiet,
                for_s=self.recover.for_s,
                cool_down_s=self.recover.cool_down_s,
                probes=self.recover.probes,
            ),
            severity=self.alarm,
            max_open_frac=self.max_open_frac,
        )

    def _form_faults(self) -> Iterator[str]:
        """Keys that contradict each other."""
        if self.above is None and self.below is None:
            yield "above: key is missing; give above or below, the threshold"
        elif self.above is not None and self.below is not None:
            yield f"below: give above or below, got both ({self.above:g} and {self.below:g})"
        else:
            wrong = "above" if self.above is not None else "below"
            right = "below" if self.above is not None else "above"
            value = getattr(self.recover, wrong)
            if value is not None:
                yield (
                    f"recover.{wrong}: a rule with '{wrong}' recovers '{right}' a value, "
                    f"got {wrong} {value:g}"
                )
        if self.for_s is not None and self.consecutive is not None:
            yield (
                f"consecutive: give for_s or consecutive, got both ({self.for_s:g} s and "
                f"{self.consecutive})"
            )


def read_breakers(path: Path) -> tuple[BreakerRule, ...]:
    """Read the rules of the section `breakers` of a policy file; none without the section.

    Raises: `ConfigError` with every fault of the section, each with its line.
    """
    content = read_yaml("policy", path)
    faults: list[str] = []
    rules: dict[str, BreakerRule] = {}
    items = content.get(SECTION) if isinstance(content, dict) else content
    if isinstance(items, list):
        for key, entry in entries(BreakerEntry, items, SECTION, faults).items():
            try:
                rules[key] = entry.rule()
            except ValueError as error:
                faults += [f"{key}.{text}" for text in str(error).splitlines()]
        faults += _name_faults(rules)
    elif items is not None:
        faults.append(f"{SECTION}: must be a list of rules, got {items!r}")
    if faults:
        lines = key_lines(path)
        placed = sorted((_line(lines, fault), fault) for fault in faults)
        texts = [f"line {line}: {fault}" for line, fault in placed]
        raise ConfigError(faults_message("policy file", str(path), texts))
    return tuple(rules.values())


def default_breakers() -> tuple[BreakerRule, ...]:
    """Return the rules that come with the package."""
    return read_breakers(DEFAULT_POLICY)


def _name_faults(rules: dict[str, BreakerRule]) -> Iterator[str]:
    counts = Counter(rule.name for rule in rules.values())
    for key, rule in rules.items():
        if counts[rule.name] > 1:
            yield f"{key}.name: {rule.name!r} is used {counts[rule.name]} times; must be unique"


def _line(lines: dict[str, int], fault: str) -> int:
    """Return the line of a fault, which begins with the path of its key."""
    return line_of(lines, fault.split(":", 1)[0]) or 1
