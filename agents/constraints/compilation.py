"""Rules compiled for one cluster: masks and penalties of every group of requests.

Every bit that is set is traceable to the rule that set it. What cannot be kept is found here and
said in plain words: a tenant left without any replica, with the fewest rules that together cause
it; limits below what the hardware can do; names that the cluster does not have.

Does not know: files, requests, or the kernel that obeys the masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ...env.cluster import ClusterSpec
from ...env.hardware import unknown_name_message
from ...env.latency import base_time_s
from ...env.masks import Mask
from ...env.model_version import is_named
from ...env.restrictions import Restrictions, open_groups
from ...env.simulator.setup import replica_coefficients
from ...traces.errors import ConfigError
from .policy_file import Policy
from .service_rules import OverBudget, Pool, Tenant, Tier

BoolArray = NDArray[np.bool_]

# Penalty of a replica outside the preferred pools, in units of the score: half a TTFT limit.
PREFERENCE_PENALTY = 0.5
_NOBODY = "other tenants"


@dataclass(frozen=True, slots=True)
class Cause:
    """One rule's part in a mask."""

    reason: Mask
    text: str
    """The rule, in a few words."""
    bars: BoolArray
    """Replicas that it bars; [replicas]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompiledPolicy:
    """Restrictions for the kernel, and what each of their bits comes from."""

    restrictions: Restrictions
    causes: tuple[tuple[Cause, ...], ...]
    """By group."""
    warnings: tuple[str, ...] = ()
    """What may be kept but is hardly meant."""

    def reasons(self, group: int, replica: int) -> list[str]:
        """Return the rules that bar a replica to a group."""
        return [cause.text for cause in self.causes[group] if cause.bars[replica]]


class _Cluster:
    """Names of a cluster's replicas as arrays."""

    def __init__(self, cluster: ClusterSpec) -> None:
        specs = cluster.replicas
        servers = [cluster.server_of(spec) for spec in specs]
        self.cluster = cluster
        self.names = {
            "replicas": np.array([spec.name for spec in specs]),
            "servers": np.array([server.name for server in servers]),
            "zones": np.array([server.zone for server in servers]),
            "gpus": np.array([server.gpu for server in servers]),
            "models": np.array([spec.model for spec in specs]),
        }
        self.num_replicas = len(specs)

    def any_of(self, selector: str, names: Sequence[str]) -> BoolArray:
        """Return the replicas that one of the names is meant for; all if there is no name."""
        if not names:
            return np.ones(self.num_replicas, np.bool_)
        if selector == "models":  # a bare name means all versions
            keys = self.names[selector]
            return np.array([any(is_named(key, name) for name in names) for key in keys])
        return np.isin(self.names[selector], names)

    def members(self, pool: Pool) -> BoolArray:
        """Return the replicas of a pool."""
        inside = np.ones(self.num_replicas, np.bool_)
        for selector in self.names:
            inside &= self.any_of(selector, getattr(pool, selector))
        return inside

    def unknown(self, selector: str, names: Sequence[str]) -> Iterator[str]:
        """Yield a message for each name that the cluster does not have."""
        known = [str(name) for name in dict.fromkeys(self.names[selector])]
        for name in names:
            if name not in known and not (
                selector == "models" and any(is_named(key, name) for key in known)
            ):
                yield unknown_name_message(selector.removesuffix("s"), name, known)


def compile_policy(policy: Policy, cluster: ClusterSpec) -> CompiledPolicy:
    """Return what a policy means for a cluster.

    Raises: `ConfigError` with every rule that the cluster cannot keep, and where it was written.
    """
    facts = _Cluster(cluster)
    members = {pool.name: facts.members(pool) for pool in policy.pools}
    faults = [*_name_faults(policy, facts, members)]
    if faults:
        raise ConfigError(_message(policy, cluster, faults))
    tiers = {tier.name: tier for tier in policy.tiers}
    adapters = [adapter.name for adapter in policy.adapters]
    tenants: list[Tenant | None] = [*policy.tenants, None]
    names, causes, records, penalties = [], [], [], []
    for tenant in tenants:
        tier = _tier_of(policy, tenant, tiers)
        own = [*_causes(policy, facts, members, tenant, tier)]
        for adapter in (*adapters, None):
            name = tenant.name if tenant is not None else _NOBODY
            names.append(name if adapter is None else f"{name} with adapter {adapter}")
            causes.append((*own, *_adapter_causes(policy, facts, members, tenant, adapter)))
            records.append(_record(tenant, tier))
            penalties.append(_penalties(facts, members, tier))
    groups = np.concatenate(records)
    faults = [
        *_empty_faults(policy, facts, names, causes),
        *_limit_faults(facts, names, causes, groups),
    ]
    if faults:
        raise ConfigError(_message(policy, cluster, faults))
    shape = (len(tenants), len(adapters) + 1)
    restrictions = Restrictions(
        names=tuple(names),
        masks=np.stack([_mask(one, facts.num_replicas) for one in causes]),
        penalties=np.stack(penalties),
        groups=groups,
        table=np.arange(len(names)).reshape(shape),
        tenants={tenant.name: i for i, tenant in enumerate(policy.tenants)},
        adapters={name: i for i, name in enumerate(adapters)},
    )
    return CompiledPolicy(
        restrictions=restrictions, causes=tuple(causes), warnings=tuple(_warnings(policy))
    )


