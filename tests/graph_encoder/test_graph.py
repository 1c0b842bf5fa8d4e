"""Padded observations become graphs with the right edges and nothing from the padding."""

import pytest
import torch
from torch import Tensor

from trimtab.env.knobs import TUNABLE_KNOBS
from trimtab.env.observation import ObservationLayout, observation_space
from trimtab.graph_encoder.graph import EDGE_TYPES, NODE_TYPES, reverse_of, to_hetero

LAYOUT = ObservationLayout(max_replicas=3, max_gpus=4, max_servers=2, max_tenants=2)


def make_observations(num_graphs: int = 2) -> dict[str, Tensor]:
    """Graphs of 2 replicas, 3 GPUs (replicas 0, 0, 1; servers 0, 1, 1), 2 servers, 1 tenant."""
    space = observation_space(LAYOUT)
    generator = torch.Generator().manual_seed(0)
    observations = {
        key: torch.rand((num_graphs, *box.shape), generator=generator)
        for key, box in space.spaces.items()
    }
    for node, count in (("replica", 2), ("gpu", 3), ("server", 2), ("tenant", 1)):
        mask = torch.zeros_like(observations[f"{node}_mask"])
        mask[:, :count] = 1.0
        observations[f"{node}_mask"] = mask
    observations["gpu_replica"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(num_graphs, 1)
    observations["gpu_server"] = torch.tensor([[0.0, 1.0, 1.0, 0.0]]).repeat(num_graphs, 1)
    return observations


def pairs(edge_index: Tensor) -> list[tuple[int, int]]:
    return sorted((source, target) for source, target in edge_index.T.tolist())


def test_edges_of_a_batch_are_those_drawn_by_hand():
    data = to_hetero(make_observations())
    # the second graph's nodes follow the padded sizes: replicas +3, GPUs +4, servers +2, tenants +2
    assert pairs(data["gpu", "hosts", "replica"].edge_index) == [
        (0, 0), (1, 0), (2, 1), (4, 3), (5, 3), (6, 4),
    ]  # fmt: skip
    assert pairs(data["gpu", "in", "server"].edge_index) == [
        (0, 0), (1, 1), (2, 1), (4, 2), (5, 3), (6, 3),
    ]  # fmt: skip
    assert pairs(data["tenant", "sends", "replica"].edge_index) == [(0, 0), (0, 1), (2, 3), (2, 4)]


def test_every_edge_type_has_its_reverse():
    data = to_hetero(make_observations())
    assert set(data.edge_types) == set(EDGE_TYPES)
    for edge_type in EDGE_TYPES[:3]:
        forward, reverse = data[edge_type].edge_index, data[reverse_of(edge_type)].edge_index
        assert torch.equal(reverse, forward.flip(0))


def test_nodes_carry_features_mask_and_graph():
    observations = make_observations()
    data = to_hetero(observations)
    assert data.node_types == list(NODE_TYPES)
    for node in NODE_TYPES:
        mask = observations[f"{node}_mask"].flatten() > 0.5
        rows = observations[node].reshape(mask.numel(), -1)
        assert torch.equal(data[node].mask, mask)
        assert torch.equal(data[node].x[mask, : rows.shape[1]], rows[mask])
        assert not data[node].x[~mask].any()
        assert data[node].batch.tolist() == sorted([0, 1] * (mask.numel() // 2))
    assert data.validate()


def test_last_action_travels_with_what_it_acted_on():
    observations = make_observations()
    data = to_hetero(observations)
    num_knobs = len(TUNABLE_KNOBS)
    biases = observations["action"][:, num_knobs:].flatten()
    mask = data["replica"].mask
    assert torch.equal(data["replica"].x[mask, -1], biases[mask])
    expected = torch.cat([observations["fleet"], observations["action"][:, :num_knobs]], dim=1)
    assert torch.equal(data["fleet"], expected)


@pytest.mark.parametrize("error", [-0.01, 0.01])
def test_float_indices_are_rounded(error: float):
    observations = make_observations()
    expected = to_hetero(observations)["gpu", "in", "server"].edge_index
    observations["gpu_server"] = observations["gpu_server"] + error
    assert torch.equal(to_hetero(observations)["gpu", "in", "server"].edge_index, expected)


def test_gpu_of_a_padded_replica_has_no_edge_to_it():
    observations = make_observations(num_graphs=1)
    observations["gpu_replica"][0, 2] = 2.0
    assert pairs(to_hetero(observations)["gpu", "hosts", "replica"].edge_index) == [(0, 0), (1, 0)]
