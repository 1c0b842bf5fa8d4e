"""Rules compiled for a cluster: who may go where, and why not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agents.constraints.compilation import PREFERENCE_PENALTY, compile_policy
from trimtab.agents.constraints.policy_file import Policy, read_policy
from trimtab.agents.constraints.service_rules import (
    AdapterRule,
    Budget,
    OverBudget,
    Pool,
    Priority,
    Tenant,
    Tier,
)
from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.masks import Mask
from trimtab.traces.errors import ConfigError


def make_cluster(num_zones: int = 2) -> ClusterSpec:
    """Two replicas of an 8B and one of a 1B in each zone."""
    servers, replicas = [], []
    for zone in range(num_zones):
        gpu = ("H100-80G", "A100-80G", "L40S-48G")[zone % 3]
        servers.append(ServerSpec(name=f"s{zone}", zone=f"z{zone}", gpu=gpu, num_gpus=3))
        replicas += [
            ReplicaSpec(
                name=f"r{zone}{i}",
                server=f"s{zone}",
                model="llama-3.2-1b" if i == 2 else "llama-3-8b",
                gpu_indices=(i,),
            )
            for i in range(3)
        ]
    return ClusterSpec(name="made", servers=tuple(servers), replicas=tuple(replicas))


CLUSTER = make_cluster()
VIP = Pool(name="vip", replicas=("r00", "r01"), is_exclusive=True)


def test_an_exclusive_pool_is_closed_to_others_and_its_tenants_stay_inside():
    policy = Policy(
        pools=(VIP,),
        tiers=(Tier(name="gold", pools=("vip",)), Tier(name="plain")),
        tenants=(Tenant(name="bank", tier="gold"), Tenant(name="shop", tier="plain")),
    )
    compiled = compile_policy(policy, CLUSTER)
    masks, group_of = compiled.restrictions.masks, compiled.restrictions.group_of
    assert masks[group_of("bank")].tolist() == [0, 0] + [Mask.TENANT] * 4
    for other in ("shop", "nobody knows me"):
        assert masks[group_of(other)].tolist() == [Mask.TENANT] * 2 + [0] * 4
    assert compiled.reasons(group_of("shop"), 0) == ["pool 'vip' is exclusive"]
    assert compiled.reasons(group_of("bank"), 5) == ["tier 'gold' uses pool 'vip' only"]


def test_regions_models_and_adapters():
    policy = Policy(
        pools=(Pool(name="big", models=("llama-3-8b",)),),
        tiers=(Tier(name="eu", zones=("z1",)), Tier(name="plain")),
        tenants=(
            Tenant(name="a", tier="eu"),
            Tenant(name="b", tier="eu", zones=("z0",)),
            Tenant(name="c", tier="plain", models=("llama-3.2-1b",), adapters=("other",)),
        ),
        adapters=(
            AdapterRule(name="german", pools=("big",), replicas=("r02",)),
            AdapterRule(name="other", replicas=("r02",)),
        ),
    )
    compiled = compile_policy(policy, CLUSTER)
    restrictions = compiled.restrictions
    region, model, adapter = Mask.REGION, Mask.MODEL, Mask.ADAPTER

    def row(*names):
        return restrictions.masks[restrictions.group_of(*names)].tolist()

    assert row("a") == [region] * 3 + [0] * 3
    assert row("b") == [0] * 3 + [region] * 3
    assert row("c") == [model, model, 0] * 2
    assert row("a", "german") == [region, region, region, 0, 0, adapter]
    # An adapter that no rule names is to be had wherever the engine loads it.
    assert row("a", "unheard of") == row("a")
    assert row("c", "german") == [model | adapter, model | adapter, adapter] * 2
    assert row("nobody", "other") == [adapter, adapter, 0, adapter, adapter, adapter]


def test_limits_come_from_the_tenant_then_its_tier_then_the_request():
    budget = Budget(tokens_per_min=6000, requests_per_s=2, when_over=OverBudget.DEMOTE)
    policy = Policy(
        default_tier="bulk",
        pools=(Pool(name="fast", zones=("z0",)),),
        tiers=(
            Tier(name="gold", weight=4, ttft_s=0.5, tpot_s=0.06, preferred_pools=("fast",)),
            Tier(name="bulk", priority=Priority.BATCH),
        ),
        tenants=(Tenant(name="bank", tier="gold", ttft_s=0.3, budget=budget),),
    )
    restrictions = compile_policy(policy, CLUSTER).restrictions
    bank, others = restrictions.groups
    assert bank.item() == (0.3, 0.06, 0, 4, 100, 1000, 2, 20, 1, 0)
    assert others["priority"] == 1
    assert np.isnan([others["ttft_slo_s"], others["tpot_slo_s"], others["weight"]]).all()
    assert others["tokens_per_s"] == np.inf
    assert restrictions.penalties.tolist() == [[0.0] * 3 + [PREFERENCE_PENALTY] * 3, [0.0] * 6]


def test_who_is_left_without_a_replica_hears_the_fewest_rules_that_cause_it():
    policy = Policy(
        pools=(VIP, Pool(name="unused", zones=("z1",))),
        tiers=(Tier(name="gold", pools=("vip",), zones=("z1",)), Tier(name="plain")),
        tenants=(
            Tenant(name="bank", tier="gold", models=("llama-3-8b",)),
            Tenant(name="shop", tier="plain", zones=("z0",), models=("llama-3-8b",)),
        ),
    )
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy, CLUSTER)
    bank, shop = str(caught.value).splitlines()[1:]
    # One of three rules has no part in it: the model's.
    assert bank.endswith(
        "bank is left without a replica, because: tier 'gold' uses pool 'vip' only; tier 'gold' "
        "stays in zone 'z1'; change one of these rules"
    )
    # The 1B would be open to it, but not for the model that it may use.
    assert "shop is left without a replica" in shop
    assert "pool 'vip' is exclusive; tenant 'shop' stays in zone 'z0'" in shop


def test_limits_that_no_replica_can_meet_are_refused():
    policy = Policy(tiers=(Tier(name="gold", ttft_s=1e-4),), default_tier="gold")
    with pytest.raises(
        ConfigError, match=r"first token within 0.0001 s is impossible: the fastest"
    ):
        compile_policy(policy, CLUSTER)
    policy = Policy(tiers=(Tier(name="gold", tpot_s=1e-4),), default_tier="gold")
    with pytest.raises(ConfigError, match=r"further token within 0.0001 s is impossible"):
        compile_policy(policy, CLUSTER)


def test_names_that_the_cluster_does_not_have():
    policy = Policy(
        pools=(
            Pool(name="a", zones=("z9",), gpus=("H100-80GB",)),
            Pool(name="b", zones=("z0",), gpus=("A100-80G",)),
        ),
        tiers=(Tier(name="t", zones=("zone",)),),
        tenants=(Tenant(name="x", tier="t", models=("llama-3-9b",)),),
        adapters=(AdapterRule(name="l", replicas=("r99",)),),
    )
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy, CLUSTER)
    text = str(caught.value)
    for words in (
        "pool 'a': unknown zone 'z9'",
        "unknown gpu 'H100-80GB'; did you mean 'H100-80G'?",
        "pool 'b' holds no replica: none matches all its selectors",
        "tier 't': unknown zone 'zone'",
        "unknown model 'llama-3-9b'; did you mean 'llama-3-8b'?",
        "adapter 'l': unknown replica 'r99'",
    ):
        assert words in text


def test_what_is_hardly_meant_is_a_warning():
    policy = Policy(
        pools=(VIP, Pool(name="lost", zones=("z1",), is_exclusive=True, models=("llama-3.2-1b",))),
        tiers=(Tier(name="a", pools=("vip",)), Tier(name="b", pools=("vip",))),
    )
    warnings = compile_policy(policy, CLUSTER).warnings
    assert any("'vip' is shared by the tiers 'a', 'b'" in text for text in warnings)
    assert any("'lost' is assigned to no tier" in text for text in warnings)


def test_messages_name_the_lines_of_the_rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        """\
pools:
  - {name: vip, replicas: [r00]}
  - {name: far, zones: [z9]}
