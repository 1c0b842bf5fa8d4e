"""What rules touch in a trace: counts that can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agents.constraints.compilation import compile_policy
from trimtab.agents.constraints.policy_file import Policy
from trimtab.agents.constraints.reach import PolicyReach, RuleReach, policy_reach
from trimtab.agents.constraints.service_rules import (
    AdapterRule,
    Budget,
    Pool,
    Tenant,
    Tier,
)
from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.traces.schema import RequestTrace


def make_cluster(*, kv_blocks: int | None = None) -> ClusterSpec:
    """Three replicas of an 8B in zone z0, one in z1, and a spill one there."""
    servers = [
        ServerSpec(name=f"s{zone}", zone=f"z{zone}", gpu="H100-80G", num_gpus=3)
        for zone in range(2)
    ]
    replicas = [
        ReplicaSpec(
            name=f"r{i}",
            server=f"s{i // 3}",
            model="llama-3-8b",
            gpu_indices=(i % 3,),
            kv_blocks=kv_blocks if i == 3 else None,
            is_spill=i == 4,
        )
        for i in range(5)
    ]
    return ClusterSpec(name="made", servers=tuple(servers), replicas=tuple(replicas))


def make_trace(tenants: list[str], **columns: object) -> RequestTrace:
    """One request a second of 60 prompt and 40 output tokens."""
    values = {
        "arrival_s": np.arange(len(tenants), dtype=float),
        "input_tokens": [60] * len(tenants),
        "output_tokens": [40] * len(tenants),
    }
    return RequestTrace.from_columns(tenant=tenants, **(values | columns))  # type: ignore[arg-type]


def reach_of(
    policy: Policy, trace: RequestTrace, cluster: ClusterSpec | None = None
) -> tuple[PolicyReach, dict[str, RuleReach]]:
    cluster = cluster or make_cluster()
    reach = policy_reach(policy, compile_policy(policy, cluster), cluster, trace)
    return reach, {rule.name: rule for rule in reach.rules}


POLICY = Policy(
    default_tier="plain",
    pools=(Pool(name="vip", replicas=("r0", "r1"), is_exclusive=True),),
    tiers=(Tier(name="gold", pools=("vip",)), Tier(name="plain"), Tier(name="unused")),
    tenants=(
        Tenant(name="bank", tier="gold"),
        Tenant(name="shop", tier="plain", zones=("z1",)),
    ),
)


def test_requests_tokens_and_candidates_of_each_rule() -> None:
    trace = make_trace(["bank", "shop", "shop", "guest"], num_sequences=[1, 1, 2, 1])
    reach, rules = reach_of(POLICY, trace)
    assert (reach.num_requests, reach.num_tokens) == (4, 440)
    assert (rules["bank"].num_requests, rules["bank"].num_tokens) == (1, 100)
    assert (rules["shop"].num_requests, rules["shop"].num_tokens) == (2, 240)
    # The tier's pool takes the bank from four candidates to two.
    gold = rules["gold"]
    assert (gold.num_reduced, gold.fewest_replicas, gold.most_replicas) == (1, 2, 2)
    # Closed to the others, of whom the shop has its own zone, too.
    vip = rules["vip"]
    assert (vip.num_requests, vip.num_reduced) == (4, 3)
    assert (vip.fewest_replicas, vip.most_replicas) == (1, 2)
    # The spill tier counts for nobody.
    assert (rules["shop"].num_reduced, rules["shop"].fewest_replicas) == (2, 1)
    assert rules["plain"].num_requests == 3
    assert rules["unused"].num_requests == rules["unused"].num_reduced == 0
    assert rules["unused"].fewest_replicas is None
    assert reach.unknown_tenants == ("guest",)
    assert reach.refusals == ()


def test_budgets_are_replayed_over_the_arrivals() -> None:
    # 50 tokens a second and at most 200 at once, against 100 a second: two at once and one more
    # from what came in, then every second one.
    budget = Budget(tokens_per_min=3000, burst_s=4)
    policy = Policy(
        tiers=(Tier(name="t"),), tenants=(Tenant(name="bank", tier="t", budget=budget),)
    )
    reach, rules = reach_of(policy, make_trace(["bank"] * 9 + ["shop"]))
    # Left after each: 100, 50, 0, then refused at 50, served at 100, and so on.
    assert rules["bank"].num_over_budget == reach.num_over_budget == 3
    assert rules["t"].num_over_budget == 3


def test_a_budget_is_one_for_all_adapters() -> None:
    budget = Budget(requests_per_s=1e-6, burst_s=1)
    policy = Policy(
        tiers=(Tier(name="t"),),
        tenants=(Tenant(name="bank", tier="t", budget=budget),),
        adapters=(AdapterRule(name="lora", replicas=("r0",)),),
    )
    trace = make_trace(["bank"] * 4, adapter=["lora", None, "lora", None])
    reach, rules = reach_of(policy, trace)
    assert reach.num_over_budget == 3
    assert (rules["lora"].num_requests, rules["lora"].num_reduced) == (2, 2)
    assert rules["lora"].fewest_replicas == 1


def test_what_nobody_may_take_names_the_rules() -> None:
    policy = Policy(
        tiers=(Tier(name="t", zones=("z1",)),),
        tenants=(Tenant(name="bank", tier="t"),),
        adapters=(AdapterRule(name="lora", replicas=("r0",)),),
    )
    trace = make_trace(["bank", "bank", "shop"], adapter=["lora", None, "lora"])
    reach, rules = reach_of(policy, trace)
    assert reach.num_nowhere == rules["bank"].num_requests - 1 == 1
    assert rules["lora"].num_nowhere == rules["t"].num_nowhere == 1
    assert reach.refusals == (
        "bank with adapter lora: 1 requests for 'llama-3-8b' find no replica, because: "
        "tier 't' stays in zone 'z1'; adapter 'lora' is not served there",
    )


def test_what_does_not_fit_the_replicas_left_is_refused() -> None:
    """The only replica in the zone has 2,048 tokens of KV; others would hold the request."""
    policy = Policy(tiers=(Tier(name="t", zones=("z1",)),), default_tier="t")
    trace = make_trace(["a", "b"], input_tokens=[2000, 2100])
    reach, rules = reach_of(policy, trace, make_cluster(kv_blocks=128))
    assert (reach.num_nowhere, rules["t"].fewest_replicas, rules["t"].most_replicas) == (1, 0, 1)
    assert "has the KV memory" in reach.refusals[0]


@given(
    tenants=st.lists(st.sampled_from(["bank", "shop", "guest", "other"]), min_size=1, max_size=12)
)
def test_tenants_and_tiers_share_out_the_trace(tenants: list[str]) -> None:
    reach, rules = reach_of(POLICY, make_trace(tenants))
    tiers = [rule for rule in reach.rules if rule.section == "tiers"]
    assert sum(rule.num_requests for rule in tiers) == reach.num_requests
    assert sum(rule.num_tokens for rule in tiers) == reach.num_tokens == 100 * len(tenants)
    assert rules["bank"].num_requests == tenants.count("bank")
    assert all(rule.num_reduced <= rule.num_requests for rule in reach.rules)
    assert reach.num_nowhere == reach.num_over_budget == 0


def test_an_unknown_model_of_several() -> None:
    cluster = make_cluster()
    small = ReplicaSpec(name="x", server="s1", model="llama-3.2-1b", gpu_indices=(2,))
    cluster = ClusterSpec(name="two", servers=cluster.servers, replicas=(*cluster.replicas, small))
    with pytest.raises(ValueError, match="unknown model 'default'"):
        reach_of(POLICY, make_trace(["bank"]), cluster)
