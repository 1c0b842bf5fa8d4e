"""What to make of a replica of which nothing was heard for some time.

Each group of features has a posture: `saturated` counts a replica as full once its data is too
old, `ignore` goes on with the last that is known, and `grace` does so for a bounded time before it
counts the replica as full. If more of the fleet than `max_masked_frac` is too old, it is the
metrics that are out and not the replicas: nothing is masked for it, and the step says so.

Does not know: how data gets old, or what else masks a replica.
Source: llm-d-router issue 2408 (fail open or closed); the panic threshold of Envoy's load balancer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...env.config_file import Entry
from ...env.masks import Mask
from ...env.restrictions import FloatArray, MaskArray


class FeatureGroup(StrEnum):
    """Features that come together and grow old together."""

    ENGINE_PAGE = "engine_page"  # what stands on an engine's metrics page
    PROBE = "probe"  # what a probe reads from GPUs and host


class Posture(StrEnum):
    """What a replica with old data counts as."""

    SATURATED = "saturated"
    IGNORE = "ignore"
    GRACE = "grace"


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessRule:
    """When a group's data is too old, and what follows.

    Raises:
        ValueError: a span is not above 0, a grace without the posture, or a share out of (0, 1].
    """

    group: FeatureGroup
    after_s: float
    """Age from which it is too old."""
    posture: Posture = Posture.SATURATED
    grace_s: float = 0.0
    """Further time with the last that is known; only with posture `grace`."""
    max_masked_frac: float = 0.5
    """Largest share of the replicas that may be masked for it at a time."""

    def __post_init__(self) -> None:
        if not 0 < self.after_s < np.inf:
            msg = f"after_s of staleness rule '{self.group}' must be above 0, got {self.after_s}"
            raise ValueError(msg)
        if (self.posture is Posture.GRACE) != (self.grace_s > 0):
            msg = (
                f"grace_s of staleness rule '{self.group}' must be above 0 with posture 'grace' "
                f"and is of no use with another, got {self.grace_s:g} with '{self.posture}'"
            )
            raise ValueError(msg)
        if not 0 < self.max_masked_frac <= 1:
            msg = (
                f"max_masked_frac of staleness rule '{self.group}' must be in (0, 1], "
                f"got {self.max_masked_frac}"
            )
            raise ValueError(msg)

    @property
    def masked_after_s(self) -> float:
        """Age from which a replica is masked; infinity for never."""
        return np.inf if self.posture is Posture.IGNORE else self.after_s + self.grace_s

    def sentence(self) -> str:
        """Return what the rule does, in words."""
        source = {
            FeatureGroup.ENGINE_PAGE: "metrics page",
            FeatureGroup.PROBE: "probe",
        }[self.group]
        start = f"When a replica's {source} was last read {self.after_s:g} s ago"
        if self.posture is Posture.IGNORE:
            return f"{start}, the last values stay in use."
        limit = f"unless that would leave less than {1 - self.max_masked_frac:.0%} of the fleet"
        if self.posture is Posture.GRACE:
            return (
                f"{start}, the last values stay in use for {self.grace_s:g} s more; then it "
                f"counts as full, {limit}."
            )
        return f"{start}, it counts as full, {limit}."


DEFAULT_STALENESS: tuple[StalenessRule, ...] = (
    # Pages are read every 50 ms; 20 in a row are lost by accident once in many years.
    StalenessRule(group=FeatureGroup.ENGINE_PAGE, after_s=1.0, posture=Posture.GRACE, grace_s=1.0),
    StalenessRule(group=FeatureGroup.PROBE, after_s=5.0, posture=Posture.IGNORE),
)


class StalenessEntry(Entry):
    """One item of `staleness` in a policy file."""

    group: Annotated[FeatureGroup, Field(strict=False)]
    """Which features it is about: `engine_page` or `probe`."""
    after_s: float = Field(gt=0, allow_inf_nan=False)
    """Age from which data is too old, s."""
    posture: Annotated[Posture, Field(strict=False)] = Posture.SATURATED
    """What a replica with old data counts as: `saturated`, `ignore`, or `grace` and then full."""
    grace_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Further time with the last that is known, s; only with posture `grace`."""
    max_masked_frac: float = Field(default=0.5, gt=0, le=1)
    """Largest share of the replicas that may be masked for it at a time."""

    def rule(self) -> StalenessRule:
        """Return the rule.

        Raises:
            ValueError: it contradicts itself.
        """
        return StalenessRule(**self.model_dump())


@dataclass(frozen=True, slots=True)
class StalenessStep:
    """What is too old at a moment."""

    masks: MaskArray
    """`Mask.STALE` where a replica counts as full; uint16 [R]."""
    outages: tuple[FeatureGroup, ...]
    """Groups of which too much is old to mask it: an outage of metrics."""


def judge_staleness(
    rules: Sequence[StalenessRule],
    ages_s: Mapping[FeatureGroup, FloatArray],
    is_serving: NDArray[np.bool_],
) -> StalenessStep:
    """Return which replicas count as full because what is known of them is too old.

    Shapes: `ages_s` of each group [R], infinite or NaN where never heard of; `is_serving` [R],
    replicas that are up as far as the gateway knows: shares are of them.
    """
    masks = np.zeros(is_serving.size, np.uint16)
    outages: list[FeatureGroup] = []
    for rule in rules:
        if rule.group not in ages_s:
            continue
        is_old = ~(ages_s[rule.group] <= rule.masked_after_s) & is_serving
        if is_old.sum() > rule.max_masked_frac * is_serving.sum():
            outages.append(rule.group)
        else:
            masks[is_old] = int(Mask.STALE)
    return StalenessStep(masks, tuple(outages))