tiers:
  - {name: gold, pools: [vip], zones: [z1]}
  - {name: swift, ttft_s: 0.0001}
tenants:
  - {name: bank, tier: gold}
  - {name: shop, tier: swift}
""",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=rf"{path} line 3: pool 'far': unknown zone 'z9'"):
        compile_policy(read_policy(path), CLUSTER)
    path.write_text(path.read_text().replace("z9", "z1"))
    with pytest.raises(ConfigError) as caught:
        compile_policy(read_policy(path), CLUSTER)
    bank, shop = str(caught.value).splitlines()[1:]
    assert bank == (
        f"  - {path} line 8: bank is left without a replica, because: tier 'gold' uses pool 'vip' "
        f"only ({path} line 5); tier 'gold' stays in zone 'z1' ({path} line 5); change one of "
        "these rules"
    )
    assert shop.startswith(f"  - {path} line 6: shop: a first token within 0.0001 s is impossible")


def test_an_adapter_that_a_tenant_is_given_must_be_within_its_reach():
    policy = Policy(
        tiers=(Tier(name="eu", zones=("z1",)),),
        tenants=(Tenant(name="bank", tier="eu", adapters=("lora",)), Tenant(name="b", tier="eu")),
        adapters=(AdapterRule(name="lora", replicas=("r00",)),),
    )
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy, CLUSTER)
    (fault,) = str(caught.value).splitlines()[1:]
    assert "bank with adapter lora is left without a replica, because: tier 'eu' stays" in fault


def test_replicas_that_are_kept_for_emergencies_are_no_home():
    replicas = tuple(replace(spec, is_spill=spec.name[1] == "1") for spec in CLUSTER.replicas)
    policy = Policy(
        tiers=(Tier(name="eu", zones=("z1",)),), tenants=(Tenant(name="bank", tier="eu"),)
    )
    with pytest.raises(ConfigError, match=r"stays in zone 'z1'; the cluster keeps the spill tier"):
        compile_policy(policy, replace(CLUSTER, replicas=replicas))


def test_a_limit_is_held_against_each_model_that_a_tenant_names():
    """An 8B reads 16 GB of weights for a token, which no GPU here does in 2 ms; a 1B reads 2.5."""
    policy = Policy(
        tiers=(Tier(name="gold", tpot_s=0.002),),
        tenants=(Tenant(name="bank", tier="gold", models=("llama-3.2-1b", "llama-3-8b")),),
    )
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy, CLUSTER)
    (fault,) = str(caught.value).splitlines()[1:]
    assert "a further token of 'llama-3-8b' within 0.002 s is impossible" in fault


def test_many_rules_that_only_together_leave_nothing():
    """Each of six exclusive pools takes one replica away: none of them can be left out."""
    pools = tuple(
        Pool(name=f"p{i}", replicas=(name,), is_exclusive=True) for i, name in enumerate(NAMES)
    )
    policy = Policy(
        pools=pools,
        tiers=(Tier(name="plain"), Tier(name="own", pools=tuple(pool.name for pool in pools))),
        tenants=(Tenant(name="shop", tier="plain"),),
    )
    with pytest.raises(ConfigError) as caught:
        compile_policy(policy, CLUSTER)
    assert all(f"pool 'p{i}' is exclusive" in str(caught.value) for i in range(6))


def test_more_that_is_hardly_meant():
    policy = Policy(
        pools=(VIP, Pool(name="more", replicas=("r01", "r02"), is_exclusive=True)),
        tiers=(
            Tier(name="a", pools=("vip", "more")),
            Tier(name="b", preferred_pools=("vip",), zones=("z0", "z1")),
        ),
        tenants=(Tenant(name="bank", tier="a"),),
    )
    warnings = compile_policy(policy, CLUSTER).warnings
    assert any("'vip' and 'more' share 1 replica(s)" in text for text in warnings)
    assert any("tier 'b' prefers pool 'vip', which is exclusive" in text for text in warnings)
    one_model = Policy(
        pools=(VIP,), tiers=(Tier(name="a", pools=("vip",)),), tenants=policy.tenants
    )
    (warning,) = compile_policy(one_model, CLUSTER).warnings
    assert warning.startswith("bank may use every model but finds no replica of 'llama-3.2-1b'")


def test_groups_of_a_tenant_draw_on_one_budget():
    policy = Policy(
        tiers=(Tier(name="t"),),
        tenants=(
            Tenant(name="a", tier="t", budget=Budget(requests_per_s=1)),
            Tenant(name="b", tier="t", budget=Budget(requests_per_s=1)),
        ),
        adapters=(AdapterRule(name="lora", replicas=("r00",)),),
    )
    restrictions = compile_policy(policy, CLUSTER).restrictions
    shared = restrictions.groups["budget_group"]

    def budget_of(tenant, adapter=None):
        return shared[restrictions.group_of(tenant, adapter)]

    assert budget_of("a") == budget_of("a", "lora") != budget_of("b") == budget_of("b", "lora")


NAMES = [spec.name for spec in CLUSTER.replicas]
POOLS = ("p0", "p1", "p2")


@st.composite
def policies(draw):
    subset = st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple)
    pools = tuple(
        Pool(name=name, replicas=draw(subset), is_exclusive=draw(st.booleans())) for name in POOLS
    )
    some = st.lists(st.sampled_from(POOLS), unique=True).map(tuple)
    zones = st.lists(st.sampled_from(["z0", "z1"]), unique=True).map(tuple)
    tiers = tuple(Tier(name=f"t{i}", pools=draw(some), zones=draw(zones)) for i in range(3))
    tenants = tuple(
        Tenant(name=f"n{i}", tier=f"t{draw(st.integers(0, 2))}", zones=draw(zones))
        for i in range(3)
    )
    adapters = tuple(AdapterRule(name=f"l{i}", replicas=draw(subset)) for i in range(2))
    return Policy(pools=pools, tiers=tiers, tenants=tenants, adapters=adapters)


@given(policy=policies())
def test_no_mask_without_a_rule_and_no_rule_without_its_mask(policy):
    try:
        compiled = compile_policy(policy, CLUSTER)
    except ConfigError as error:
        assert "is left without a replica" in str(error)  # noqa: PT017
        return
    restrictions = compiled.restrictions
    members = {pool.name: set(pool.replicas) for pool in policy.pools}
    tiers = {tier.name: tier for tier in policy.tiers}
    for tenant in policy.tenants:
        tier = tiers[tenant.tier]
        for adapter in (None, "l0", "l1"):
            group = restrictions.group_of(tenant.name, adapter)
            for r, name in enumerate(NAMES):
                mask = int(restrictions.masks[group, r])
                assert bool(mask) == bool(compiled.reasons(group, r))
                closed = any(
                    pool.is_exclusive and name in members[pool.name] and pool.name not in tier.pools
                    for pool in policy.pools
                )
                outside = tier.pools and not any(name in members[p] for p in tier.pools)
                assert bool(mask & Mask.TENANT) == bool(closed or outside)
                zones = tenant.zones or tier.zones
                assert bool(mask & Mask.REGION) == bool(zones and f"z{name[1]}" not in zones)
                rules = [rule for rule in policy.adapters if rule.name == adapter]
                assert bool(mask & Mask.ADAPTER) == any(name not in r.replicas for r in rules)


def test_many_tenants_on_a_large_fleet():
    cluster = make_cluster(60)
    tiers = tuple(Tier(name=f"t{i}", zones=(f"z{i}",)) for i in range(8))
    tenants = tuple(Tenant(name=f"n{i}", tier=f"t{i % 8}") for i in range(64))
    restrictions = compile_policy(Policy(tiers=tiers, tenants=tenants), cluster).restrictions
    assert restrictions.masks.shape == (65, 180)
    assert (restrictions.masks[:64] == 0).sum(axis=1).tolist() == [3] * 64