def _message(policy: Policy, cluster: ClusterSpec, faults: Sequence[str]) -> str:
    lines = "".join(f"\n  - {fault}" for fault in dict.fromkeys(faults))
    return f"policy '{policy.name}' cannot be kept on cluster '{cluster.name}':{lines}"


def _tier_of(policy: Policy, tenant: Tenant | None, tiers: dict[str, Tier]) -> Tier | None:
    if tenant is not None:
        return tiers[tenant.tier]
    return tiers[policy.default_tier] if policy.default_tier is not None else None


def _name_faults(policy: Policy, facts: _Cluster, members: dict[str, BoolArray]) -> Iterator[str]:
    """Names that the cluster does not have, and pools that hold nothing."""
    for pool in policy.pools:
        where = f"{policy.origin('pools', pool.name)}: pool '{pool.name}'"
        found = [text for key in facts.names for text in facts.unknown(key, getattr(pool, key))]
        yield from (f"{where}: {text}" for text in found)
        if not found and not members[pool.name].any():
            yield f"{where} holds no replica: none matches all its selectors; drop one of them"
    for tier in policy.tiers:
        where = f"{policy.origin('tiers', tier.name)}: tier '{tier.name}'"
        yield from (f"{where}: {text}" for text in facts.unknown("zones", tier.zones))
    for tenant in policy.tenants:
        where = f"{policy.origin('tenants', tenant.name)}: tenant '{tenant.name}'"
        yield from (f"{where}: {text}" for text in facts.unknown("zones", tenant.zones))
        yield from (f"{where}: {text}" for text in facts.unknown("models", tenant.models))
    for adapter in policy.adapters:
        where = f"{policy.origin('adapters', adapter.name)}: adapter '{adapter.name}'"
        yield from (f"{where}: {text}" for text in facts.unknown("replicas", adapter.replicas))


def _causes(
    policy: Policy,
    facts: _Cluster,
    members: dict[str, BoolArray],
    tenant: Tenant | None,
    tier: Tier | None,
) -> Iterator[Cause]:
    """Yield what bars replicas to a tenant, whatever the adapter."""
    own_pools = tier.pools if tier is not None else ()
    for pool in policy.pools:
        if pool.is_exclusive and pool.name not in own_pools:
            yield Cause(Mask.TENANT, f"pool '{pool.name}' is exclusive", members[pool.name])
    if tier is not None and own_pools:
        inside = np.any([members[name] for name in own_pools], axis=0)
        text = f"tier '{tier.name}' uses pool {' or '.join(map(repr, own_pools))} only"
        yield Cause(Mask.TENANT, text, ~inside)
    zones = tenant.zones if tenant is not None and tenant.zones else ()
    holder = f"tenant '{tenant.name}'" if tenant is not None and zones else ""
    if tier is not None and not zones:
        zones, holder = tier.zones, f"tier '{tier.name}'"
    if zones:
        text = f"{holder} stays in zone {' or '.join(map(repr, zones))}"
        yield Cause(Mask.REGION, text, ~facts.any_of("zones", zones))
    if tenant is not None and tenant.models:
        models = " or ".join(map(repr, tenant.models))
        text = f"tenant '{tenant.name}' may use model {models} only"
        yield Cause(Mask.MODEL, text, ~facts.any_of("models", tenant.models))


def _adapter_causes(
    policy: Policy,
    facts: _Cluster,
    members: dict[str, BoolArray],
    tenant: Tenant | None,
    adapter: str | None,
) -> Iterator[Cause]:
    if adapter is None:
        return
    (rule,) = (one for one in policy.adapters if one.name == adapter)
    has_it = np.zeros(facts.num_replicas, np.bool_)
    if rule.replicas:
        has_it |= facts.any_of("replicas", rule.replicas)
    for pool in rule.pools:
        has_it |= members[pool]
    yield Cause(Mask.ADAPTER, f"adapter '{adapter}' is not served there", ~has_it)
    if tenant is not None and tenant.adapters and adapter not in tenant.adapters:
        text = f"tenant '{tenant.name}' may not use adapter '{adapter}'"
        yield Cause(Mask.ADAPTER, text, np.ones(facts.num_replicas, np.bool_))


def _mask(causes: Sequence[Cause], num_replicas: int) -> NDArray[np.uint16]:
    mask = np.zeros(num_replicas, np.uint16)
    for cause in causes:
        mask[cause.bars] |= np.uint16(cause.reason)
    return mask


