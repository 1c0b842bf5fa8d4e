"""Raw vectors: everything that the encoder sees, and summaries by hand."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.state.edges import EDGE_TYPES
from trimtab.env.state.feature import Node
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.env.state.registry import FEATURES_BY_NODE, column
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.raw_vectors import flat_vector, summary_names, summary_vector

SIZE = FleetSize(num_servers=2, gpus_per_server=4, gpus_per_replica=2, num_tenants=2)


def make_state(seed: int = 0):
    return random_state(np.random.default_rng(seed), SIZE)


def with_values(state, node: Node, name: str, values: list[float | None]):
    """Return a state with one feature of a kind as given; None is absent."""
    place = column(node, name)
    raw, is_valid = state.values[node].copy(), state.is_valid[node].copy()
    raw[:, place] = [0.0 if value is None else value for value in values]
    is_valid[:, place] = [value is not None for value in values]
    return replace(
        state, values={**state.values, node: raw}, is_valid={**state.is_valid, node: is_valid}
    )


def summary_of(state, node: Node, name: str) -> dict[str, float]:
    found = dict(zip(summary_names(), summary_vector(GraphBuilder().build(state)), strict=True))
    prefix = f"{node}.{name}."
    return {key.removeprefix(prefix): value for key, value in found.items() if prefix in key}


def test_summary_by_hand() -> None:
    """Shares are not scaled; the absent one counts for nothing but the share that is known."""
    state = with_values(make_state(), Node.REPLICA, "late_frac", [0.2, None, 0.6, 0.1])
    found = summary_of(state, Node.REPLICA, "late_frac")
    expected = {
        "mean": 0.3,
        "spread": 0.21602,
        "least": 0.1,
        "most": 0.6,
        "q50": 0.2,
        "known": 0.75,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-4)


def test_summary_of_nothing_known_is_0() -> None:
    state = with_values(make_state(), Node.REPLICA, "late_frac", [None] * 4)
    assert set(summary_of(state, Node.REPLICA, "late_frac").values()) == {0.0}


def test_summary_does_not_depend_on_order() -> None:
    state = make_state()
    order = np.random.default_rng(1).permutation(len(state.values[Node.LINK]))
    turned = replace(
        state,
        values={**state.values, Node.LINK: state.values[Node.LINK][order]},
        is_valid={**state.is_valid, Node.LINK: state.is_valid[Node.LINK][order]},
    )
    first, second = (summary_vector(GraphBuilder().build(one)) for one in (state, turned))
    assert second == pytest.approx(first, abs=1e-5)


def test_every_summary_has_a_name() -> None:
    assert len(summary_names()) == len(summary_vector(GraphBuilder().build(make_state())))
    assert len(set(summary_names())) == len(summary_names())


def test_flat_vector_holds_every_value_once() -> None:
    state = make_state()
    flat = flat_vector(GraphBuilder().build(state))
    values = sum(2 * rows.size for rows in state.values.values())  # each with its flag
    attributes = sum(2 * edges.values.size for edges in state.edges.values())
    kinds = {node: len(rows) for node, rows in state.values.items() if node is not Node.FLEET}
    ages = 2 * (1 + sum(kinds.values()))
    counts = sum(kinds[kind.source] + kinds[kind.target] for kind in EDGE_TYPES.values())
    assert len(flat) == values + attributes + ages + counts
    assert np.isfinite(flat).all()


def test_any_known_value_moves_the_flat_vector() -> None:
    state = make_state()
    before = flat_vector(GraphBuilder().build(state))
    for node, features in FEATURES_BY_NODE.items():
        scale = features[0].scale
        is_valid = state.is_valid[node].copy()
        is_valid[0, 0] = not is_valid[0, 0]
        values = state.values[node].copy()
        values[0, 0] = scale.high
        other = replace(
            state,
            values={**state.values, node: values},
            is_valid={**state.is_valid, node: is_valid},
        )
        assert not np.array_equal(before, flat_vector(GraphBuilder().build(other))), node
