"""Why a rule bars replicas to requests: each mask bit with the rule that it comes from.

Does not know: whether what is left makes sense (`contradictions.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...env.masks import Mask
from ...env.restrictions import MaskArray
from .policy_file import Policy
from .replica_facts import BoolArray, ReplicaFacts
from .service_rules import AdapterRule, Tenant, Tier, words

OTHERS = "other tenants"
"""Whom no rule names."""

RuleKey = tuple[str, str]
"""Section of the policy file, and name of the rule there."""


@dataclass(frozen=True, slots=True, eq=False)
class Cause:
    """One rule's part in a mask."""

    reason: Mask
    rule: RuleKey
    text: str
    """The rule, in a few words."""
    bars: BoolArray
    """Replicas that it bars; [R]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestGroup:
    """Requests of one tenant, or of all others, with one adapter or none."""

    tenant: Tenant | None
    tier: Tier | None
    adapter: str | None
    causes: tuple[Cause, ...]

    @property
    def name(self) -> str:
        """What it is called in messages."""
        who = self.tenant.name if self.tenant is not None else OTHERS
        return who if self.adapter is None else f"{who} with adapter {self.adapter}"

    def mask(self, num_replicas: int) -> MaskArray:
        """Return the reasons that bar each replica, uint16 [R]."""
        mask = np.zeros(num_replicas, np.uint16)
        for cause in self.causes:
            mask |= cause.bars * np.uint16(cause.reason)
        return mask


def request_groups(
    policy: Policy, facts: ReplicaFacts, members: Mapping[str, BoolArray]
) -> list[RequestGroup]:
    """Return all groups: tenants in the policy's order, then all others; for each the adapters
    in the policy's order, then none.
    """
    tiers = {tier.name: tier for tier in policy.tiers}
    exclusive = {
        pool.name: Cause(
            Mask.TENANT,
            ("pools", pool.name),
            f"pool '{pool.name}' is exclusive",
            members[pool.name],
        )
        for pool in policy.pools
        if pool.is_exclusive
    }
    by_adapter = {rule.name: _adapter_cause(rule, facts, members) for rule in policy.adapters}
    groups = []
    for tenant in (*policy.tenants, None):
        name = policy.default_tier if tenant is None else tenant.tier
        tier = tiers[name] if name is not None else None
        own_pools = tier.pools if tier is not None else ()
        own = [cause for name, cause in exclusive.items() if name not in own_pools]
        own += _tier_causes(facts, members, tier)
        own += _place_causes(facts, tenant, tier)
        for adapter in (*by_adapter, None):
            causes = [*own]
            if adapter is not None:
                causes += [by_adapter[adapter], *_closed_adapter(facts, tenant, adapter)]
            groups.append(
                RequestGroup(tenant=tenant, tier=tier, adapter=adapter, causes=tuple(causes))
            )
    return groups


def _any_member(names: Sequence[str], members: Mapping[str, BoolArray]) -> BoolArray:
    inside = np.zeros_like(members[names[0]])
    for name in names:
        inside |= members[name]
    return inside


def _tier_causes(
    facts: ReplicaFacts, members: Mapping[str, BoolArray], tier: Tier | None
) -> Iterator[Cause]:
    if tier is not None and tier.pools:
        text = f"tier '{tier.name}' uses pool {words(tier.pools)} only"
        yield Cause(Mask.TENANT, ("tiers", tier.name), text, ~_any_member(tier.pools, members))


def _place_causes(facts: ReplicaFacts, tenant: Tenant | None, tier: Tier | None) -> Iterator[Cause]:
    """Yield what regions and models bar; a tenant's zones are in place of its tier's."""
    if tenant is not None and tenant.zones:
        text = f"tenant '{tenant.name}' stays in zone {words(tenant.zones)}"
        bars = ~facts.any_of("zones", tenant.zones)
        yield Cause(Mask.REGION, ("tenants", tenant.name), text, bars)
    elif tier is not None and tier.zones:
        text = f"tier '{tier.name}' stays in zone {words(tier.zones)}"
        yield Cause(Mask.REGION, ("tiers", tier.name), text, ~facts.any_of("zones", tier.zones))
    if tenant is not None and tenant.models:
        text = f"tenant '{tenant.name}' may use model {words(tenant.models)} only"
        bars = ~facts.any_of("models", tenant.models)
        yield Cause(Mask.MODEL, ("tenants", tenant.name), text, bars)


def _adapter_cause(
    rule: AdapterRule, facts: ReplicaFacts, members: Mapping[str, BoolArray]
) -> Cause:
    has_it = np.zeros(facts.num_replicas, np.bool_)
    if rule.replicas:
        has_it |= facts.any_of("replicas", rule.replicas)
    if rule.pools:
        has_it |= _any_member(rule.pools, members)
    text = f"adapter '{rule.name}' is not served there"
    return Cause(Mask.ADAPTER, ("adapters", rule.name), text, ~has_it)


def _closed_adapter(facts: ReplicaFacts, tenant: Tenant | None, adapter: str) -> Iterator[Cause]:
    if tenant is not None and tenant.adapters and adapter not in tenant.adapters:
        text = f"tenant '{tenant.name}' may not use adapter '{adapter}'"
        yield Cause(Mask.ADAPTER, ("tenants", tenant.name), text, facts.everything())
