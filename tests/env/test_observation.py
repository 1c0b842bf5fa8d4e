"""The registry of features, and the padded, scaled observation that is made from it."""

import dataclasses
import re

import numpy as np
import pytest

from trimtab.env.knobs import Knobs
from trimtab.env.observation import CLIP, OBSERVED, ObservationLayout, observation_space, observe
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.state import registry
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import NORMALISERS, Dimension, Feature, Live, Node, Scale
from trimtab.env.state.registry import FEATURES, FEATURES_BY_NODE, column, registry_hash

LAYOUT = ObservationLayout(max_replicas=6, max_gpus=7, max_servers=4, max_tenants=3)
GPU_NAMES = ("H100-80G", "A100-80G", "H100-80G", "L40S-48G")


@pytest.fixture
def fleet(make_cluster, make_random_workload) -> SimulatedFleet:
    workload = make_random_workload(400, rate_rps=40.0, seed=1)
    faults = FaultConfig(crashes_per_hour=100.0, replica_slowdowns_per_hour=100.0)
    fleet = SimulatedFleet(make_cluster(GPU_NAMES), workload, FleetConfig(faults=faults))
    fleet.reset(seed=1, knobs=Knobs.of(scorer_weight=1.0, shed_enabled=1.0))
    return fleet


def scaled_by_hand(feature: Feature, values: np.ndarray) -> np.ndarray:
    scale = feature.scale
    clipped = np.clip(values, scale.low, scale.high)
    normalise = {
        "identity": lambda x: x,
        "log1p": np.log1p,
        "log10": lambda x: np.log10(np.maximum(x, 1e-9)),
    }
    return (normalise[scale.normaliser](clipped) - scale.offset) / scale.scale


def rows(observation: dict[str, np.ndarray], node: str) -> np.ndarray:
    """Features of a node kind, one row a node; they travel flat."""
    return observation[node].reshape(-1, len(OBSERVED[Node(node)]))


def make_observation(state: ClusterState, layout: ObservationLayout = LAYOUT):
    return observe(state, np.zeros(layout.action_size, np.float32), layout)


def test_names_are_unique_for_each_node():
    for node, features in FEATURES_BY_NODE.items():
        names = [feature.name for feature in features]
        assert len(set(names)) == len(names) > 0, node
    assert sum(map(len, FEATURES_BY_NODE.values())) == len(FEATURES)


def test_all_four_dimensions_are_there():
    assert {feature.dimension for feature in FEATURES} == set(Dimension)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f"{f.node}-{f.name}")
def test_features_are_well_formed(feature):
    scale = feature.scale
    assert scale.low < scale.high
    assert scale.scale > 0
    assert scale.normaliser in NORMALISERS
    assert feature.unit
    assert feature.live or feature.simulator, "nobody can fill it"
    moments = [scale.low, scale.high, scale.low - 1.0, scale.high * 2.0 + 1.0]
    low, high, below, above = scaled_by_hand(feature, np.array(moments))
    assert low < high
    assert (below, above) == (low, high)


@pytest.mark.parametrize(
    "change", [{"scale": Scale(low=0, high=7)}, {"name": "other"}, {"live": {Live.HOST: "else"}}]
)
def test_hash_changes_with_any_feature(monkeypatch, change):
    before = registry_hash()
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert registry_hash() == before
    changed = (*FEATURES[:-1], dataclasses.replace(FEATURES[-1], **change))
    monkeypatch.setattr(registry, "FEATURES", changed)
    assert registry_hash() != before


def test_observation_lies_in_its_space_all_along(fleet):
    space = observation_space(LAYOUT)
    for _ in range(30):
        observation = make_observation(fleet.state())
        assert set(observation) == set(space.spaces)
        for key, value in observation.items():
            assert space[key].contains(value), key
            assert value.dtype == np.float32
        fleet.advance(0.5)


def test_padding_is_zero_and_masked(fleet):
    fleet.advance(3.0)
    observation = make_observation(fleet.state())
    for node, size in (("replica", 4), ("gpu", 4), ("server", 3), ("tenant", 2)):
        mask, values = observation[f"{node}_mask"], rows(observation, node)
        assert mask.tolist() == [1.0] * size + [0.0] * (mask.size - size)
        assert not values[size:].any()
        assert values[:size].any(axis=1).all()
    assert observation["gpu_replica"].tolist() == [0, 1, 2, 3, 0, 0, 0]
    assert observation["gpu_server"].tolist() == [0, 1, 0, 2, 0, 0, 0]


