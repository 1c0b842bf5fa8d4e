"""Policy files: YAML in which operators and product owners write their rules.

Every section may be left out. Several files make one policy. All faults are reported at once, each
with its file, line, key, value and the nearest key that is known.

Does not know: any cluster (`compilation.py`), or what breakers and actions do (`..shield`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from ...env.config_file import (
    Entry,
    entries,
    faults_message,
    file_path,
    read_yaml,
    validated,
)
from ...env.emergency import Emergency
from ...env.hardware import unknown_name_message
from ...env.yaml_lines import key_lines, line_of
from ...traces.errors import ConfigError
from ..shield.breaker_file import BreakerEntry
from ..shield.breaker_rules import BreakerRule
from ..shield.emergency_rules import DEFAULT_RULES, EmergencyEntry, EmergencyRule
from ..shield.fallback import FallbackConfig, FallbackEntry
from ..shield.projection import KnobLimit, LimitEntry
from ..shield.staleness import DEFAULT_STALENESS, StalenessEntry, StalenessRule
from .placement_rules import PlacementEntry, PlacementRule
from .service_entries import AdapterEntry, PoolEntry, TenantEntry, TierEntry
from .service_rules import AdapterRule, Pool, Tenant, Tier


class PolicyFileEntry(Entry):
    """Top level of a policy file; the lists' items are checked one by one."""

    name: str = "policy"
    """What the policy is called in results."""
    default_tier: str | None = None
    """Tier of tenants that no rule names (default: none, no rule applies to them)."""
    pools: list[Any] = Field(default_factory=list)
    """Named sets of replicas."""
    tiers: list[Any] = Field(default_factory=list)
    """Levels of service."""
    tenants: list[Any] = Field(default_factory=list)
    """Applications, each with its tier."""
    adapters: list[Any] = Field(default_factory=list)
    """Where LoRA adapters are to be had."""
    placement: list[Any] = Field(default_factory=list)
    """How many replicas of each model stand where."""
    breakers: list[Any] = Field(default_factory=list)
    """Circuit breakers on features of the state."""
    staleness: list[Any] = Field(default_factory=list)
    """What old data means, by group of features."""
    emergency: dict[str, Any] = Field(default_factory=dict)
    """Changes to the rules of emergency actions, by action."""
    fallback: Any = None
    """What replaces a learned policy, and when."""
    limits: list[Any] = Field(default_factory=list)
    """Limits on what a learned policy may set."""


LISTS: Mapping[str, type[Entry]] = {
    "pools": PoolEntry,
    "tiers": TierEntry,
    "tenants": TenantEntry,
    "adapters": AdapterEntry,
    "placement": PlacementEntry,
    "breakers": BreakerEntry,
    "staleness": StalenessEntry,
    "limits": LimitEntry,
}
"""What the items of each list are; each has a method that makes the rule."""

