"""The encoder of whole fleets: its two ways agree, and neither order nor padding matters."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.graph_encoder.attention_encoder import AttentionEncoder, EncodedGraphs
from trimtab.graph_encoder.dense_encoder import DenseEncoder
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.graph_batch import GraphBatch

SMALL = FleetSize(num_servers=3, gpus_per_server=4, gpus_per_replica=3, num_tenants=3)
SIZES = {
    "small": SMALL,
    "replicas over two servers": replace(SMALL, gpus_per_replica=5),
    "no tenants or zones": replace(SMALL, num_zones=0, num_tenants=0),
    "no replicas": replace(SMALL, gpus_per_replica=100),
    "no servers": replace(SMALL, num_servers=0),
    "one node of a kind": FleetSize(
        num_servers=1, gpus_per_server=1, gpus_per_replica=1, num_zones=1, num_tenants=1
    ),
    "four zones": replace(SMALL, num_servers=20, num_zones=4),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_graph(size: FleetSize = SMALL, seed: int = 0) -> GraphBatch:
    return GraphBuilder().build(random_state(np.random.default_rng(seed), size))


def make_encoder(**arguments: int) -> AttentionEncoder:
    torch.manual_seed(0)
    return AttentionEncoder(**arguments)


def assert_same(found: EncodedGraphs, expected: EncodedGraphs, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.pooled, expected.pooled, atol=atol, rtol=0)
    for node, vectors in expected.nodes.items():
        torch.testing.assert_close(found.nodes[node], vectors, atol=atol, rtol=0)


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_dense_twin_equals_pyg(size: FleetSize, num_heads: int):
    encoder, graph = make_encoder(num_heads=num_heads), make_graph(size)
    expected = encoder(graph)
    assert torch.isfinite(expected.pooled).all()
    assert_same(DenseEncoder(encoder)(graph), expected)


def test_output_has_512_numbers_and_vectors_of_replicas():
    encoded = make_encoder()(make_graph())
    assert encoded.pooled.shape == (1, 512)
    assert encoded.nodes["replica"].shape == (1, 4, 32)