def test_larger_layout_changes_nothing_but_padding(fleet):
    fleet.advance(3.0)
    small, large = (
        make_observation(fleet.state(), layout) for layout in (LAYOUT, ObservationLayout())
    )
    for node in ("replica", "gpu", "server", "tenant"):
        size = int(small[f"{node}_mask"].sum())
        np.testing.assert_array_equal(rows(small, node)[:size], rows(large, node)[:size])
    np.testing.assert_array_equal(small["fleet"], large["fleet"])


def test_values_are_scaled_as_the_registry_says(fleet):
    fleet.advance(4.05)
    state = fleet.state()
    observation = make_observation(state)
    for node, features in OBSERVED.items():
        for i, feature in enumerate(features):
            raw = state.feature(node, feature.name)
            seen = rows(observation, str(node))[: raw.size, i]
            expected = np.clip(scaled_by_hand(feature, raw), -CLIP, CLIP)
            np.testing.assert_allclose(seen, expected, rtol=1e-6, err_msg=feature.name)


def test_absent_values_are_marked_and_become_zero(fleet):
    fleet.advance(2.0)
    state = fleet.state()
    state.values[Node.GPU][1, column(Node.GPU, "peak_bf16_flops")] = np.nan
    is_valid = {node: np.isfinite(values) for node, values in state.values.items()}
    observation = make_observation(dataclasses.replace(state, is_valid=is_valid))
    gpu = rows(observation, "gpu")
    seen = [feature.name for feature in OBSERVED[Node.GPU]].index("peak_bf16_flops")
    assert gpu[1, seen] == 0.0
    assert gpu[0, seen] != 0.0


@pytest.mark.parametrize(
    ("field", "size"),
    [("max_replicas", 3), ("max_gpus", 3), ("max_servers", 2), ("max_tenants", 1)],
)
def test_fleet_that_does_not_fit_is_refused(fleet, field, size):
    layout = dataclasses.replace(LAYOUT, **{field: size})
    node = field.removeprefix("max_").removesuffix("s")
    text = f"fleet has {size + 1} {node} nodes, the layout only {size}; raise {field}"
    with pytest.raises(ValueError, match=text):
        make_observation(fleet.state(), layout)
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        dataclasses.replace(LAYOUT, **{field: 0})


def test_state_names_what_it_knows(fleet):
    state = fleet.state()
    with pytest.raises(ValueError, match="unknown gpu feature 'flops'; known: peak_fp16_flops, "):
        state.feature(Node.GPU, "flops")
    values = dict(state.values) | {Node.GPU: np.zeros((4, 1))}
    with pytest.raises(
        ValueError, match=r"gpu values must have shape \[nodes, \d+\], got \(4, 1\)"
    ):
        dataclasses.replace(state, values=values)


def test_state_follows_what_happens(make_cluster, make_workload):
    """Ten interactive and five batch requests in a window of two seconds; half are late."""
    arrivals = np.linspace(0.0, 1.9, 15)
    priority = np.arange(15) % 3 == 2
    workload = make_workload(
        arrivals,
        np.where(priority, 300, 150),
        [5] * 15,
        priority=priority.astype(np.int8),
        ttft_slo_s=np.where(np.arange(15) < 6, 1e-4, 10.0),
    )
    fleet = SimulatedFleet(make_cluster(), workload)
    fleet.reset(seed=0)
    fleet.advance(2.0)
    state = fleet.state()
    assert state.now_s == 2.0
    tenants = {
        name: state.feature(Node.TENANT, name).tolist()
        for name in ("arrival_rate_rps", "mean_input_tokens", "shed_frac", "late_frac")
    }
    assert tenants == {
        "arrival_rate_rps": [5.0, 2.5],
        "mean_input_tokens": [150.0, 300.0],
        "shed_frac": [0.0, 0.0],
        "late_frac": [0.4, 0.4],
    }
    work_s = (10 * 150 + 5 * 300) / 2.0 * fleet.arrays.views["prefill_token_s"][0]
    assert state.feature(Node.FLEET, "load_frac")[0] == pytest.approx(work_s)
    busy = fleet.arrays.replicas["busy_s"][0] / 2.0
    assert state.feature(Node.GPU, "sm_activity_frac")[0] == pytest.approx(busy)
    fleet.advance(2.0)
    assert fleet.state().feature(Node.TENANT, "arrival_rate_rps").tolist() == [0.0, 0.0]
    assert fleet.state().feature(Node.FLEET, "arrival_log_change")[0] == pytest.approx(-np.log(8.5))
