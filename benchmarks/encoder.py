"""What it costs to see a fleet: from its state to tensors, and from tensors to one vector.

The state is a random one of a fleet of 8 GPUs a server, with every feature of the registry; the
three backends run the same weights, in turns, on one thread. The batch is what PPO trains on: 512
graphs of 16 replicas, 16 GPUs, 4 servers and 2 tenants, forward and backward, with the building of
the graphs. Times are the thread's CPU time: of all rounds the least and the median.

Run: python benchmarks/encoder.py [--json] [--servers 512] [--rounds 15]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trimtab.env.observation import ObservationLayout, observation_space
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.env.state.registry import FEATURES_BY_NODE
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.backend import Backend
from trimtab.graph_encoder.compiled_attention import KERNELS
from trimtab.graph_encoder.dense_attention import TABLES
from trimtab.graph_encoder.extractor import POLICY_POOLS
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.graph_batch import GraphBatch
from trimtab.graph_encoder.observation_graph import OBSERVATION_SCHEMA, observation_graphs
from trimtab.graph_encoder.relation_attention import PYG

BACKENDS: tuple[Backend, ...] = (PYG, TABLES, KERNELS)
BATCH = 512
MILLI = 1e3

Times = dict[str, dict[str, float]]


def time_in_turns(parts: dict[str, Callable[[], object]], num_rounds: int) -> Times:
    """Return least and median CPU time of each part in ms; the first round is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(num_rounds + 1):
        for name, part in parts.items():
            begin_s = time.thread_time()
            part()
            spent[name].append((time.thread_time() - begin_s) * MILLI)
    return {
        name: {"min_ms": min(of_part[1:]), "median_ms": statistics.median(of_part[1:])}
        for name, of_part in spent.items()
    }


def time_fleet(size: FleetSize, num_rounds: int) -> dict[str, object]:
    """Return times, sizes and the largest difference between the backends for one fleet."""
    state = random_state(np.random.default_rng(0), size)
    builder = GraphBuilder()
    graph = builder.build(state)
    encoder = AttentionEncoder()

    def encode(backend: Backend) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return encoder.run(graph, backend).pooled

        return run

    def serve() -> Tensor:
        with torch.inference_mode():
            return encoder.run(builder.build(state), KERNELS).pooled

    parts: dict[str, Callable[[], object]] = {"state to tensors": lambda: builder.build(state)}
    parts |= {f"encode, {backend.name}": encode(backend) for backend in BACKENDS}
    parts["state to vector, kernels"] = serve
    expected = encode(PYG)()
    return {
        **describe(size, graph, encoder),
        "largest_difference": {
            backend.name: float((encode(backend)() - expected).abs().max()) for backend in BACKENDS
        },
        "times": time_in_turns(parts, num_rounds),
    }


def describe(size: FleetSize, graph: GraphBatch, encoder: AttentionEncoder) -> dict[str, object]:
    return {
        "nodes": {str(node): num for node, num in size.num_nodes().items()},
        "features": {str(node): len(features) for node, features in FEATURES_BY_NODE.items()},
        "edges": sum(part.num_edges for part in graph.neighbours.values()),
        "raw_values": sum(
            num * len(FEATURES_BY_NODE[node]) for node, num in size.num_nodes().items()
        ),
        "output_numbers": encoder.pooled_size,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }


def time_batch(num_rounds: int) -> Times:
    """Return times of forward and backward over a batch of observations."""
    layout = ObservationLayout()
    observations = {
        key: torch.rand((BATCH, *box.shape))
        for key, box in observation_space(layout).spaces.items()
    }
    for node, num in layout.sizes().items():
        observations[f"{node}_mask"] = torch.ones(BATCH, num)
    gpus = torch.arange(layout.max_gpus)
    observations["gpu_replica"] = (gpus % layout.max_replicas).float().expand(BATCH, -1)
    observations["gpu_server"] = (gpus % layout.max_servers).float().expand(BATCH, -1)
    encoder = AttentionEncoder(OBSERVATION_SCHEMA, pools=POLICY_POOLS)

    def train(backend: Backend) -> Callable[[], None]:
        def run() -> None:
            encoded = encoder.run(observation_graphs(observations), backend)
            loss = encoded.pooled.square().sum() + encoded.nodes["replica"].square().sum()
            loss.backward()

        return run

    return time_in_turns(
        {f"PPO batch, {backend.name}": train(backend) for backend in BACKENDS}, num_rounds
    )


def print_table(figures: dict[str, object], times: Times) -> None:
    for name in ("nodes", "features", "edges", "raw_values", "output_numbers", "parameters"):
        print(f"{name}: {figures[name]}")
    print(f"largest difference to PyG: {figures['largest_difference']}")
    print(f"\n{'part':28}{'min ms':>10}{'median ms':>12}")
    for name, of_part in times.items():
        print(f"{name:28}{of_part['min_ms']:10.2f}{of_part['median_ms']:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--servers", type=int, default=512, help="servers of 8 GPUs")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which parts take turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = time_fleet(FleetSize(num_servers=arguments.servers), arguments.rounds)
    times = figures["times"]
    assert isinstance(times, dict), times
    times |= time_batch(arguments.rounds)
    print_table(figures, times)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
