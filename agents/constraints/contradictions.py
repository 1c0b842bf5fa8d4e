"""What a policy asks that a cluster cannot keep, and what is hardly meant, in plain words.

Each message names the rules and, where they were read from files, their lines.

Does not know: how rules become masks (`causes.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from ...env.masks import Mask
from ...env.restrictions import FloatArray
from .causes import Cause, RequestGroup
from .policy_file import Policy
from .replica_facts import SELECTORS, BoolArray, ReplicaFacts
from .service_rules import words

# Sets of up to so many rules are all tried; larger ones are cut down rule by rule.
_MOST_TRIED = 3


def at(policy: Policy, section: str, name: str) -> str:
    """Return where a rule was written, ready to go before a message; empty if in no file."""
    origin = policy.origin(section, name)
    return f"{origin}: " if origin else ""


def name_faults(
    policy: Policy, facts: ReplicaFacts, members: Mapping[str, BoolArray]
) -> Iterator[str]:
    """Yield names that the cluster does not have, and pools that hold nothing."""
    for pool in policy.pools:
        where = f"{at(policy, 'pools', pool.name)}pool '{pool.name}'"
        found = [text for key in SELECTORS for text in facts.unknown(key, getattr(pool, key))]
        yield from (f"{where}: {text}" for text in found)
        if not found and not members[pool.name].any():
            yield f"{where} holds no replica: none matches all its selectors; drop one of them"
    for section, selectors in (
        ("tiers", ("zones",)),
        ("tenants", ("zones", "models")),
        ("adapters", ("replicas",)),
    ):
        for rule in getattr(policy, section):
            where = f"{at(policy, section, rule.name)}{section.removesuffix('s')} '{rule.name}'"
            for key in selectors:
                yield from (f"{where}: {text}" for text in facts.unknown(key, getattr(rule, key)))


def empty_faults(
    policy: Policy, facts: ReplicaFacts, groups: Sequence[RequestGroup]
) -> Iterator[str]:
    """Yield tenants left without a replica for a model or an adapter that a rule gives them."""
    for group in groups:
        tenant = group.tenant
        # Who names no adapter may find that one is not to be had for it.
        if tenant is None or (group.adapter is not None and group.adapter not in tenant.adapters):
            continue
        who = f"{at(policy, 'tenants', tenant.name)}{group.name}"
        causes = [*group.causes, *_standing_causes(facts)]
        found = [*_nowhere(policy, who, causes, facts.everything(), "")]
        if not found and group.adapter is None:
            for model in tenant.models:
                serving = facts.any_of("models", [model])
                found += _nowhere(policy, who, causes, serving, f" for '{model}'")
        yield from found


def _standing_causes(facts: ReplicaFacts) -> Iterator[Cause]:
    """Yield what bars replicas to all new requests, whatever the rules."""
    for reason, text, bars in (
        (Mask.SPILL, "the cluster keeps the spill tier for emergencies", facts.is_spill),
        (Mask(0), "replicas of role 'decode' take no new requests", ~facts.takes_new),
    ):
        if bars.any():
            yield Cause(reason, ("cluster", facts.cluster.name), text, bars)


def _nowhere(
    policy: Policy, who: str, causes: Sequence[Cause], serving: BoolArray, what: str
) -> Iterator[str]:
    smallest = fewest_causes(causes, serving)
    if smallest is not None:
        because = causes_text(policy, smallest)
        yield (
            f"{who} is left without a replica{what}, because: {because}; change one of these rules"
        )


def causes_text(policy: Policy, causes: Sequence[Cause]) -> str:
    """Return rules in a few words each, with where they were written."""
    origins = [policy.origin(*cause.rule) for cause in causes]
    return "; ".join(
        f"{cause.text} ({origin})" if origin else cause.text
        for cause, origin in zip(causes, origins, strict=True)
    )


def fewest_causes(causes: Sequence[Cause], serving: BoolArray) -> tuple[Cause, ...] | None:
    """Return the fewest causes that together bar all of these replicas; None if one is left.

    Beyond three it is a set of which none can be left out, not always the smallest.
    """
    barred = [cause for cause in causes if (cause.bars & serving).any()]
    if not barred or not _bar_all(barred, serving):
        return None if serving.any() else ()
    for size in range(1, min(_MOST_TRIED, len(barred)) + 1):
        for some in combinations(barred, size):
            if _bar_all(some, serving):
                return some
    kept = barred
    for cause in barred:
        others = [other for other in kept if other is not cause]
        if _bar_all(others, serving):
            kept = others
    return tuple(kept)


def _bar_all(causes: Sequence[Cause], serving: BoolArray) -> bool:
    return bool(np.logical_or.reduce([cause.bars for cause in causes])[serving].all())


def limit_faults(
    policy: Policy,
    facts: ReplicaFacts,
    groups: Sequence[RequestGroup],
    open_replicas: Sequence[BoolArray],
) -> Iterator[str]:
    """Yield limits that no replica which a group may use could meet, even empty."""
    limited = [rule.name for rule in policy.tiers if rule.ttft_s or rule.tpot_s]
    limited += [rule.name for rule in policy.tenants if rule.ttft_s or rule.tpot_s]
    if not limited:
        return
    is_candidate = (facts.takes_new & ~facts.is_spill, ~facts.is_spill)
    what = ("a first token", "a further token")
    for group, is_open in zip(groups, open_replicas, strict=True):
        models = group.tenant.models if group.tenant is not None else ()
        for kind, field in enumerate(("ttft_s", "tpot_s")):
            rule, limit_s = _limit(group, field)
            if limit_s is None:
                continue
            where = f"{at(policy, *rule)}{group.name}"
            for model in models or (None,):
                serving = is_open & is_candidate[kind]
                if model is not None:
                    serving &= facts.any_of("models", [model])
                text = _too_short(facts.least_s[serving, kind], limit_s)
                if text:
                    of_model = f" of '{model}'" if model is not None else ""
                    yield f"{where}: {what[kind]}{of_model} within {limit_s:g} s is {text}"


def _limit(group: RequestGroup, field: str) -> tuple[tuple[str, str], float | None]:
    """Return which rule sets a limit, and the limit; a tenant's is in place of its tier's."""
    for section, rule in (("tenants", group.tenant), ("tiers", group.tier)):
        if rule is not None and getattr(rule, field) is not None:
            return (section, rule.name), getattr(rule, field)
    return ("", ""), None


def _too_short(least_s: FloatArray, limit_s: float) -> str:
    if not least_s.size or least_s.min() <= limit_s:
        return ""
    return (
        "impossible: the fastest replica that it may use takes "
        f"{least_s.min():.4f} s when empty; raise the limit"
    )


def warnings(
    policy: Policy,
    facts: ReplicaFacts,
    members: Mapping[str, BoolArray],
    groups: Sequence[RequestGroup],
) -> Iterator[str]:
    """Yield what can be kept but is hardly meant."""
    yield from _pool_warnings(policy, members)
    for tier in policy.tiers:
        closed = {pool.name for pool in policy.pools if pool.is_exclusive} - set(tier.pools)
        for name in sorted(closed & set(tier.preferred_pools)):
            yield (
                f"{at(policy, 'tiers', tier.name)}tier '{tier.name}' prefers pool '{name}', which "
                "is exclusive and not among its pools: it may not use it"
            )
    for group in groups:
        if group.adapter is None:
            yield from _model_warnings(policy, facts, group)


def _pool_warnings(policy: Policy, members: Mapping[str, BoolArray]) -> Iterator[str]:
    exclusive = [pool for pool in policy.pools if pool.is_exclusive]
    for pool in exclusive:
        users = tuple(tier.name for tier in policy.tiers if pool.name in tier.pools)
        where = f"{at(policy, 'pools', pool.name)}exclusive pool '{pool.name}'"
        if not users:
            yield f"{where} is assigned to no tier: nobody may use it"
        if len(users) > 1:
            yield f"{where} is shared by the tiers {', '.join(map(repr, users))}"
    for one, other in combinations(exclusive, 2):
        num_shared = int((members[one.name] & members[other.name]).sum())
        if num_shared:
            yield (
                f"{at(policy, 'pools', other.name)}exclusive pools '{one.name}' and "
                f"'{other.name}' share {num_shared} replica(s): only tiers of both may use them"
            )


def _model_warnings(policy: Policy, facts: ReplicaFacts, group: RequestGroup) -> Iterator[str]:
    """Models that no rule keeps from a group, and of which it finds no replica all the same."""
    if group.tenant is not None and group.tenant.models:
        return
    causes = [*group.causes, *_standing_causes(facts)]
    if not causes:
        return
    is_open = ~np.logical_or.reduce([cause.bars for cause in causes])
    lost = [name for name in facts.models if not is_open[facts.any_of("models", [name])].any()]
    if lost:
        where = at(policy, "tenants", group.tenant.name) if group.tenant is not None else ""
        yield (
            f"{where}{group.name} may use every model but finds no replica of "
            f"{words(tuple(lost))}: requests for it are refused"
        )