_MAKERS: Mapping[type[Entry], Callable[[Any], Any]] = {
    LimitEntry: LimitEntry.limit,
    **{kind: kind.rule for kind in (PoolEntry, TierEntry, TenantEntry, AdapterEntry)},
    PlacementEntry: PlacementEntry.rule,
    BreakerEntry: BreakerEntry.rule,
    StalenessEntry: StalenessEntry.rule,
}
# Lists whose items are told apart by a name.
_NAMED = ("pools", "tiers", "tenants", "adapters", "breakers")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule was written."""

    path: str
    line: int | None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path} line {self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All rules of one or more policy files."""

    name: str = "policy"
    default_tier: str | None = None
    pools: tuple[Pool, ...] = ()
    tiers: tuple[Tier, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    adapters: tuple[AdapterRule, ...] = ()
    placement: tuple[PlacementRule, ...] = ()
    breakers: tuple[BreakerRule, ...] = ()
    staleness: tuple[StalenessRule, ...] = DEFAULT_STALENESS
    emergencies: tuple[EmergencyRule, ...] = DEFAULT_RULES
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    limits: tuple[KnobLimit, ...] = ()
    origins: Mapping[tuple[str, str], Origin] = field(default_factory=dict)
    """By section and name of the rule."""

    def origin(self, section: str, name: str) -> str:
        """Return where a rule was written, empty if in no file."""
        return str(self.origins.get((section, name), ""))

    def sentences(self) -> Iterator[tuple[str, str, str]]:
        """Yield (section, name, sentence) of every rule."""
        for section in ("pools", "tiers", "tenants", "adapters"):
            for rule in getattr(self, section):
                yield section, rule.name, rule.sentence()
        for number, placed in enumerate(self.placement):
            yield "placement", f"{placed.model} ({number + 1})", placed.sentence()
        for breaker in self.breakers:
            yield "breakers", breaker.name, breaker.sentence()
        for stale in self.staleness:
            yield "staleness", str(stale.group), stale.sentence()
        for action in self.emergencies:
            yield "emergency", str(action.kind), action.sentence()
        yield "fallback", self.fallback.heuristic, self.fallback.sentence()
        for limit in self.limits:
            yield "limits", limit.knob, limit.sentence()


@dataclass(slots=True)
class _Reader:
    """Reads files into lists of rules, gathering faults."""

    faults: list[str] = field(default_factory=list)
    rules: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in LISTS})
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Take in one file."""
        lines = key_lines(path)
        content = read_yaml("policy", path)
        found: list[str] = []
        file = validated(PolicyFileEntry, content, "", found)
        if file is None and isinstance(content, dict):
            # A key too many must not hide what is wrong elsewhere.
            known = {key: content[key] for key in PolicyFileEntry.model_fields if key in content}
            file = validated(PolicyFileEntry, known, "", [])
        if file is not None:
            for key, kind in LISTS.items():
                for where, entry in entries(kind, getattr(file, key), key, found).items():
                    self._add(key, where, entry, Origin(str(path), line_of(lines, where)), found)
            self._take_single(file, path, lines, found)
        self.faults += [_with_line(fault, path, lines) for fault in found]

    def _add(self, key: str, where: str, entry: Entry, origin: Origin, found: list[str]) -> None:
        try:
            rule = _MAKERS[type(entry)](entry)
        except ValueError as error:
            found += [_at_key(where, entry, text) for text in str(error).splitlines()]
            return
        self.rules[key].append(rule)
        if key not in _NAMED:
            return
        known = self.origins.get((key, rule.name))
        if known is not None:
            found.append(f"{where}: name '{rule.name}' is taken in {known}; choose another")
        else:
            self.origins[key, rule.name] = origin

    def _take_single(
        self, file: PolicyFileEntry, path: Path, lines: dict[str, int], found: list[str]
    ) -> None:
        """Take what a policy has once: a later file must not contradict an earlier one."""
        for key in ("name", "default_tier", "fallback"):
            if key not in file.model_fields_set:
                continue
            origin = Origin(str(path), line_of(lines, key))
            if key in self.values and key != "name":
                found.append(f"{key}: is set in {self.origins['file', key]} already; set it once")
            self.values.setdefault(key, getattr(file, key))
            self.origins.setdefault(("file", key), origin)
        for name, content in file.emergency.items():
            line = line_of(lines, f"emergency.{name}")
            self._take_emergency(name, content, Origin(str(path), line), found)

    def _take_emergency(self, name: str, content: object, origin: Origin, found: list[str]) -> None:
        where = f"emergency.{name}"
        if name not in list(Emergency):
            found.append(f"{where}: {unknown_name_message('action', name, list(Emergency))}")
            return
        entry = validated(EmergencyEntry, content, where, found)
        if entry is None:
            return
        try:
            rule = entry.rule(Emergency(name))
        except ValueError as error:
            found.append(f"{where}: {error}")
            return
        if self.origins.setdefault(("emergency", name), origin) is not origin:
            found.append(f"{where}: is set in {self.origins['emergency', name]} already")
        self.values.setdefault("emergency", {})[rule.kind] = rule


def _at_key(where: str, entry: Entry, text: str) -> str:
    """A fault of an entry, with the path of its key if it begins with one."""
    key = text.split(":", 1)[0].split(".", 1)[0]
    return f"{where}.{text}" if key in type(entry).model_fields else f"{where}: {text}"


def _with_line(fault: str, path: Path, lines: dict[str, int]) -> str:
    line = line_of(lines, fault.split(": ", 1)[0])
    return f"{path}: {fault}" if line is None else f"{path} line {line}: {fault}"


def read_policy(*paths: str | Path) -> Policy:
    """Read policy files, or bundled ones by name, as one policy.

    Raises: `ConfigError` with every fault of all files: line, key path, value, what was expected.
    """
    if not paths:
        msg = "a policy needs at least one file, got none"
        raise ConfigError(msg)
    reader = _Reader()
    for path in paths:
        reader.read(file_path("policy", path))
    fallback = _fallback(reader)
    policy = _policy(reader, fallback)
    reader.faults += _reference_faults(policy)
    if reader.faults:
        raise ConfigError(faults_message("policy", ", ".join(map(str, paths)), reader.faults))
    return policy


def _fallback(reader: _Reader) -> FallbackConfig:
    content = reader.values.get("fallback")
    if content is None:
        return FallbackConfig()
    found: list[str] = []
    entry = validated(FallbackEntry, content, "fallback", found)
    config = FallbackConfig()
    if entry is not None:
        try:
            config = entry.config()
        except ValueError as error:
            found.append(f"fallback: {error}")
    reader.faults += [f"{reader.origins['file', 'fallback']}: {fault}" for fault in found]
    return config


def _policy(reader: _Reader, fallback: FallbackConfig) -> Policy:
    changed = reader.values.get("emergency", {})
    stale = {rule.group: rule for rule in (*DEFAULT_STALENESS, *reader.rules["staleness"])}
    lists = ("pools", "tiers", "tenants", "adapters", "placement", "breakers", "limits")
    return Policy(
        name=reader.values.get("name", "policy"),
        default_tier=reader.values.get("default_tier"),
        **{key: tuple(reader.rules[key]) for key in lists},
        staleness=tuple(stale.values()),
        emergencies=tuple(changed.get(rule.kind, rule) for rule in DEFAULT_RULES),
        fallback=fallback,
        origins=reader.origins,
    )


def _reference_faults(policy: Policy) -> Iterator[str]:
    """Names of tiers, pools and adapters that no rule defines."""
    known = {
        "tier": [tier.name for tier in policy.tiers],
        "pool": [pool.name for pool in policy.pools],
        "adapter": [adapter.name for adapter in policy.adapters],
    }

    def unknown(kind: str, names: Sequence[str], origin: str, what: str) -> Iterator[str]:
        for name in names:
            if name not in known[kind]:
                yield f"{origin}: {what}: {unknown_name_message(kind, name, known[kind])}"

    if policy.default_tier is not None:
        origin = policy.origin("file", "default_tier")
        yield from unknown("tier", [policy.default_tier], origin, "default_tier")
    for tier in policy.tiers:
        origin = policy.origin("tiers", tier.name)
        names = (*tier.pools, *tier.preferred_pools)
        yield from unknown("pool", names, origin, f"tier '{tier.name}'")
    for tenant in policy.tenants:
        origin, what = policy.origin("tenants", tenant.name), f"tenant '{tenant.name}'"
        yield from unknown("tier", [tenant.tier], origin, what)
        yield from unknown("adapter", tenant.adapters, origin, what)
    for adapter in policy.adapters:
        origin = policy.origin("adapters", adapter.name)
        yield from unknown("pool", adapter.pools, origin, f"adapter '{adapter.name}'")
