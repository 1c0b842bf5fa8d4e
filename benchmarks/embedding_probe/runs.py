"""Recorded runs of one large fleet: what the embedding is judged on.

Servers of four kinds of GPUs in turn, eight GPUs each, serve one model over four GPUs a replica.
Runs to fit on and runs to test on differ in seed, and in the part of the trace that their requests
come from: the test's lie later.

Does not know: probes, or the encoder.
"""

from dataclasses import dataclass
from pathlib import Path

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.scenario import Part
from trimtab.graph_encoder.sequence_file import load_sequence, save_sequence
from trimtab.graph_encoder.state_sequences import (
    SequenceConfig,
    StateSequence,
    fleet_saturation_rps,
    record_sequence,
)

MODEL = "llama-3-70b"
GPUS_PER_SERVER = 8
GPUS_PER_REPLICA = 4
_BASE_GPUS = ("H100-80G", "H200-141G", "A100-80G", "H100-80G") * 2
_NUM_ZONES = 4
# Load over saturation around which the runs swing. For a model of this size the limit on time per
# output token binds first; what is to be foretold are late first tokens, which come at more load.
_LOAD_FRAC = 1.4
# Seeds of test runs begin here, so that more runs to fit on change no test run.
_FIRST_TEST_SEED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How much is recorded."""

    num_servers: int = 512
    """Of eight GPUs; a multiple of 8."""
    num_fit_runs: int = 30
    """Runs that probes are fitted on."""
    num_test_runs: int = 10
    """Runs that they are tested on."""
    num_windows: int = 30
    """States of a run."""

    def __post_init__(self) -> None:
        if self.num_servers < 1 or self.num_servers % len(_BASE_GPUS):
            msg = f"num_servers must be a multiple of {len(_BASE_GPUS)}, got {self.num_servers}"
            raise ValueError(msg)

    @property
    def num_gpus(self) -> int:
        """GPUs of the fleet."""
        return self.num_servers * GPUS_PER_SERVER

    @property
    def seeds(self) -> tuple[tuple[Part, int], ...]:
        """Part of the trace and seed of each run, those to fit on first."""
        fit = ((Part.TRAIN, seed) for seed in range(self.num_fit_runs))
        test = ((Part.TEST, _FIRST_TEST_SEED + seed) for seed in range(self.num_test_runs))
        return (*fit, *test)


def base_cluster() -> ClusterSpec:
    """Return eight servers, of which the large fleet has many copies."""
    servers, replicas = [], []
    for i, gpu in enumerate(_BASE_GPUS):
        name = f"server-{i}"
        zone = f"zone-{i % _NUM_ZONES}"
        servers.append(ServerSpec(name=name, zone=zone, gpu=gpu, num_gpus=GPUS_PER_SERVER))
        replicas += [
            ReplicaSpec(
                name=f"{name}-{first}",
                server=name,
                model=MODEL,
                gpu_indices=tuple(range(first, first + GPUS_PER_REPLICA)),
                max_batch_tokens=1024,
            )
            for first in range(0, GPUS_PER_SERVER, GPUS_PER_REPLICA)
        ]
    return ClusterSpec(name="base", servers=tuple(servers), replicas=tuple(replicas))


def recorded_run(runs: Runs, part: Part, seed: int, directory: Path | None = None) -> StateSequence:
    """Return a run, read from the directory if it was recorded there, else recorded."""
    base, times = base_cluster(), runs.num_servers // len(_BASE_GPUS)
    cluster = repeated_cluster(base, times)
    name = f"{runs.num_gpus}-gpus-{part}-{seed}-{runs.num_windows}.npz"
    path = None if directory is None else directory / name
    if path is not None and path.exists():
        return load_sequence(path, cluster)
    config = SequenceConfig(num_windows=runs.num_windows, part=part)
    rate_rps = _LOAD_FRAC * times * fleet_saturation_rps(base)
    sequence = record_sequence(cluster, rate_rps, config=config, seed=seed)
    if path is not None:
        save_sequence(path, sequence)
    return sequence
