"""What product owners say of their applications: tiers, pools, regions, limits and budgets.

Does not know: files (`policy_file.py`), or what the rules mean for one cluster (`compilation.py`).
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Priority(StrEnum):
    """Class of a request in every queue."""

    INTERACTIVE = "interactive"
    BATCH = "batch"

    @property
    def number(self) -> int:
        """The number by which queues know it."""
        return list(Priority).index(self)


class OverBudget(StrEnum):
    """What becomes of a request beyond its tenant's budget."""

    REFUSE = "refuse"
    DEMOTE = "demote"


def words(names: tuple[str, ...], joint: str = "or") -> str:
    """Return names as a list in words."""
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {joint} {quoted[-1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A named set of replicas: those that match all selectors that are given."""

    name: str
    replicas: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    is_exclusive: bool = False
    """Closed to all tenants that are not assigned to it."""

    def sentence(self) -> str:
        """Return the rule in words."""
        selectors = {
            "named": self.replicas,
            "on server": self.servers,
            "in zone": self.zones,
            "on GPU": self.gpus,
            "serving": self.models,
        }
        which = " and ".join(f"{text} {words(names)}" for text, names in selectors.items() if names)
        closed = "; only tenants assigned to it may use them" if self.is_exclusive else ""
        return f"Pool '{self.name}' holds the replicas {which or 'of the fleet'}{closed}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a tenant may use; None for no limit of that kind.

    Raises:
        ValueError: it limits nothing, or dollars without a price.
    """

    tokens_per_min: float | None = None
    requests_per_s: float | None = None
    usd_per_hour: float | None = None
    usd_per_million_tokens: float | None = None
    """Price that turns dollars into tokens."""
    burst_s: float = 10.0
    """Time whose budget may be used at once."""
    when_over: OverBudget = OverBudget.REFUSE

    def __post_init__(self) -> None:
        if (self.usd_per_hour is None) != (self.usd_per_million_tokens is None):
            msg = (
                "usd_per_hour needs usd_per_million_tokens, and the other way round, got "
                f"{self.usd_per_hour} and {self.usd_per_million_tokens}"
            )
            raise ValueError(msg)
        if self.tokens_per_s == np.inf and self.requests_per_s is None:
            msg = "a budget must limit tokens_per_min, requests_per_s or usd_per_hour, got none"
            raise ValueError(msg)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second that it allows; infinity for no limit."""
        limits = [np.inf]
        if self.tokens_per_min is not None:
            limits.append(self.tokens_per_min / 60.0)
        if self.usd_per_hour is not None and self.usd_per_million_tokens is not None:
            limits.append(self.usd_per_hour / self.usd_per_million_tokens * 1e6 / 3600.0)
        return min(limits)

    def words(self) -> str:
        """Return the limits in words."""
        parts = []
        if self.tokens_per_min is not None:
            parts.append(f"{self.tokens_per_min:g} tokens a minute")
        if self.requests_per_s is not None:
            parts.append(f"{self.requests_per_s:g} requests a second")
        if self.usd_per_hour is not None:
            parts.append(f"{self.usd_per_hour:g} USD an hour")
        over = "are refused" if self.when_over is OverBudget.REFUSE else "wait as batch requests"
        return f"at most {' and '.join(parts)}; requests beyond {over}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of service."""

    name: str
    priority: Priority = Priority.INTERACTIVE
    weight: float | None = None
    """Worth of a request that meets its limits; None for that of its class."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    pools: tuple[str, ...] = ()
    """Pools that its requests may use; none: all that are not exclusive."""
    preferred_pools: tuple[str, ...] = ()
    """Pools that they use before others."""
    zones: tuple[str, ...] = ()
    """Zones that their data may be in; none: all."""

    def sentence(self) -> str:
        """Return the rule in words."""
        parts = [f"is {self.priority}"]
        if self.weight is not None:
            parts.append(f"counts {self.weight:g} a request in goodput")
        limits = (("a first token", self.ttft_s), ("each further token", self.tpot_s))
        parts += [f"expects {what} within {span:g} s" for what, span in limits if span is not None]
        if self.pools:
            parts.append(f"uses pool {words(self.pools)} only")
        if self.preferred_pools:
            parts.append(f"prefers pool {words(self.preferred_pools)}")
        if self.zones:
            parts.append(f"stays in zone {words(self.zones)}")
        return f"Tier '{self.name}' {', '.join(parts)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An application, and what differs from its tier."""

    name: str
    tier: str
    zones: tuple[str, ...] = ()
    """In place of the tier's."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    models: tuple[str, ...] = ()
    """Models that it may use; none: all."""
    adapters: tuple[str, ...] = ()
    """Adapters with rules of their own that it may use; none: all."""
    budget: Budget | None = None

    def sentence(self) -> str:
        """Return the rule in words."""
        parts = [f"has tier '{self.tier}'"]
        if self.zones:
            parts.append(f"stays in zone {words(self.zones)}")
        limits = (("a first token", self.ttft_s), ("each further token", self.tpot_s))
        parts += [f"expects {what} within {span:g} s" for what, span in limits if span is not None]
        if self.models:
            parts.append(f"may use model {words(self.models)} only")
        if self.adapters:
            parts.append(f"may use adapter {words(self.adapters)} only")
        if self.budget is not None:
            parts.append(f"gets {self.budget.words()}")
        return f"Tenant '{self.name}' {', '.join(parts)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRule:
    """Where a LoRA adapter is to be had: on these replicas and in these pools."""

    name: str
    replicas: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return the rule in words."""
        places = (("on replica", self.replicas), ("in pool", self.pools))
        text = " and ".join(f"{place} {words(names)}" for place, names in places if names)
        return f"Adapter '{self.name}' is served {text} only."
