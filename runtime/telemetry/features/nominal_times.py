"""What the roofline says of a replica: how long its iterations should take.

Does not know: how long they take.
Source: the calibrated roofline (`env/roofline.py`), as the simulator uses it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ....env.cluster import ReplicaSpec
from ....env.dispatch import full_chunk_token_s
from ....env.hardware import Gpu
from ....env.latency import base_time_s
from ....env.model_profile import model
from ....env.replica_latency import replica_latency
from ....env.state.feature import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NominalTimes:
    """Nominal times of one kind of replica."""

    prefill_token_s: float
    """Seconds a prompt token, in a full chunk."""
    decode_context_s: float
    """Seconds that a token of context adds to a decode iteration."""
    decode_base_s: FloatArray
    """[max_num_seqs + 1]: a decode iteration by sequences in the batch, without context."""


def nominal_times(gpu: Gpu, replica: ReplicaSpec) -> NominalTimes:
    """Return the nominal times of a replica on GPUs of a kind; equal replicas share them."""
    places = tuple(range(replica.num_gpus))
    return _nominal_times(gpu, replace(replica, name="", server="", gpu_indices=places))


@lru_cache(maxsize=256)
def _nominal_times(gpu: Gpu, replica: ReplicaSpec) -> NominalTimes:
    coefficients = replica_latency(gpu, model(replica.model), replica)
    record = coefficients[0]
    batches = range(replica.max_num_seqs + 1)
    return NominalTimes(
        prefill_token_s=float(full_chunk_token_s(record, float(replica.max_batch_tokens))),
        decode_context_s=float(record["decode_context_s"]),
        decode_base_s=np.array([base_time_s(record, 0.0, 0.0, float(max(n, 1))) for n in batches]),
    )
