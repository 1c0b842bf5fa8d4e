"""What a step of the circuit breakers costs: 20 rules on each of 4,096 GPUs, a replica on each.

States are random ones, a tenth of their values absent, seen every 0.1 s. In `calm` 1 % of what the
rules watch is in breach at random; in `storm` the same tenth of the GPUs is in breach of every rule
for 20 s in each 40 s; in `chaos` every value is drawn anew each time, so that within seconds half
of the 82 thousand breakers are open. Times are the thread's CPU time, alarms included.

Run: python benchmarks/breakers.py [--json] [--gpus 4096] [--steps 1000]
"""

import argparse
import json
import time
from dataclasses import replace

import numpy as np

from trimtab.agents.shield.breaker_file import default_breakers
from trimtab.agents.shield.breaker_rules import BreakerRule
from trimtab.agents.shield.breakers import Breakers
from trimtab.agents.shield.places import Places, replicas_at
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.env.state.registry import column

NUM_RULES = 20
NUM_MODELS = 4
STEP_S = 0.1
NUM_STATES = 20
SCENES = ("calm", "storm", "chaos")
MILLI = 1e3


def make_places(size: FleetSize) -> Places:
    """Places of a random fleet with one replica on each GPU."""
    own, nobody = np.arange(size.num_gpus), np.zeros(0, np.int64)
    pairs = {
        Node.GPU: (own, own),
        Node.REPLICA: (own, own),
        Node.SERVER: (own // size.gpus_per_server, own),
    }
    counts = size.num_nodes()
    return Places(
        names={node: tuple(f"{node}-{i}" for i in range(counts[node])) for node in Node},
        replicas_at={
            node: replicas_at(counts[node], *pairs.get(node, (nobody, nobody))) for node in Node
        },
        model=own % NUM_MODELS,
        batch_slots=np.full(own.size, 256.0),
    )


def make_rules() -> list[BreakerRule]:
    """The bundled rules on GPUs, over and over."""
    rules = [rule for rule in default_breakers() if rule.node is Node.GPU]
    return [replace(rules[i % len(rules)], name=f"rule-{i}") for i in range(NUM_RULES)]


def make_states(scene: str, size: FleetSize, rules: list[BreakerRule]) -> list[ClusterState]:
    """States that come round: half of a storm's are fine."""
    random = np.random.default_rng(0)
    states = [random_state(random, size, absent_frac=0.1) for _ in range(NUM_STATES)]
    for k, state in enumerate(states if scene != "chaos" else []):
        table = state.values[Node.GPU]
        for rule in rules:
            is_bad = random.random(size.num_gpus) < 0.01
            if scene == "storm":
                is_bad = (np.arange(size.num_gpus) % 10 == 0) & (k >= NUM_STATES // 2)
            scale, place = rule.feature.scale, column(Node.GPU, rule.feature.name)
            breach = scale.high if rule.is_above else scale.low
            table[:, place] = np.where(is_bad, breach, rule.recovery.threshold)
    return states


def measure(scene: str, size: FleetSize, num_steps: int) -> dict[str, float]:
    rules = make_rules()
    states, breakers = make_states(scene, size, rules), Breakers(rules, make_places(size))
    random, spans_s, num_alarms, most_open = np.random.default_rng(1), [], 0, 0
    for step in range(num_steps):
        # A storm's halves last 20 s each; else the states come in turns.
        half = NUM_STATES // 2
        k = step % half + half * (int(step * STEP_S) // 20 % 2)
        state = states[k if scene == "storm" else step % NUM_STATES]
        ages_s = {node: np.where(age_s < 5, 0.05 * random.random(age_s.size), age_s)
                  for node, age_s in state.age_s.items()}  # fmt: skip
        state = replace(state, now_s=STEP_S * step, age_s=ages_s)
        start_s = time.thread_time()
        result = breakers.step(state)
        spans_s.append(time.thread_time() - start_s)
        num_alarms += len(result.alarms)
        most_open = max(most_open, sum(breakers.num_open().values()))
    times_ms = MILLI * np.array(spans_s[5:])  # the first ones compile
    return {
        f"{scene}_p50_ms": float(np.median(times_ms)),
        f"{scene}_p99_ms": float(np.quantile(times_ms, 0.99)),
        f"{scene}_max_ms": float(times_ms.max()),
        f"{scene}_alarms": float(num_alarms),
        f"{scene}_most_open": float(most_open),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--gpus", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    size = FleetSize(num_servers=arguments.gpus // 8, gpus_per_server=8, gpus_per_replica=1)
    figures: dict[str, float] = {"rules": NUM_RULES, "gpus": size.num_gpus}
    for scene in SCENES:
        figures |= measure(scene, size, arguments.steps)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:>12,.2f}")


if __name__ == "__main__":
    main()
