"""The latency coefficients of a replica: measured ones if it has them, else its roofline's.

Does not know: where either comes from (`measured_latency.py`, `roofline.py`).
"""

import numpy as np

from .cluster import ReplicaSpec
from .hardware import Gpu
from .model_shape import ModelProfile
from .roofline import latency_coefficients
from .simulator.cluster_setup import share_coefficients


def replica_latency(gpu: Gpu, model: ModelProfile, replica: ReplicaSpec) -> np.ndarray:
    """Return the nominal coefficients of a replica on GPUs of a kind, LATENCY_DTYPE [1]."""
    if replica.measured is not None:
        return replica.measured.coefficients()
    coefficients = latency_coefficients(
        gpu,
        model,
        tensor_parallel=replica.tensor_parallel,
        precision=replica.precision,
        pipeline_parallel=replica.pipeline_parallel,
        expert_parallel=replica.expert_parallel,
        speculation=replica.speculation,
    )
    if replica.compute_frac < 1.0:
        share_coefficients(coefficients, replica.compute_frac)
    return coefficients
