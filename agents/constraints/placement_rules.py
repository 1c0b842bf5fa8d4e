"""How many replicas of each model stand where: the section `placement` of a policy file.

Does not know: how a plan that keeps the rules is found (`placement_plan.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from ...env.config_file import Entry


class Spread(StrEnum):
    """What the replicas of a model must not all depend on."""

    ZONES = "zones"
    SERVERS = "servers"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRule:
    """What is asked for one model.

    Raises:
        ValueError: the bounds contradict each other.
    """

    model: str
    min_replicas: int = 0
    max_replicas: int | None = None
    zones: tuple[str, ...] = ()
    """Zones that they may stand in; none: all."""
    servers: tuple[str, ...] = ()
    """Servers that they may stand on; none: all."""
    spread: Spread | None = None
    """They stand in at least two zones, or on at least two servers."""

    def __post_init__(self) -> None:
        if self.min_replicas < 0:
            msg = f"min_replicas of '{self.model}' must be at least 0, got {self.min_replicas}"
            raise ValueError(msg)
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            msg = (
                f"max_replicas of '{self.model}' must be at least min_replicas "
                f"({self.min_replicas}), got {self.max_replicas}"
            )
            raise ValueError(msg)
        if self.spread is not None and self.min_replicas < 2:
            msg = (
                f"spread of '{self.model}' needs min_replicas of at least 2, got "
                f"{self.min_replicas}"
            )
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        most = "" if self.max_replicas is None else f" and at most {self.max_replicas}"
        text = f"Model '{self.model}' has at least {self.min_replicas}{most} replicas"
        for what, names in (("in zone", self.zones), ("on server", self.servers)):
            if names:
                text += f", {what} {' or '.join(repr(name) for name in names)} only"
        if self.spread is not None:
            text += f", in at least two {self.spread}"
        return f"{text}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ApartRule:
    """Two models that must not depend on the same server or zone.

    Raises:
        ValueError: both are the same model.
    """

    models: tuple[str, str]
    apart: Spread = Spread.SERVERS

    def __post_init__(self) -> None:
        if self.models[0] == self.models[1]:
            msg = f"models must be two, got '{self.models[0]}' twice; use spread in its placement"
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        first, second = self.models
        return f"Models '{first}' and '{second}' share none of the {self.apart}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservedRule:
    """Servers that are kept for some models.

    Raises:
        ValueError: no server or no model is named.
    """

    pool: str
    """What they are called."""
    servers: tuple[str, ...]
    models: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.servers or not self.models:
            msg = (
                f"pool '{self.pool}' must name servers and the models that they are kept for, "
                f"got servers {self.servers} and models {self.models}"
            )
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        servers = ", ".join(map(repr, self.servers))
        models = " and ".join(map(repr, self.models))
        return f"Pool '{self.pool}' (servers {servers}) is exclusive to model {models}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRule:
    """How many replicas a plan may start.

    Raises:
        ValueError: the number is below 0.
    """

    max_starts: int

    def __post_init__(self) -> None:
        if self.max_starts < 0:
            msg = f"max_starts must be at least 0, got {self.max_starts}"
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        return f"A plan starts at most {self.max_starts} replicas."


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendRule:
    """What the GPUs in use may cost.

    Raises:
        ValueError: the amount is below 0.
    """

    max_usd_per_hour: float

    def __post_init__(self) -> None:
        if not self.max_usd_per_hour >= 0:
            msg = f"max_usd_per_hour must be at least 0, got {self.max_usd_per_hour}"
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        return f"The GPUs in use cost at most {self.max_usd_per_hour:g} USD an hour."


PlanRule = PlacementRule | ApartRule | ReservedRule | ChangeRule | SpendRule
"""Any rule that a plan keeps."""


class PlacementEntry(Entry):
    """One item of `placement` in a policy file."""

    model: str = Field(min_length=1)
    """Name of the model."""
    min_replicas: int = Field(default=0, ge=0)
    """Least replicas that stand."""
    max_replicas: int | None = Field(default=None, ge=0)
    """Most replicas that stand (default: no limit)."""
    zones: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Zones that they may stand in; none: all."""
    servers: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Servers that they may stand on; none: all."""
    spread: Annotated[Spread | None, Field(strict=False)] = None
    """They stand in at least two `zones`, or on at least two `servers`."""

    def rule(self) -> PlacementRule:
        """Return the rule.

        Raises:
            ValueError: the bounds contradict each other.
        """
        return PlacementRule(**self.model_dump())
