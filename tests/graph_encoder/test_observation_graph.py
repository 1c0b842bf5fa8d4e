"""Padded observations become graphs with the right edges and nothing from the padding."""

import pytest
import torch
from torch import Tensor

from trimtab.env.knobs import TUNABLE_KNOBS
from trimtab.env.observation import ObservationLayout, observation_space
from trimtab.graph_encoder.neighbours import Neighbours
from trimtab.graph_encoder.observation_graph import OBSERVATION_SCHEMA, observation_graphs

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


def pairs(neighbours: Neighbours) -> list[tuple[int, int]]:
    return sorted((source, target) for source, target in neighbours.edge_index.T.tolist())


def test_edges_of_a_batch_are_those_drawn_by_hand():
    edges = observation_graphs(make_observations()).neighbours
    # the second graph's nodes follow the padded sizes: replicas +3, GPUs +4, servers +2, tenants +2
    assert pairs(edges["gpu", "hosts", "replica"]) == [
        (0, 0), (1, 0), (2, 1), (4, 3), (5, 3), (6, 4),
    ]  # fmt: skip
    assert pairs(edges["gpu", "in_server", "server"]) == [
        (0, 0), (1, 1), (2, 1), (4, 2), (5, 3), (6, 3),
    ]  # fmt: skip
    assert pairs(edges["tenant", "waits_on", "replica"]) == [(0, 0), (0, 1), (2, 3), (2, 4)]


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (("gpu", "hosts", "replica"), ("replica", "rev_hosts", "gpu")),
        (("gpu", "in_server", "server"), ("server", "rev_in_server", "gpu")),
        (("tenant", "waits_on", "replica"), ("replica", "serves", "tenant")),
    ],
)
def test_every_edge_type_has_its_reverse(
    forward: tuple[str, str, str], backward: tuple[str, str, str]
):
    edges = observation_graphs(make_observations()).neighbours
    assert set(edges) == set(OBSERVATION_SCHEMA.edge_types)
    assert torch.equal(edges[backward].edge_index, edges[forward].edge_index.flip(0))


def test_nodes_carry_features_and_mask():
    observations = make_observations()
    graphs = observation_graphs(observations)
    assert graphs.num_graphs == 2
    assert set(graphs.x) == {"replica", "gpu", "server", "tenant"}
    for node, names in OBSERVATION_SCHEMA.columns.items():
        mask = observations[f"{node}_mask"].flatten() > 0.5
        rows = observations[node].reshape(mask.numel(), -1)
        found = graphs.mask[node]
        assert found is not None
        assert torch.equal(found, mask)
        assert graphs.x[node].shape == (mask.numel(), len(names))
        assert torch.equal(graphs.x[node][mask, : rows.shape[1]], rows[mask])
        assert not graphs.x[node][~mask].any()


def test_last_action_travels_with_what_it_acted_on():
    observations = make_observations()
    graphs = observation_graphs(observations)
    num_knobs = len(TUNABLE_KNOBS)
    biases = observations["action"][:, num_knobs:].flatten()
    mask = observations["replica_mask"].flatten() > 0.5
    assert OBSERVATION_SCHEMA.columns["replica"][-1] == "last_bias"
    assert torch.equal(graphs.x["replica"][mask, -1], biases[mask])
    expected = torch.cat([observations["fleet"], observations["action"][:, :num_knobs]], dim=1)
    assert torch.equal(graphs.fleet, expected)


@pytest.mark.parametrize("error", [-0.01, 0.01])
def test_float_indices_are_rounded(error: float):
    observations = make_observations()
    kind = ("gpu", "in_server", "server")
    expected = observation_graphs(observations).neighbours[kind].edge_index
    observations["gpu_server"] = observations["gpu_server"] + error
    assert torch.equal(observation_graphs(observations).neighbours[kind].edge_index, expected)


def test_gpu_of_a_padded_replica_has_no_edge_to_it():
    observations = make_observations(num_graphs=1)
    observations["gpu_replica"][0, 2] = 2.0
    edges = observation_graphs(observations).neighbours
    assert pairs(edges["gpu", "hosts", "replica"]) == [(0, 0), (1, 0)]
