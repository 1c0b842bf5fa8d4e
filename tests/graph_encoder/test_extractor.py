"""The policy's encoder: shapes, permuted nodes, padding, reach of messages, the flat form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.env.observation import ObservationLayout, observation_space
from trimtab.graph_encoder.extractor import EncodedFleet, GraphExtractor, split_features
from trimtab.graph_encoder.observation_graph import OBSERVATION_SCHEMA

LAYOUT = ObservationLayout(max_replicas=8, max_gpus=8, max_servers=3, max_tenants=2)
LARGE_LAYOUT = ObservationLayout(max_replicas=20, max_gpus=24, max_servers=5, max_tenants=3)
COUNTS = {"replica": 5, "gpu": 7, "server": 2, "tenant": 1}
HIDDEN_SIZE = 16
Observations = dict[str, Tensor]


def make_observations(layout: ObservationLayout = LAYOUT, *, padding: float = 0.0) -> Observations:
    """Two graphs whose real part is the same under any layout; the rest is filled with padding."""
    generator = torch.Generator().manual_seed(1)
    observations = {
        key: torch.full((2, *box.shape), padding)
        for key, box in observation_space(layout).spaces.items()
    }
    for node, count in COUNTS.items():
        # the encoder takes features flat, as in the space, or node by node, as here
        rows = observations[node].unflatten(1, (observations[f"{node}_mask"].shape[1], -1))
        rows[:, :count] = torch.randn((2, count, rows.shape[2]), generator=generator)
        observations[node] = rows
        observations[f"{node}_mask"] = torch.zeros_like(observations[f"{node}_mask"])
        observations[f"{node}_mask"][:, :count] = 1.0
    for parent in ("replica", "server"):
        index = torch.arange(COUNTS["gpu"]) % COUNTS[parent]
        observations[f"gpu_{parent}"][:, : COUNTS["gpu"]] = index.float()
    observations["fleet"] = torch.randn(observations["fleet"].shape, generator=generator)
    num_actions = layout.action_size - layout.max_replicas + COUNTS["replica"]
    action = torch.rand((2, num_actions), generator=generator)
    observations["action"][:, :num_actions] = action
    return observations


def make_extractor(layout: ObservationLayout = LAYOUT) -> GraphExtractor:
    torch.manual_seed(0)
    return GraphExtractor(observation_space(layout), HIDDEN_SIZE)


def encode(extractor: GraphExtractor, observations: Observations) -> EncodedFleet:
    with torch.no_grad():
        return split_features(extractor(observations), extractor.hidden_size)


def permute_replicas(observations: Observations, order: Tensor) -> Observations:
    """Put replica order[i] at place i, for all places of the layout."""
    place = torch.argsort(order)
    num_knobs = observations["action"].shape[1] - order.numel()
    action = observations["action"]
    return observations | {
        "replica": observations["replica"][:, order],
        "replica_mask": observations["replica_mask"][:, order],
        "gpu_replica": place[observations["gpu_replica"].long()].float(),
        "action": torch.cat([action[:, :num_knobs], action[:, num_knobs:][:, order]], dim=1),
    }


def test_shapes_and_split():
    extractor = make_extractor()
    features = extractor(make_observations())
    assert (extractor.num_replicas, extractor.replica_size) == (8, HIDDEN_SIZE + 1)
    assert extractor.pooled_size == 4 * HIDDEN_SIZE
    assert features.shape == (2, 8 * 17 + 64) == (2, extractor.features_dim)
    fleet = split_features(features, HIDDEN_SIZE)
    assert fleet.replicas.shape == (2, 8, HIDDEN_SIZE)
    assert fleet.replica_mask.tolist() == [[True] * 5 + [False] * 3] * 2
    assert fleet.pooled.shape == (2, 64)
    assert not fleet.replicas[:, 5:].any()
    assert torch.equal(features[:, -64:], fleet.pooled)


def test_permuted_replicas_give_permuted_vectors_and_the_same_pool():
    extractor, observations = make_extractor(), make_observations()
    order = torch.tensor([3, 7, 0, 5, 1, 4, 2, 6])
    expected = encode(extractor, observations)
    found = encode(extractor, permute_replicas(observations, order))
    torch.testing.assert_close(found.replicas, expected.replicas[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("node", ["gpu", "server", "tenant"])
def test_order_of_other_nodes_makes_no_difference(node: str):
    extractor, observations = make_extractor(), make_observations()
    order = torch.arange(observations[node].shape[1]).flip(0)
    permuted = dict(observations)
    for key in (node, f"{node}_mask"):
        permuted[key] = observations[key][:, order]
    if node == "gpu":
        for key in ("gpu_replica", "gpu_server"):
            permuted[key] = observations[key][:, order]
    if node == "server":
        permuted["gpu_server"] = order[observations["gpu_server"].long()].float()
    expected, found = encode(extractor, observations), encode(extractor, permuted)
    torch.testing.assert_close(found.replicas, expected.replicas, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [1.0, torch.nan])
def test_content_of_padding_makes_no_difference(padding: float):
    extractor = make_extractor()
    expected = encode(extractor, make_observations())
    observations = make_observations(padding=padding)
    # indices of padded GPUs must still be numbers
    for key in ("gpu_replica", "gpu_server"):
        observations[key] = observations[key].nan_to_num(1.0)
    found = encode(extractor, observations)
    assert torch.equal(found.replicas, expected.replicas)
    assert torch.equal(found.pooled, expected.pooled)


def test_amount_of_padding_makes_no_difference():
    small, large = make_extractor(), make_extractor(LARGE_LAYOUT)
    large.load_state_dict(small.state_dict())
    expected = encode(small, make_observations())
    found = encode(large, make_observations(LARGE_LAYOUT))
    torch.testing.assert_close(found.replicas[:, :8], expected.replicas, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)


def test_graphs_of_a_batch_do_not_see_each_other():
    extractor, observations = make_extractor(), make_observations()
    both = encode(extractor, observations)
    alone = encode(extractor, {key: value[1:] for key, value in observations.items()})
    torch.testing.assert_close(alone.replicas[0], both.replicas[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.pooled[0], both.pooled[1], atol=1e-5, rtol=0)


def change_server(observations: Observations) -> None:
    observations["server"][:, 1] += 1.0


def change_tenant(observations: Observations) -> None:
    observations["tenant"][:, 0] += 1.0


def change_last_bias(observations: Observations) -> None:
    observations["action"][:, -8] += 0.5


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [
        # GPUs 0 to 6 are in servers 0, 1, 0, 1, 0, 1, 0 and serve replicas 0, 1, 2, 3, 4, 0, 1
        (change_server, [True, True, False, True, False]),
        (change_tenant, [True] * 5),
        # two rounds carry it by server or tenant no further than back to a parent's replicas
        (change_last_bias, [True, True, True, True, True]),
    ],
)
def test_messages_reach_where_they_should(
    change: Callable[[Observations], None], is_changed: list[bool]
):
    extractor = make_extractor()
    before = encode(extractor, make_observations())
    observations = make_observations()
    change(observations)
    difference = (encode(extractor, observations).replicas - before.replicas).abs().amax(dim=2)
    assert (difference[:, :5] > 1e-6).tolist() == [is_changed] * 2


@pytest.mark.parametrize("empty", [("tenant",), ("gpu", "server"), OBSERVATION_SCHEMA.nodes])
def test_graphs_without_nodes_of_a_type_stay_finite(empty: tuple[str, ...]):
    observations = make_observations()
    for node in empty:
        observations[f"{node}_mask"][0] = 0.0
    found = make_extractor()(observations)
    assert torch.isfinite(found).all()


def test_every_parameter_gets_a_gradient():
    extractor, observations = make_extractor(), make_observations()
    observations["tenant_mask"][:] = 1.0  # with a single tenant there is nothing to weigh
    extractor(observations).square().sum().backward()
    for name, parameter in extractor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_parameters_do_not_depend_on_the_layout():
    shapes = [
        {name: value.shape for name, value in make_extractor(layout).state_dict().items()}
        for layout in (LAYOUT, LARGE_LAYOUT)
    ]
    assert shapes[0] == shapes[1]


def test_hidden_size_must_be_positive():
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        GraphExtractor(observation_space(LAYOUT), 0)