def _penalties(
    facts: _Cluster, members: dict[str, BoolArray], tier: Tier | None
) -> NDArray[np.float64]:
    if tier is None or not tier.preferred_pools:
        return np.zeros(facts.num_replicas)
    inside = np.any([members[name] for name in tier.preferred_pools], axis=0)
    return np.where(inside, 0.0, PREFERENCE_PENALTY)


def _record(tenant: Tenant | None, tier: Tier | None) -> np.ndarray:
    """Return a group's limits and budget, GROUP_DTYPE [1]."""
    record = open_groups(1)
    if tier is None:
        return record
    record["priority"] = tier.priority.number
    record["weight"] = np.nan if tier.weight is None else tier.weight
    for name, field in (("ttft_slo_s", "ttft_s"), ("tpot_slo_s", "tpot_s")):
        own = getattr(tenant, field) if tenant is not None else None
        value = own if own is not None else getattr(tier, field)
        record[name] = np.nan if value is None else value
    budget = tenant.budget if tenant is not None else None
    if budget is not None:
        record["tokens_per_s"] = budget.tokens_per_s
        record["burst_tokens"] = budget.tokens_per_s * budget.burst_s
        if budget.requests_per_s is not None:
            record["requests_per_s"] = budget.requests_per_s
            record["burst_requests"] = max(1.0, budget.requests_per_s * budget.burst_s)
        record["is_demoting"] = budget.when_over is OverBudget.DEMOTE
    return record


def _empty_faults(
    policy: Policy, facts: _Cluster, names: Sequence[str], causes: Sequence[tuple[Cause, ...]]
) -> Iterator[str]:
    """Tenants that are left without a replica, with the fewest rules that together cause it."""
    width = len(policy.adapters) + 1
    for group, own in enumerate(causes):
        has_adapter = group % width != width - 1
        # Whether a tenant may use an adapter at all is for its rule to say.
        if has_adapter or group // width == len(policy.tenants):
            continue
        tenant = policy.tenants[group // width]
        where = policy.origin("tenants", tenant.name)
        everything = np.ones(facts.num_replicas, np.bool_)
        found = [*_nowhere(f"{where}: {names[group]}", own, everything, "")]
        for model in () if found else tenant.models:
            serving = facts.any_of("models", [model])
            found += _nowhere(f"{where}: {names[group]}", own, serving, f" for '{model}'")
        yield from found


def _nowhere(who: str, causes: Sequence[Cause], serving: BoolArray, what: str) -> Iterator[str]:
    smallest = fewest_causes(causes, serving)
    if smallest is not None:
        rules = "; ".join(cause.text for cause in smallest)
        yield f"{who} is left without a replica{what}, because: {rules}; change one of these rules"


def fewest_causes(causes: Sequence[Cause], serving: BoolArray) -> tuple[Cause, ...] | None:
    """Return the fewest causes that together bar all of these replicas; None if one is left."""
    for size in range(1, len(causes) + 1):
        for some in combinations(causes, size):
            if np.any([cause.bars for cause in some], axis=0)[serving].all():
                return some
    return None


def _limit_faults(
    facts: _Cluster,
    names: Sequence[str],
    causes: Sequence[tuple[Cause, ...]],
    groups: np.ndarray,
) -> Iterator[str]:
    """Limits that no replica which the group may use could meet, even empty."""
    coefficients = replica_coefficients(facts.cluster)
    prefill_s = np.array([base_time_s(c, 1.0, 1.0, 0.0) for c in coefficients])
    decode_s = np.array([base_time_s(c, 0.0, 0.0, 1.0) for c in coefficients])
    for name, own, group in zip(names, causes, groups, strict=True):
        is_open = _mask(own, facts.num_replicas) == 0
        if not is_open.any():
            continue
        for limit, least_s, what in (
            ("ttft_slo_s", prefill_s, "a first token"),
            ("tpot_slo_s", decode_s, "a further token"),
        ):
            best_s = float(least_s[is_open].min())
            if group[limit] < best_s:
                yield (
                    f"{name}: {what} within {group[limit]:g} s is impossible: the fastest replica "
                    f"that it may use takes {best_s:.4f} s when empty; raise the limit"
                )


def _warnings(policy: Policy) -> Iterator[str]:
    for pool in policy.pools:
        users = [tier.name for tier in policy.tiers if pool.name in tier.pools]
        where = policy.origin("pools", pool.name)
        if pool.is_exclusive and not users:
            yield f"{where}: exclusive pool '{pool.name}' is assigned to no tier: nobody may use it"
        if pool.is_exclusive and len(users) > 1:
            tiers = ", ".join(map(repr, users))
            yield f"{where}: exclusive pool '{pool.name}' is shared by the tiers {tiers}"
