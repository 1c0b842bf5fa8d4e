"""Recorded sequences: seeded, of many kinds of fleets, and the same after a visit to a file."""

from functools import lru_cache

import numpy as np
import pytest

from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.state.feature import Node
from trimtab.graph_encoder import sequence_file
from trimtab.graph_encoder.sequence_file import load_sequence, save_sequence
from trimtab.graph_encoder.state_sequences import (
    WINDOW_S,
    SequenceConfig,
    StateSequence,
    draw_cluster,
    record_sequence,
)
from trimtab.traces.errors import BundleError

CONFIG = SequenceConfig(num_windows=3)


@lru_cache
def make_sequence(seed: int = 0) -> StateSequence:
    """Return three windows of a fleet of one server that gets far too much."""
    return record_sequence(draw_cluster(3, 1), 60.0, config=CONFIG, seed=seed)


def assert_same(first: StateSequence, second: StateSequence) -> None:
    for name in ("violation_frac", "tenant_violation_frac", "replica_violation_frac"):
        assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True)
    assert len(first.states) == len(second.states)
    for one, other in zip(first.states, second.states, strict=True):
        for node in Node:
            is_valid = one.is_valid[node]
            assert np.array_equal(is_valid, other.is_valid[node])
            expected = one.values[node][is_valid].astype(np.float32)
            assert np.array_equal(expected, other.values[node][is_valid].astype(np.float32))
        assert one.edges.keys() == other.edges.keys()


def test_shapes_and_times() -> None:
    sequence = make_sequence()
    moments_s = [state.now_s for state in sequence.states]
    assert np.diff(moments_s) == pytest.approx(WINDOW_S)
    assert sequence.violation_frac.shape == (3,)
    assert sequence.tenant_violation_frac.shape == (3, 2)
    assert sequence.replica_violation_frac.shape == (3, len(sequence.cluster.replicas))
    assert (sequence.violation_frac >= 0).all()
    assert (sequence.violation_frac <= 1).all()


def test_violations_are_those_of_the_next_window() -> None:
    """What the next state says was late is in the target of the one before."""
    sequence = make_sequence()
    late = [float(state.feature(Node.FLEET, "late_frac")[0]) for state in sequence.states]
    shed = [state.feature(Node.TENANT, "shed_frac") for state in sequence.states]
    for i in range(2):
        if not np.nansum(shed[i + 1]):
            assert sequence.violation_frac[i] == pytest.approx(late[i + 1], abs=0.05)
    assert sequence.violation_frac.max() > 0.2


def test_the_same_seed_gives_the_same() -> None:
    again = record_sequence(draw_cluster(3, 1), 60.0, config=CONFIG, seed=0)
    assert_same(make_sequence(), again)
    assert not np.array_equal(make_sequence(1).violation_frac, make_sequence().violation_frac)


def test_fleets_differ() -> None:
    clusters = [draw_cluster(seed, 4) for seed in range(12)]
    assert len({replica.model for one in clusters for replica in one.replicas}) > 2
    assert len({server.gpu for one in clusters for server in one.servers}) > 2
    assert draw_cluster(5, 4) == clusters[5]


def test_repeated_clusters_keep_their_kinds() -> None:
    cluster = draw_cluster(1, 2)
    found = repeated_cluster(cluster, 3)
    assert len(found.servers) == 6
    assert len(found.replicas) == 3 * len(cluster.replicas)
    assert found.servers[0].gpu == found.servers[2].gpu == cluster.servers[0].gpu
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        repeated_cluster(cluster, 0)


def test_too_short_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="num_windows must be at least 2, got 1"):
        SequenceConfig(num_windows=1)


def test_a_file_keeps_the_sequence(tmp_path) -> None:
    sequence, path = make_sequence(), tmp_path / "deep" / "one.npz"
    save_sequence(path, sequence)
    assert_same(sequence, load_sequence(path, sequence.cluster))
    assert [file.name for file in path.parent.iterdir()] == ["one.npz"]


def test_a_file_of_another_registry_is_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "one.npz"
    monkeypatch.setattr(sequence_file, "registry_hash", lambda: "theirs")
    save_sequence(path, make_sequence())
    monkeypatch.setattr(sequence_file, "registry_hash", lambda: "ours")
    with pytest.raises(BundleError, match="with registry theirs, this is ours"):
        load_sequence(path, make_sequence().cluster)
