"""What rules touch in a trace, counted without a simulation.

Requests count with the lengths that they turned out to have. Budgets are replayed over the
arrivals; a request is one that nobody may take if no replica is left to it that serves its model
and could hold it, though one would be without the rules.

Does not know: what becomes of requests (`replay.py`), or how results are shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.budget import over_budget
from ...env.cluster import ClusterSpec, kv_pages
from ...env.simulator.served_models import model_of_names, served_models
from ...traces.schema import RequestTrace
from .causes import RequestGroup, RuleKey
from .compilation import CompiledPolicy
from .contradictions import causes_text, fewest_causes
from .policy_file import Policy
from .replica_facts import BoolArray, ReplicaFacts
from .service_rules import AdapterRule, Pool, Tenant, Tier

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReach:
    """What one rule touches in a trace."""

    section: str
    name: str
    num_requests: int
    """Requests that it concerns."""
    num_tokens: int
    """Their prompt and output tokens, of all sequences."""
    num_reduced: int
    """Of them, those to which it bars a replica that serves their model."""
    fewest_replicas: int | None
    """Fewest that all rules together leave to one of these; None if there is none."""
    most_replicas: int | None
    num_over_budget: int
    """Requests beyond their tenant's budget."""
    num_nowhere: int
    """Requests that nobody may take, and to which it bars a replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReach:
    """What a policy touches in a trace."""

    num_requests: int
    num_tokens: int
    num_over_budget: int
    num_nowhere: int
    rules: tuple[RuleReach, ...]
    refusals: tuple[str, ...]
    """Who finds no replica for which model, and the fewest rules that cause it."""
    unknown_tenants: tuple[str, ...]
    """Tenants of the trace that no rule names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requests:
    """The trace's requests, [N], by pair of group and model, [P]."""

    group: IntArray
    tokens: IntArray
    pair: IntArray
    """Which pair each request is of."""
    pairs: IntArray
    """Group and served model of each; [P, 2]."""
    num_left: IntArray
    """Replicas that the rules leave to each request."""
    is_nowhere: BoolArray
    is_over: BoolArray
    barring: dict[RuleKey, set[int]]
    """Pairs to which a rule bars a replica that serves the model."""


def policy_reach(
    policy: Policy, compiled: CompiledPolicy, cluster: ClusterSpec, trace: RequestTrace
) -> PolicyReach:
    """Count what each rule touches.

    Raises:
        ValueError: a model of the trace is none that a cluster of several models serves.
    """
    facts = ReplicaFacts(cluster)
    requests = _read(compiled, facts, trace)
    known = {tenant.name for tenant in policy.tenants}
    return PolicyReach(
        num_requests=len(trace),
        num_tokens=int(requests.tokens.sum()),
        num_over_budget=int(requests.is_over.sum()),
        num_nowhere=int(requests.is_nowhere.sum()),
        rules=tuple(_rules(policy, compiled, requests)),
        refusals=tuple(_refusals(policy, compiled, facts, requests)),
        unknown_tenants=tuple(name for name in trace.tenant_names if name not in known),
    )


