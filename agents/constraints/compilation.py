"""Rules compiled for one cluster: masks and penalties of every group of requests.

Every bit that is set is traceable to the rule that set it. What cannot be kept is found here and
said in plain words (`contradictions.py`). The spill tier is no matter of groups: it is masked in
what the shield lets each replica have, so that an emergency may open it.

Does not know: files, requests, or the kernel that obeys the masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...env.cluster import ClusterSpec
from ...env.restrictions import FloatArray, Restrictions, open_groups
from ...traces.errors import ConfigError
from .causes import Cause, RequestGroup, request_groups
from .contradictions import empty_faults, limit_faults, name_faults, warnings
from .policy_file import Policy
from .replica_facts import BoolArray, ReplicaFacts
from .service_rules import OverBudget, Tier

# Penalty of a replica outside the preferred pools, in units of the score: half a TTFT limit.
PREFERENCE_PENALTY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompiledPolicy:
    """Restrictions for the kernel, and what each of their bits comes from."""

    restrictions: Restrictions
    groups: tuple[RequestGroup, ...]
    """What each group is of, with the causes of its mask."""
    warnings: tuple[str, ...] = ()
    """What may be kept but is hardly meant."""

    @property
    def causes(self) -> tuple[tuple[Cause, ...], ...]:
        """What bars replicas, by group."""
        return tuple(group.causes for group in self.groups)

    def reasons(self, group: int, replica: int) -> list[str]:
        """Return the rules that bar a replica to a group."""
        return [cause.text for cause in self.groups[group].causes if cause.bars[replica]]


def compile_policy(policy: Policy, cluster: ClusterSpec) -> CompiledPolicy:
    """Return what a policy means for a cluster.

    Raises: `ConfigError` with every rule that the cluster cannot keep, and where it was written.
    """
    facts = ReplicaFacts(cluster)
    members = {pool.name: facts.members(pool) for pool in policy.pools}
    _refuse(policy, cluster, [*name_faults(policy, facts, members)])
    groups = request_groups(policy, facts, members)
    masks = np.stack([group.mask(facts.num_replicas) for group in groups])
    faults = [
        *empty_faults(policy, facts, groups),
        *limit_faults(policy, facts, groups, masks == 0),
    ]
    _refuse(policy, cluster, faults)
    shape = (len(policy.tenants) + 1, len(policy.adapters) + 1)
    restrictions = Restrictions(
        names=tuple(group.name for group in groups),
        masks=masks,
        penalties=_penalties(facts, members, groups),
        groups=_records(groups),
        table=np.arange(len(groups)).reshape(shape),
        tenants={tenant.name: i for i, tenant in enumerate(policy.tenants)},
        adapters={rule.name: i for i, rule in enumerate(policy.adapters)},
    )
    return CompiledPolicy(
        restrictions=restrictions,
        groups=tuple(groups),
        warnings=tuple(warnings(policy, facts, members, groups)),
    )


def _refuse(policy: Policy, cluster: ClusterSpec, faults: Sequence[str]) -> None:
    if faults:
        lines = "".join(f"\n  - {fault}" for fault in dict.fromkeys(faults))
        msg = f"policy '{policy.name}' cannot be kept on cluster '{cluster.name}':{lines}"
        raise ConfigError(msg)


def _penalties(
    facts: ReplicaFacts, members: Mapping[str, BoolArray], groups: Sequence[RequestGroup]
) -> FloatArray:
    """Return what is added to replicas outside a tier's preferred pools, [G, R]."""
    penalties = np.zeros((len(groups), facts.num_replicas))
    for row, group in zip(penalties, groups, strict=True):
        if group.tier is not None and group.tier.preferred_pools:
            row[:] = PREFERENCE_PENALTY
            for name in group.tier.preferred_pools:
                row[members[name]] = 0.0
    return penalties


def _records(groups: Sequence[RequestGroup]) -> np.ndarray:
    """Return the groups' limits and budgets, GROUP_DTYPE [G]; a tenant's groups share a budget."""
    records = open_groups(len(groups))
    first: dict[str, int] = {}
    for i, group in enumerate(groups):
        if group.tier is not None:
            _set_limits(records[i], group, group.tier)
        if group.tenant is not None:
            records[i]["budget_group"] = first.setdefault(group.tenant.name, i)
            _set_budget(records[i], group)
    return records


def _set_limits(record: np.void, group: RequestGroup, tier: Tier) -> None:
    record["priority"] = tier.priority.number
    if tier.weight is not None:
        record["weight"] = tier.weight
    for name, field in (("ttft_slo_s", "ttft_s"), ("tpot_slo_s", "tpot_s")):
        own = getattr(group.tenant, field, None)
        value = own if own is not None else getattr(tier, field)
        if value is not None:
            record[name] = value


def _set_budget(record: np.void, group: RequestGroup) -> None:
    budget = group.tenant.budget if group.tenant is not None else None
    if budget is None:
        return
    record["tokens_per_s"] = budget.tokens_per_s
    record["burst_tokens"] = budget.tokens_per_s * budget.burst_s
    if budget.requests_per_s is not None:
        record["requests_per_s"] = budget.requests_per_s
        record["burst_requests"] = max(1.0, budget.requests_per_s * budget.burst_s)
    record["is_demoting"] = budget.when_over is OverBudget.DEMOTE
