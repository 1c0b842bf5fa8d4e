"""Rules about models: a bare name means all versions, `name@version` one of them."""

from dataclasses import replace

import pytest

from trimtab.agents.constraints.compilation import compile_policy
from trimtab.agents.constraints.policy_file import Policy
from trimtab.agents.constraints.service_rules import Tenant, Tier
from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.masks import Mask
from trimtab.env.model_profile import MODELS, add_model
from trimtab.env.model_store import ModelStore
from trimtab.traces.errors import ConfigError


def make_cluster() -> ClusterSpec:
    """Two versions of a model, and another model."""
    for version in ("1", "2"):
        add_model(replace(MODELS["llama-3-8b"], name="own", version=version), "test")
    server = ServerSpec(name="s0", zone="z0", gpu="H100-80G", num_gpus=3)
    replicas = [
        ReplicaSpec(name=f"r{i}", server="s0", model=model, gpu_indices=(i,))
        for i, model in enumerate(("own@1", "own@2", "llama-3-8b"))
    ]
    return ClusterSpec(name="made", servers=(server,), replicas=tuple(replicas))


def make_policy(*models: str) -> Policy:
    return Policy(tiers=(Tier(name="t"),), tenants=(Tenant(name="bank", tier="t", models=models),))


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        (("own",), [True, True, False]),
        (("own@2",), [False, True, False]),
        (("own@2.0", "llama-3-8b"), [False, True, True]),
    ],
)
def test_names_with_and_without_version(
    models: tuple[str, ...], allowed: list[bool], model_store: ModelStore
) -> None:
    restrictions = compile_policy(make_policy(*models), make_cluster()).restrictions
    masks = restrictions.masks[restrictions.group_of("bank")]
    assert masks.tolist() == [0 if is_allowed else Mask.MODEL for is_allowed in allowed]


def test_a_version_that_the_cluster_does_not_have(model_store: ModelStore) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'own@3'; did you mean 'own@[12]'"):
        compile_policy(make_policy("own@3"), make_cluster())