def _read(compiled: CompiledPolicy, facts: ReplicaFacts, trace: RequestTrace) -> _Requests:
    restrictions, served = compiled.restrictions, served_models(facts.cluster)
    groups = restrictions.groups_of(trace.tenant_names, trace.adapter_names)
    group = groups[trace.tenant_index, trace.adapter_index]
    # A cluster of one model takes all requests to be for it.
    models = np.zeros(len(trace.model_names), np.int64)
    if len(served) > 1:
        models = model_of_names(trace.model_names, served, trace.source.name)
    keys = np.stack((group, models[trace.model_index]), axis=1)
    pairs, pair = np.unique(keys, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    length = trace.input_tokens.astype(np.int64) + trace.output_tokens
    tokens = trace.input_tokens + trace.num_sequences.astype(np.int64) * trace.output_tokens
    num_left, num_free = np.zeros((2, len(trace)), np.int64)
    barring: dict[RuleKey, set[int]] = {}
    capacity = _capacity_tokens(facts.cluster)
    for place, (g, model) in enumerate(pairs):
        serving = _serving(facts, served[model])
        is_open, rows = serving & (restrictions.masks[g] == 0), pair == place
        num_left[rows] = _num_holding(capacity[is_open], length[rows])
        num_free[rows] = _num_holding(capacity[serving], length[rows])
        for cause in compiled.causes[g]:
            if (cause.bars & serving).any():
                barring.setdefault(cause.rule, set()).add(place)
    # What is refused for want of a replica costs its budget nothing.
    is_charged = num_left > 0
    is_over = np.zeros(len(trace), np.bool_)
    is_over[is_charged] = over_budget(
        restrictions.groups, group[is_charged], tokens[is_charged], trace.arrival_s[is_charged]
    )
    return _Requests(
        group=group,
        tokens=tokens,
        pair=pair,
        pairs=pairs,
        num_left=num_left,
        is_nowhere=(num_left == 0) & (num_free > 0),
        is_over=is_over,
        barring=barring,
    )


def _serving(facts: ReplicaFacts, model: str) -> BoolArray:
    """Replicas that take new requests for a model while there is no emergency."""
    return facts.any_of("models", [model]) & facts.takes_new & ~facts.is_spill


def _capacity_tokens(cluster: ClusterSpec) -> IntArray:
    tokens = [kv_pages(cluster, spec) * spec.page_tokens for spec in cluster.replicas]
    return np.array(tokens, np.int64)


def _num_holding(capacity_tokens: IntArray, length_tokens: IntArray) -> IntArray:
    """How many of the replicas have the KV memory for each request."""
    return capacity_tokens.size - np.searchsorted(np.sort(capacity_tokens), length_tokens)


def _rules(policy: Policy, compiled: CompiledPolicy, requests: _Requests) -> Iterator[RuleReach]:
    for section in ("pools", "tiers", "tenants", "adapters"):
        for rule in getattr(policy, section):
            own = [i for i, group in enumerate(compiled.groups) if _concerns(policy, rule, group)]
            yield _reach(section, rule, np.isin(requests.group, own), requests)


def _concerns(
    policy: Policy, rule: Pool | Tier | Tenant | AdapterRule, group: RequestGroup
) -> bool:
    """Whether a rule has to do with a group at all."""
    match rule:
        case Tenant():
            return group.tenant == rule
        case Tier():
            return group.tier == rule
        case AdapterRule():
            return group.adapter == rule.name
    homes = next((one.pools for one in policy.adapters if one.name == group.adapter), ())
    tier = () if group.tier is None else (*group.tier.pools, *group.tier.preferred_pools)
    is_barred = any(cause.rule == ("pools", rule.name) for cause in group.causes)
    return is_barred or rule.name in (*homes, *tier)


def _reach(
    section: str,
    rule: Pool | Tier | Tenant | AdapterRule,
    is_own: BoolArray,
    requests: _Requests,
) -> RuleReach:
    barred = requests.barring.get((section, rule.name), set())
    is_reduced = is_own & np.isin(requests.pair, [*barred])
    left = requests.num_left[is_reduced]
    return RuleReach(
        section=section,
        name=rule.name,
        num_requests=int(is_own.sum()),
        num_tokens=int(requests.tokens[is_own].sum()),
        num_reduced=int(is_reduced.sum()),
        fewest_replicas=int(left.min()) if left.size else None,
        most_replicas=int(left.max()) if left.size else None,
        num_over_budget=int((is_own & requests.is_over).sum()),
        num_nowhere=int((is_reduced & requests.is_nowhere).sum()),
    )


def _refusals(
    policy: Policy, compiled: CompiledPolicy, facts: ReplicaFacts, requests: _Requests
) -> Iterator[str]:
    served = served_models(facts.cluster)
    for place, (g, model) in enumerate(requests.pairs):
        count = int((requests.is_nowhere & (requests.pair == place)).sum())
        if not count:
            continue
        serving = _serving(facts, served[model])
        smallest = fewest_causes(compiled.causes[g], serving)
        because = (
            causes_text(policy, smallest)
            if smallest is not None
            else "no replica that is left has the KV memory"
        )
        who = compiled.restrictions.names[g]
        yield f"{who}: {count} requests for '{served[model]}' find no replica, because: {because}"
