"""What a policy would have done on a recorded trace: the trace replayed with and without it.

Both replays meet the same arrivals, faults and lost scrapes, under one scheduler. For every rule
the requests that it concerned, and what it changed.

Does not know: how the results are shown.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.cluster import ClusterSpec
from ...env.guard import Guard
from ...env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from ...env.kpis import Kpis
from ...env.shed_reason import ShedReason
from ...env.simulated_fleet import SimulatedFleet
from ...env.simulator.layout import NONE
from ...env.simulator.setup import FleetConfig
from ...env.simulator.workload import Workload
from ..shield.shield import ShieldConfig
from ..shield.simulated_shield import SimulatedShield
from .compilation import CompiledPolicy, compile_policy
from .policy_file import Policy
from .service_rules import Tenant

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleImpact:
    """What one rule would have done."""

    section: str
    name: str
    text: str
    """In words."""
    num_requests: int = 0
    """Requests that it concerned."""
    num_changed: int = 0
    """Of those, the ones that it changed: sent elsewhere, refused, demoted, cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReplay:
    """A trace with a policy and without it."""

    impacts: tuple[RuleImpact, ...]
    before: Kpis
    after: Kpis
    events: tuple[str, ...]
    """Emergency actions and alarms in order of time, in words."""


@dataclass(frozen=True, slots=True)
class _Runs:
    """Both replays and what maps requests to rules."""

    policy: Policy
    compiled: CompiledPolicy
    before: SimulatedFleet
    after: SimulatedFleet
    tenants: tuple[str, ...]
    """Name of each tenant number."""

    @property
    def tenant(self) -> IntArray:
        """Tenant of each request."""
        return np.asarray(self.after.requests["tenant"])

    def is_of(self, names: set[str]) -> BoolArray:
        """Return which requests are of these tenants."""
        return np.isin(self.tenant, [i for i, name in enumerate(self.tenants) if name in names])


def shield_of(policy: Policy) -> Guard:
    """Return the shield that a policy asks for, for a simulated fleet."""
    config = ShieldConfig(
        emergencies=policy.emergencies, staleness=policy.staleness, breakers=policy.breakers
    )
    return SimulatedShield(config)


def replay_policy(
    policy: Policy,
    cluster: ClusterSpec,
    workload: Workload,
    *,
    config: FleetConfig | None = None,
    knobs: Knobs = ANALYTIC_SCORER_KNOBS,
    seed: int = 0,
    on_run: Callable[[], None] = lambda: None,
) -> PolicyReplay:
    """Replay a workload with a policy and without it; `on_run` is called after each of the two.

    Raises: `ConfigError` if the cluster cannot keep the policy.
    """
    config = config or FleetConfig()
    compiled = compile_policy(policy, cluster)
    bound = _replace_restrictions(config, compiled)
    guard = shield_of(policy)
    before = SimulatedFleet(cluster, workload, config)
    after = SimulatedFleet(cluster, workload, bound, guard=guard)
    for fleet in (before, after):
        fleet.reset(seed=seed, knobs=knobs)
        fleet.drain()
        on_run()
    assert isinstance(guard, SimulatedShield), f"guard is {type(guard)}"
    runs = _Runs(policy, compiled, before, after, workload.tenant_names)
    return PolicyReplay(
        impacts=(*_service_impacts(runs), *_shield_impacts(policy, guard)),
        before=before.kpis(),
        after=after.kpis(),
        events=_events(guard),
    )


def _replace_restrictions(config: FleetConfig, compiled: CompiledPolicy) -> FleetConfig:
    values = {name: getattr(config, name) for name in FleetConfig.__dataclass_fields__}
    return FleetConfig(**{**values, "restrictions": compiled.restrictions})


def _service_impacts(runs: _Runs) -> Iterator[RuleImpact]:
    """What pools, tiers, tenants and adapters did."""
    for pool in runs.policy.pools:
        yield _pool_impact(runs, pool.name, is_exclusive=pool.is_exclusive)
    for tier in runs.policy.tiers:
        names = {tenant.name for tenant in runs.policy.tenants if tenant.tier == tier.name}
        named = {tenant.name for tenant in runs.policy.tenants}
        if runs.policy.default_tier == tier.name:
            names |= set(runs.tenants) - named
        yield _group_impact(runs, "tiers", tier.name, runs.is_of(names))
    for tenant in runs.policy.tenants:
        yield _tenant_impact(runs, tenant)
    workload = runs.after.workload
    for adapter in runs.policy.adapters:
        numbers = [i + 1 for i, name in enumerate(workload.adapter_names) if name == adapter.name]
        is_own = np.isin(runs.after.requests["adapter"], numbers)
        yield _group_impact(runs, "adapters", adapter.name, is_own)


