"""The compiled copy of a fleet's values says exactly what the rules of ages and masks say."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE
from trimtab.runtime.telemetry.fleet_layout import NONE, fleet_of_racks
from trimtab.runtime.telemetry.fleet_values import FleetValues
from trimtab.runtime.telemetry.rack_layout import RACK_NODES, RackLayout, ServerPlace

MAX_AGE_S = 5.0
MOMENTS = st.one_of(st.just(float("nan")), st.floats(0.0, 30.0))


def make_values() -> FleetValues:
    places = tuple(
        ServerPlace(probe=f"p{i}", server=f"s{i}", num_gpus=2, num_replicas=i) for i in range(3)
    )
    layout = fleet_of_racks([RackLayout(rack="r", servers=places)], num_zones=2, num_tenants=2)
    return FleetValues(layout, max_age_s=MAX_AGE_S)


def expected_age_s(
    values: FleetValues, put_at_s: dict[Node, list[float]], node: Node, now_s: float
):
    """Ages of a kind's rows, row by row."""
    ages = []
    for server in row_servers(values, node):
        known = [at_s for at_s in put_at_s.get(node, []) if at_s == at_s]
        heard_at_s = values.sampled_at_s[server] if server != NONE else max(known, default=np.nan)
        ages.append(np.inf if np.isnan(heard_at_s) else max(now_s - heard_at_s, 0.0))
    return np.array(ages)


def row_servers(values: FleetValues, node: Node) -> list[int]:
    first = sum(values._layout.num_rows[n] for n in list(Node)[: list(Node).index(node)])
    number = values._layout.num_rows[node]
    if node not in RACK_NODES:
        return [NONE] * number
    return values._rows[first : first + number, 1].tolist()


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@given(
    sampled_at_s=st.lists(MOMENTS, min_size=3, max_size=3),
    puts=st.lists(st.tuples(st.sampled_from(list(Node)), st.integers(0, 3), st.floats(0, 30)),
                  max_size=6),
    now_s=st.floats(0.0, 40.0),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60)
def test_ages_and_masks_are_those_of_the_rules(
    sampled_at_s: list[float], puts: list[tuple[Node, int, float]], now_s: float, seed: int
):
    values = make_values()
    rng = np.random.default_rng(seed)
    values.flat[:] = rng.normal(size=values.flat.size)
    values.flat_is_valid[:] = rng.random(values.flat.size) < 0.7
    values.sampled_at_s[:] = sampled_at_s
    put_at_s: dict[Node, list[float]] = {}
    for node, place, at_s in puts:
        moments = put_at_s.setdefault(node, [float("nan")] * len(FEATURES_BY_NODE[node]))
        number = values._layout.num_rows[node]
        if values.put(node, {FEATURES_BY_NODE[node][place].name: np.ones(number)}, at_s):
            moments[place] = at_s
    state = values.state(now_s)
    assert isinstance(state, ClusterState)
    for node in Node:
        age_s = expected_age_s(values, put_at_s, node, now_s)
        assert same(state.age_s[node], age_s)
        table, is_kept, _ = values._tables(node)
        moments = np.array(put_at_s.get(node, [np.nan] * len(FEATURES_BY_NODE[node])))
        is_put = np.isfinite(moments)
        is_gone = (age_s > MAX_AGE_S)[:, None] & ~is_put | is_put & (now_s - moments > MAX_AGE_S)
        assert same(state.values[node], table)
        assert same(state.is_valid[node], is_kept & ~is_gone)
