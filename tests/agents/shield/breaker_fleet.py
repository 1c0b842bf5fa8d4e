"""A small fleet for tests of breakers: made-up places, and states with a few readings."""

from collections.abc import Mapping, Sequence

import numpy as np

from trimtab.agents.shield.alarm import Alarm
from trimtab.agents.shield.breaker_rules import BreakerRule, Effect, Recovery
from trimtab.agents.shield.breakers import Breakers, BreakerStep, Phase
from trimtab.agents.shield.places import Places, replicas_at
from trimtab.agents.shield.slow_start import SlowStart
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE, column

BATCH_SLOTS = 100.0
NO_SLOW_START = SlowStart(span_s=0)


def make_places(num_replicas: int = 4, num_models: int = 1) -> Places:
    """Replicas on a GPU each, two GPUs a server and a link, all in one zone; models in turn."""
    own = np.arange(num_replicas)
    pairs = {
        Node.REPLICA: own,
        Node.GPU: own,
        Node.SERVER: own // 2,
        Node.LINK: own // 2,
        Node.ZONE: own * 0,
    }
    sizes = {node: int(rows[-1]) + 1 for node, rows in pairs.items()} | {
        Node.TENANT: 1,
        Node.FLEET: 1,
    }
    nobody = np.zeros(0, np.int64)
    return Places(
        names={node: tuple(f"{node}-{i}" for i in range(sizes[node])) for node in Node},
        replicas_at={
            node: replicas_at(
                sizes[node], pairs.get(node, nobody), own if node in pairs else nobody
            )
            for node in Node
        },
        model=own % num_models,
        batch_slots=np.full(num_replicas, BATCH_SLOTS),
    )


def make_state(
    places: Places,
    now_s: float,
    readings: Mapping[str, Sequence[float]],
    age_s: float | Sequence[float] = 0.0,
) -> ClusterState:
    """A state with these readings, by metric and node, all of one age; the rest is absent.

    What is None in a reading is absent too, with a value that would alarm anybody.
    """
    values, is_valid, ages_s = {}, {}, {}
    for node in Node:
        shape = (len(places.names[node]), len(FEATURES_BY_NODE[node]))
        values[node] = np.full(shape, np.nan)
        is_valid[node] = np.zeros(shape, np.bool_)
        ages_s[node] = np.broadcast_to(np.asarray(age_s, float), shape[:1]).copy()
    for metric, row in readings.items():
        node_name, name = metric.split(".")
        node = Node(node_name)
        place = column(node, name)
        values[node][:, place] = [1e9 if value is None else value for value in row]
        is_valid[node][:, place] = [value is not None for value in row]
    return ClusterState(
        now_s=now_s,
        values=values,
        is_valid=is_valid,
        age_s=ages_s,
        gpu_replica=np.arange(places.num_replicas),
        gpu_server=np.arange(places.num_replicas) // 2,
    )


def make_rule(**changes: object) -> BreakerRule:
    """A rule that bars a replica with much KV in use."""
    settings = {
        "name": "full",
        "metric": "replica.kv_usage_frac",
        "threshold": 0.9,
        "for_s": 1.0,
        "effect": Effect.QUARANTINE,
        "recovery": Recovery(threshold=0.8, for_s=2.0, cool_down_s=5.0, probes=3),
    }
    return BreakerRule(**(settings | changes))


class Fleet:
    """Breakers that see a reading every 0.1 s."""

    def __init__(self, *rules: BreakerRule, places: Places | None = None, slow=NO_SLOW_START):
        self.places = places or make_places()
        self.breakers = Breakers(rules, self.places, slow)
        self.now_s = 0.0
        self.alarms: list[Alarm] = []

    def see(self, age_s: float | Sequence[float] = 0.0, **readings: Sequence) -> BreakerStep:
        named = {name.replace("__", "."): row for name, row in readings.items()}
        step = self.breakers.step(make_state(self.places, self.now_s, named, age_s))
        self.alarms += step.alarms
        return step

    def see_for(self, span_s: float, **readings: Sequence) -> BreakerStep:
        """Readings at 0.1 s, 0.2 s, ..., `span_s` from here."""
        start_s = self.now_s
        for tick in range(1, round(span_s / 0.1) + 1):
            self.now_s = round(start_s + 0.1 * tick, 6)
            step = self.see(**readings)
        return step

    @property
    def phases(self) -> list[Phase]:
        return [state.phase for state in self.breakers.states()]


def kv(*values: float | None) -> dict[str, list[float | None]]:
    """KV usage of four replicas; those that are not given are fine."""
    return {"replica__kv_usage_frac": [*values, *[0.1] * (4 - len(values))]}