def _pool_impact(runs: _Runs, name: str, *, is_exclusive: bool) -> RuleImpact:
    masks = runs.compiled.restrictions.masks
    group = runs.after.requests["query"]["group"]
    bars = np.zeros(masks.shape, np.bool_)
    for g, causes in enumerate(runs.compiled.causes):
        for cause in causes:
            if cause.rule == ("pools", name):
                bars[g] |= cause.bars
    replica = runs.before.requests["replica"]
    was_kept_out = np.where(replica == NONE, False, bars[group, np.maximum(replica, 0)])
    count = int(was_kept_out.sum())
    words = f"keeps out {count} requests of others that went there"
    return RuleImpact(
        section="pools",
        name=name,
        text=words if is_exclusive else "names replicas for other rules",
        num_requests=int(bars[group].any(axis=1).sum()),
        num_changed=count,
    )


def _group_impact(runs: _Runs, section: str, name: str, is_own: BoolArray) -> RuleImpact:
    """What happened to some requests with the policy that did not without it."""
    after, before = runs.after.requests[is_own], runs.before.requests[is_own]
    masks = runs.compiled.restrictions.masks
    was_barred = np.where(
        before["replica"] == NONE,
        False,
        masks[after["query"]["group"], np.maximum(before["replica"], 0)] != 0,
    )
    over = after["shed_reason"] == ShedReason.BUDGET
    had_nobody, has_nobody = (some["shed_reason"] == ShedReason.NOBODY for some in (before, after))
    nobody = has_nobody & ~had_nobody
    demoted = after["query"]["priority"] > before["query"]["priority"]
    counts = (
        (was_barred, "sent elsewhere"),
        (over, "refused over budget"),
        (nobody, "refused for want of a replica"),
        (demoted, "made batch requests"),
    )
    parts = [f"{int(some.sum())} {what}" for some, what in counts if some.any()]
    return RuleImpact(
        section=section,
        name=name,
        text=", ".join(parts) or ("changes nothing" if is_own.any() else "concerns no request"),
        num_requests=int(is_own.sum()),
        num_changed=int(np.any([some for some, _ in counts], axis=0).sum()) if is_own.any() else 0,
    )


def _tenant_impact(runs: _Runs, tenant: Tenant) -> RuleImpact:
    return _group_impact(runs, "tenants", tenant.name, runs.is_of({tenant.name}))


def _shield_impacts(policy: Policy, guard: SimulatedShield) -> Iterator[RuleImpact]:
    """What breakers and emergency actions did."""
    for breaker in policy.breakers:
        own = [alarm for alarm in guard.shield.alarms if alarm.name == breaker.name]
        raised = [alarm for alarm in own if not alarm.is_resolved]
        places = len({alarm.place for alarm in raised})
        text = f"opens {len(raised)} times at {places} places" if raised else "never opens"
        yield RuleImpact(section="breakers", name=breaker.name, text=text)
    for rule in policy.emergencies:
        own_records = [one for one in guard.shield.emergencies.records if one.kind is rule.kind]
        begun = [one for one in own_records if one.deed == "begin"]
        ended = [one for one in own_records if one.deed == "end"]
        lasted_s = sum(one.at_s for one in ended) - sum(one.at_s for one in begun[: len(ended)])
        text = f"begins {len(begun)} times, {lasted_s:.1f} s in all" if begun else "never begins"
        skipped = guard.shield.emergencies.skipped[rule.kind]
        if skipped:
            text += f"; skipped {skipped} times: the engines cannot do it"
        yield RuleImpact(section="emergency", name=str(rule.kind), text=text)
    barred = ", ".join(
        f"{reason.name} {span:.1f}" for reason, span in guard.shield.barred_s.items()
    )
    text = f"replica-seconds barred: {barred}" if barred else "bars no replica"
    yield RuleImpact(section="shield", name="masks", text=text)


def _events(guard: SimulatedShield) -> tuple[str, ...]:
    told = [(one.at_s, one.sentence()) for one in guard.shield.emergencies.records]
    told += [(alarm.at_s, f"{alarm.at_s:.2f} s: {alarm.sentence}") for alarm in guard.shield.alarms]
    return tuple(text for _, text in sorted(told))
