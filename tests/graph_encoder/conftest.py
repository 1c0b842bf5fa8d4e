"""Encoders and graphs of small random fleets, for all tests of the room."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.graph_batch import GraphBatch

SMALL = FleetSize(num_servers=3, gpus_per_server=4, gpus_per_replica=3, num_tenants=3)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_state() -> Callable[..., ClusterState]:
    """A random state; arguments change the small fleet's numbers."""

    def make(seed: int = 0, **numbers: int) -> ClusterState:
        return random_state(np.random.default_rng(seed), replace(SMALL, **numbers))

    return make


@pytest.fixture(scope="session")
def make_graph(make_state: Callable[..., ClusterState]) -> Callable[..., GraphBatch]:
    """The graph of such a state."""

    def make(seed: int = 0, **numbers: int) -> GraphBatch:
        return GraphBuilder().build(make_state(seed, **numbers))

    return make


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., AttentionEncoder]:
    """An encoder of the whole registry with the weights of seed 0."""

    def make(**arguments: int) -> AttentionEncoder:
        torch.manual_seed(0)
        return AttentionEncoder(**arguments)

    return make
