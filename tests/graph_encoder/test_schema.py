"""The schemas: whole registry and observation, every edge kind both ways, names of columns."""

import pytest

from trimtab.env.state.edges import Edge
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE
from trimtab.graph_encoder.observation_graph import OBSERVATION_SCHEMA
from trimtab.graph_encoder.schema import FLEET_SCHEMA, GraphSchema, backward_type, signal_of


def test_fleet_schema_holds_every_feature_and_its_flag():
    assert set(FLEET_SCHEMA.nodes) == {str(node) for node in Node if node is not Node.FLEET}
    for node, features in FEATURES_BY_NODE.items():
        columns = FLEET_SCHEMA.columns.get(node, FLEET_SCHEMA.fleet_columns)
        for feature in features:
            assert feature.name in columns
            assert f"is_known({feature.name})" in columns
            assert signal_of(f"is_known({feature.name})") == feature.name


def test_edge_kinds_are_read_both_ways():
    assert len(FLEET_SCHEMA.edge_types) == 2 * len(Edge)
    assert backward_type(Edge.WAITS_ON) == ("replica", "serves", "tenant")
    assert backward_type(Edge.HOSTS) == ("replica", "rev_hosts", "gpu")
    attributes = FLEET_SCHEMA.attributes["replica", "serves", "tenant"]
    assert attributes[:2] == ("waiting_requests", "outstanding_requests")


def test_columns_have_names_of_their_own():
    for schema in (FLEET_SCHEMA, OBSERVATION_SCHEMA):
        for columns in (*schema.columns.values(), schema.fleet_columns):
            assert len(columns) == len(set(columns))


def test_edge_type_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="joins unknown node kind 'switch'; known: gpu"):
        GraphSchema(
            columns={"gpu": ("power",)},
            attributes={("gpu", "in", "switch"): ()},
            fleet_columns=(),
            single=frozenset(),
        )
