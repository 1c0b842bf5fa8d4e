"""What does not change about a rack, as arrays: peaks of its GPUs, placement, nominal times.

Does not know: anything that is measured; derivations divide measurements by these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....env.cluster import ReplicaSpec
from ....env.hardware import Gpu, Precision
from ....env.model_profile import model
from ....env.state.feature import FloatArray
from .nominal_times import nominal_times
from .server_facts import ServerFacts

PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP8, Precision.INT8)
"""Order of the columns of `peak_flops` and `runs_precision`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GpuConstants:
    """Constants of the GPUs of S servers, padded to G a server; NaN where unknown.

    Shapes: [S, G] where nothing else is said.
    """

    peak_flops: FloatArray
    """[S, G, precisions]: dense FLOP/s."""
    runs_precision: NDArray[np.bool_]
    """[S, G, precisions]: its first replica multiplies in the format."""
    tdp_watts: FloatArray
    hbm_bytes_per_s: FloatArray
    nvlink_bytes_per_s: FloatArray
    """One direction; NaN without NVLink."""
    pcie_bytes_per_s: FloatArray
    weight_bytes: FloatArray
    """Weights that it holds, of all replicas that it serves."""
    num_peers: FloatArray
    """GPUs of its first replica, itself included; NaN if it serves none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaConstants:
    """Constants of the replicas of S servers, padded to R a server; NaN where unknown.

    Shapes: [S, R] where nothing else is said.
    """

    hosts: FloatArray
    """[S, R, G]: 1 where the GPU serves the replica, else 0."""
    max_num_seqs: FloatArray
    kv_token_bytes: FloatArray
    """KV of one token on each of its GPUs."""
    prefill_token_s: FloatArray
    """Nominal seconds a prompt token."""
    decode_context_s: FloatArray
    """Nominal seconds that a token of context adds to an iteration."""
    decode_base_s: FloatArray
    """[S * R, B]: nominal decode iteration by sequences in the batch, without context."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RackConstants:
    """Constants of a rack."""

    servers: tuple[ServerFacts, ...]
    gpus: GpuConstants
    replicas: ReplicaConstants
    network_bytes_per_s: FloatArray
    """[S]: NaN where the host has to say."""
    disk_bytes_per_s: FloatArray
    """[S]."""


def rack_constants(servers: Sequence[ServerFacts]) -> RackConstants:
    """Return the constants of a rack whose servers come in this order."""
    return RackConstants(
        servers=tuple(servers),
        gpus=_gpu_constants(servers),
        replicas=_replica_constants(servers),
        network_bytes_per_s=_known([server.network_bytes_per_s for server in servers]),
        disk_bytes_per_s=_known([server.disk_bytes_per_s for server in servers]),
    )


def _known(values: Sequence[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _gpu_constants(servers: Sequence[ServerFacts]) -> GpuConstants:
    shape = (len(servers), max((len(server.gpus) for server in servers), default=0))
    nan = np.full(shape, np.nan)
    constants = GpuConstants(
        peak_flops=np.full((*shape, len(PRECISIONS)), np.nan),
        runs_precision=np.zeros((*shape, len(PRECISIONS)), dtype=np.bool_),
        tdp_watts=nan.copy(),
        hbm_bytes_per_s=nan.copy(),
        nvlink_bytes_per_s=nan.copy(),
        pcie_bytes_per_s=nan.copy(),
        weight_bytes=nan.copy(),
        num_peers=nan.copy(),
    )
    for s, server in enumerate(servers):
        for g, gpu in enumerate(server.gpus):
            if gpu is not None:
                _fill_gpu(constants, (s, g), gpu)
        for replica in reversed(server.replicas):  # so that a GPU's first replica is left standing
            _fill_hosting(constants, s, replica)
    return constants


def _fill_gpu(constants: GpuConstants, place: tuple[int, int], gpu: Gpu) -> None:
    constants.peak_flops[place] = [gpu.peak_flops.get(p, np.nan) for p in PRECISIONS]
    constants.tdp_watts[place] = gpu.tdp_w
    constants.hbm_bytes_per_s[place] = gpu.hbm_bytes_per_s
    constants.nvlink_bytes_per_s[place] = gpu.nvlink_bytes_per_s or np.nan
    constants.pcie_bytes_per_s[place] = gpu.pcie_bytes_per_s


def _fill_hosting(constants: GpuConstants, server: int, replica: ReplicaSpec) -> None:
    own_bytes = model(replica.model).weight_bytes(replica.precision) / replica.num_gpus
    for g in replica.gpu_indices:
        place = (server, g)
        constants.weight_bytes[place] = np.nansum([constants.weight_bytes[place], own_bytes])
        constants.runs_precision[place] = [p is replica.precision for p in PRECISIONS]
        constants.num_peers[place] = replica.num_gpus


def _replica_constants(servers: Sequence[ServerFacts]) -> ReplicaConstants:
    num_gpus = max((len(server.gpus) for server in servers), default=0)
    shape = (len(servers), max((len(server.replicas) for server in servers), default=0))
    longest = max((r.max_num_seqs for server in servers for r in server.replicas), default=0)
    nan = np.full(shape, np.nan)
    constants = ReplicaConstants(
        hosts=np.zeros((*shape, num_gpus)),
        max_num_seqs=nan.copy(),
        kv_token_bytes=nan.copy(),
        prefill_token_s=nan.copy(),
        decode_context_s=nan.copy(),
        decode_base_s=np.full((shape[0] * shape[1], longest + 1), np.nan),
    )
    for s, server in enumerate(servers):
        for r, replica in enumerate(server.replicas):
            _fill_replica(constants, (s, r), server, replica)
    return constants


def _fill_replica(
    constants: ReplicaConstants, place: tuple[int, int], server: ServerFacts, replica: ReplicaSpec
) -> None:
    constants.hosts[place][list(replica.gpu_indices)] = 1.0
    constants.max_num_seqs[place] = replica.max_num_seqs
    token_bytes = model(replica.model).kv_bytes_per_token(
        replica.precision.attention_precision, tensor_parallel=replica.tensor_parallel
    )
    constants.kv_token_bytes[place] = token_bytes / replica.num_gpus
    gpu = server.gpus[replica.gpu_indices[0]]
    if gpu is None:
        return
    times = nominal_times(gpu, replica)
    constants.prefill_token_s[place] = times.prefill_token_s
    constants.decode_context_s[place] = times.decode_context_s
    row = place[0] * constants.hosts.shape[1] + place[1]
    base_s = constants.decode_base_s[row]
    base_s[:] = times.decode_base_s[-1]
    base_s[: len(times.decode_base_s)] = times.decode_base_s
