"""Random states: a plausible fleet, values in range."""

import numpy as np
import pytest

from trimtab.env.state.edges import EDGE_TYPES, Edge
from trimtab.env.state.feature import Node
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.env.state.registry import FEATURES_BY_NODE


def test_fleet_of_4096_gpus_has_the_nodes_of_its_parts():
    num = FleetSize().num_nodes()
    assert (num[Node.GPU], num[Node.SERVER], num[Node.REPLICA]) == (4096, 512, 1024)
    assert num[Node.LINK] == 512 * 10 + 1


@pytest.mark.parametrize("num_zones", [0, 1, 3])
def test_edges_join_nodes_that_there_are(num_zones: int):
    size = FleetSize(num_servers=5, gpus_per_server=4, gpus_per_replica=3, num_zones=num_zones)
    state = random_state(np.random.default_rng(0), size)
    for edge, edges in state.edges.items():
        kind = EDGE_TYPES[edge]
        assert edges.values.shape == (len(edges.source), len(kind.features))
        for ends, node in ((edges.source, kind.source), (edges.target, kind.target)):
            assert ((ends >= 0) & (ends < len(state.values[node]))).all()
    # 20 GPUs, 3 to a replica: 2 are left over
    assert len(state.edges[Edge.HOSTS].source) == 18
    assert (state.gpu_replica == -1).sum() == 2


def test_values_lie_in_their_ranges_and_some_are_absent():
    state = random_state(np.random.default_rng(0), FleetSize(num_servers=50), absent_frac=0.3)
    for node, features in FEATURES_BY_NODE.items():
        low = [feature.scale.low for feature in features]
        high = [feature.scale.high for feature in features]
        assert (state.values[node] >= low).all()
        assert (state.values[node] <= high).all()
    assert state.is_valid[Node.GPU].mean() == pytest.approx(0.7, abs=0.02)
