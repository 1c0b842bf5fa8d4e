"""What a gateway is put together from, made from what `trimtab serve` was told.

Does not know: event loops; nothing here waits or listens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...agents.constraints.compilation import CompiledPolicy, compile_policy
from ...agents.constraints.policy_file import Policy, read_policy
from ...agents.heuristics import heuristic
from ...agents.knob_file import read_knobs
from ...agents.shield.fallback import FallbackConfig
from ...agents.shield.projection import KnobLimit, KnobLimits
from ...agents.shield.shield import ShieldConfig
from ...env.cluster import ClusterSpec
from ...env.knobs import KNOB_INDEX
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..gateway.key_file import read_keys
from ..gateway.tenants import OpenAccess, Tenant, Tenants
from ..understanding.served_models import ServedModel
from .config import ServeConfig
from .promotion import PromotionConfig
from .seat import PolicyFacts
from .steering import SteeringConfig


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy file and what it means for the fleet."""

    policy: Policy
    compiled: CompiledPolicy


def rules_of(config: ServeConfig, cluster: ClusterSpec) -> Rules | None:
    """Return the rules that were asked for; None for none.

    Raises: `ConfigError` with every fault.
    """
    if config.rules_path is None:
        return None
    policy = read_policy(config.rules_path)
    return Rules(policy, compile_policy(policy, cluster))


def shield_of(rules: Rules | None) -> ShieldConfig:
    """Return the shield's rules."""
    if rules is None:
        return ShieldConfig()
    policy = rules.policy
    return ShieldConfig(
        emergencies=policy.emergencies, staleness=policy.staleness, breakers=policy.breakers
    )


def steering_of(
    config: ServeConfig, rules: Rules | None, policy: PolicyFacts | None = None
) -> SteeringConfig:
    """Return how the gateway is steered; `policy` is the first that is to have the seat.

    If neither it nor the scheduler places by worth, nobody may.

    Raises: `ConfigError` for knobs that cannot be read; `ValueError` for an unknown scheduler.
    """
    fallback = FallbackConfig() if rules is None else rules.policy.fallback
    name = config.scheduler or fallback.heuristic
    knobs = heuristic(name).knobs
    if config.knobs_path is not None:
        name, knobs = str(config.knobs_path), read_knobs(config.knobs_path)
    limits = () if rules is None else tuple(rules.policy.limits)
    known = (knobs,) if policy is None else (knobs, policy.base)
    if not any(each["value_weight"] > 0.0 for each in known):
        limits += (KnobLimit(knob="value_weight", low=0.0, high=0.0),)
    promotion = None
    if config.shadow_first_s is not None:
        promotion = PromotionConfig(
            span_s=config.shadow_first_s, window_s=config.window_s, rule=config.promote
        )
    return SteeringConfig(
        fallback=replace(fallback, window_s=config.window_s),
        scheduler=knobs,
        scheduler_name=name,
        limits=KnobLimits.of(limits),
        promotion=promotion,
    )


def can_place_by_worth(steering: SteeringConfig) -> bool:
    """Whether anybody may, so that what it takes is to be remembered from the start."""
    return bool(steering.limits.high[KNOB_INDEX["value_weight"]] > 0.0)


def tenants_of(config: ServeConfig) -> Tenants:
    """Return who may ask.

    Raises: `ConfigError` for a key file with faults.
    """
    everybody = Tenant(
        name="default",
        ttft_slo_s=config.default_ttft_s,
        tpot_slo_s=config.default_tpot_s,
        may_name_flow=True,
    )
    if config.keys_path is None:
        return OpenAccess(everybody)
    return read_keys(config.keys_path, everybody)


def names_of(dispatcher: LiveDispatcher, served: Sequence[str]) -> list[ServedModel]:
    """Return the names that clients may ask for, with the longest context of each.

    `served` is what each replica calls its model.
    """
    room = dispatcher.views["kv_capacity_tokens"]
    return [
        ServedModel(
            name=name,
            model_index=index,
            engine_name=name,
            context_tokens=int(max(room[r] for r, n in enumerate(served) if n == name)),
        )
        for index, name in enumerate(dispatcher.model_names)
    ]
