"""How tiers, tenants, pools and adapters are written in a policy file.

Does not know: the other sections (`policy_file.py`), or what the rules mean (`service_rules.py`).
"""

from typing import Annotated

from pydantic import Field

from ...env.config_file import Entry
from .service_rules import AdapterRule, Budget, OverBudget, Pool, Priority, Tenant, Tier

_Names = Annotated[tuple[str, ...], Field(strict=False)]


class PoolEntry(Entry):
    """One item of `pools`."""

    name: str = Field(min_length=1)
    """Unique; tiers and adapters name the pool by it."""
    replicas: _Names = ()
    """Names of replicas."""
    servers: _Names = ()
    """Names of servers."""
    zones: _Names = ()
    """Names of zones."""
    gpus: _Names = ()
    """Kinds of GPU."""
    models: _Names = ()
    """Models that they serve."""
    is_exclusive: bool = False
    """Closed to all tenants that are not assigned to it."""

    def rule(self) -> Pool:
        """Return the rule."""
        return Pool(**self.model_dump())


class TierEntry(Entry):
    """One item of `tiers`."""

    name: str = Field(min_length=1)
    """Unique; tenants name their tier by it."""
    priority: Annotated[Priority, Field(strict=False)] = Priority.INTERACTIVE
    """Class in every queue: `interactive` or `batch`."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Worth of a request that meets its limits (default: 2 interactive, 1 batch)."""
    ttft_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit on the time to first token, s; in place of the requests' own."""
    tpot_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit on the time per output token, s; in place of the requests' own."""
    pools: _Names = ()
    """Pools that its requests may use; none: all that are not exclusive."""
    preferred_pools: _Names = ()
    """Pools that they use before others."""
    zones: _Names = ()
    """Zones that their data may be in; none: all."""

    def rule(self) -> Tier:
        """Return the rule."""
        return Tier(**self.model_dump())


class BudgetEntry(Entry):
    """The `budget` of a tenant."""

    tokens_per_min: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Prompt and output tokens a minute."""
    requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Requests a second."""
    usd_per_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Dollars an hour, at the price below."""
    usd_per_million_tokens: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Price of a million tokens, USD."""
    burst_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Time whose budget may be used at once, s."""
    when_over: Annotated[OverBudget, Field(strict=False)] = OverBudget.REFUSE
    """What becomes of requests beyond it: `refuse`, or `demote` to batch."""

    def rule(self) -> Budget:
        """Return the rule.

        Raises:
            ValueError: it limits nothing, or dollars without a price.
        """
        return Budget(**self.model_dump())


class TenantEntry(Entry):
    """One item of `tenants`."""

    name: str = Field(min_length=1)
    """Name by which requests carry it."""
    tier: str
    """Name of its tier."""
    zones: _Names = ()
    """Zones that its data may be in, in place of the tier's."""
    ttft_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit on the time to first token, s, in place of the tier's."""
    tpot_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit on the time per output token, s, in place of the tier's."""
    models: _Names = ()
    """Models that it may use; none: all."""
    adapters: _Names = ()
    """Adapters, of those with a rule, that it may use; none: all."""
    budget: BudgetEntry | None = None
    """What it may use; none: as much as it gets."""

    def rule(self) -> Tenant:
        """Return the rule.

        Raises:
            ValueError: the budget contradicts itself.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        budget = self.budget.rule() if self.budget is not None else None
        return Tenant(**{**values, "budget": budget})


class AdapterEntry(Entry):
    """One item of `adapters`."""

    name: str = Field(min_length=1)
    """Name of the LoRA adapter, as requests carry it."""
    replicas: _Names = ()
    """Replicas that have it."""
    pools: _Names = ()
    """Pools whose replicas have it."""

    def rule(self) -> AdapterRule:
        """Return the rule.

        Raises:
            ValueError: it is served nowhere.
        """
        if not self.replicas and not self.pools:
            msg = f"adapter '{self.name}' must be served by some replicas or pools, got none"
            raise ValueError(msg)
        return AdapterRule(**self.model_dump())
