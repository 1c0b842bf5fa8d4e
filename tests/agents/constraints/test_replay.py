"""What rules would have done on a trace, by known answers."""

import numpy as np
import pytest

from trimtab.agents.constraints.policy_file import Policy
from trimtab.agents.constraints.replay import replay_policy
from trimtab.agents.constraints.service_rules import (
    Budget,
    OverBudget,
    Pool,
    Priority,
    Tenant,
    Tier,
)
from trimtab.env.knobs import Knobs

GPUS = ("H100-80G", "H100-80G")
FIRST = Knobs.of()  # no term is on: everything goes to the first replica


def replay(make_cluster, workload, **rules):
    found = replay_policy(Policy(**rules), make_cluster(GPUS), workload, knobs=FIRST)
    return found, {(one.section, one.name): one for one in found.impacts}


def test_an_exclusive_pool_keeps_others_out(make_cluster, make_workload):
    workload = make_workload(np.arange(8) * 0.5, [50] * 8, [5] * 8, tenant=["bank", "shop"] * 4)
    found, impacts = replay(
        make_cluster,
        workload,
        pools=(Pool(name="vip", replicas=("r0",), is_exclusive=True),),
        tiers=(Tier(name="gold", pools=("vip",)),),
        tenants=(Tenant(name="bank", tier="gold"),),
    )
    pool = impacts["pools", "vip"]
    assert (pool.num_requests, pool.num_changed) == (4, 4)
    assert pool.text == "keeps out 4 requests of others that went there"
    bank = impacts["tenants", "bank"]
    assert (bank.num_requests, bank.num_changed, bank.text) == (4, 0, "changes nothing")
    assert found.after.goodput_frac == found.before.goodput_frac == 1.0
    assert impacts["emergency", "shed"].text == "never begins"


@pytest.mark.parametrize(
    ("when_over", "text"),
    [(OverBudget.REFUSE, "6 refused over budget"), (OverBudget.DEMOTE, "6 made batch requests")],
)
def test_a_budget_is_replayed_as_a_bucket(make_cluster, make_workload, when_over, text):
    # Two at once, then none for the rest of the second.
    workload = make_workload(np.arange(8) * 1e-3, [50] * 8, [5] * 8, tenant="shop")
    budget = Budget(requests_per_s=0.2, burst_s=10.0, when_over=when_over)
    found, impacts = replay(
        make_cluster,
        workload,
        tiers=(Tier(name="plain", priority=Priority.INTERACTIVE),),
        tenants=(Tenant(name="shop", tier="plain", budget=budget),),
    )
    shop = impacts["tenants", "shop"]
    assert (shop.num_requests, shop.num_changed, shop.text) == (8, 6, text)
    assert impacts["tiers", "plain"].text == text
    assert found.after.shed_frac == (0.75 if when_over is OverBudget.REFUSE else 0.0)


def test_nobody_of_the_tier_is_there(make_cluster, make_workload):
    workload = make_workload([0.0], [50], [5], tenant="shop")
    _, impacts = replay(
        make_cluster,
        workload,
        tiers=(Tier(name="gold"),),
        tenants=(Tenant(name="bank", tier="gold"),),
    )
    assert impacts["tenants", "bank"].text == "concerns no request"
