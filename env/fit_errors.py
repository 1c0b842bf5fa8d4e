"""How far a calibration is off on measured iterations, and the table that says so.

Does not know: how a calibration was made (`fitting.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration, ErrorRow
from .hardware import Gpu
from .latency import predict_parts
from .profiles.samples import IterationSamples, Phase
from .roofline import latency_coefficients

Array = NDArray[np.float64]


def predicted_parts_s(samples: IterationSamples, gpu: Gpu, calibration: Calibration) -> Array:
    """Predicted seconds of every sample by part, [S, 4], columns as in `samples.PARTS`.

    What the samples leave out (engine, transfers, attentions in one kernel) is left out here too.
    """
    if not samples.has_engine:
        kernels_only = replace(
            calibration.efficiency, engine_step_s=0.0, engine_request_s=0.0, sampling_bytes=0.0
        )
        calibration = replace(calibration, efficiency=kernels_only)
    if not samples.is_mixed_measured:
        side_by_side = replace(calibration.efficiency, mixed_tile_rows=0.0)
        calibration = replace(calibration, efficiency=side_by_side)
    coefficients = latency_coefficients(
        gpu,
        samples.model,
        tensor_parallel=samples.tensor_parallel,
        precision=samples.precision,
        calibration=calibration,
    )
    if not samples.has_communication:
        coefficients["communication_s"] = 0.0
    parts = np.empty((len(samples.times_s), 4))
    predict_parts(coefficients, samples.batches, parts)
    if not samples.has_engine:
        # what is left of the fixed cost is launches of the layers' kernels
        parts[:, 0] += coefficients["step_s"]
        parts[:, 3] -= coefficients["step_s"]
    return parts


def is_plain(samples: IterationSamples) -> bool:
    """Whether the samples are of a dense model in 16 bits."""
    return not samples.model.is_moe and samples.precision.bytes_per_value > 1


@dataclass(frozen=True, slots=True)
class FitErrors:
    """Absolute relative errors of one set, by phase."""

    samples: IterationSamples
    """What was predicted."""
    errors: Array
    """[S]."""
    is_left_out: bool
    """Whether the set was left out of the fit."""

    def of(self, phase: Phase) -> Array:
        """Errors of one phase."""
        return np.asarray(self.errors[self.samples.phases == phase])


def prediction_errors(
    samples: IterationSamples, gpu: Gpu, calibration: Calibration, *, is_left_out: bool
) -> FitErrors:
    """How far a calibration is off on one set."""
    predicted_s = predicted_parts_s(samples, gpu, calibration).sum(axis=1)
    return FitErrors(samples, np.abs(predicted_s / samples.times_s - 1.0), is_left_out)


_POOLS: dict[str, Callable[[IterationSamples], bool]] = {
    "dense": is_plain,
    "8-bit": lambda entry: not entry.model.is_moe and not is_plain(entry),
    "experts": lambda entry: entry.model.is_moe,
    "all": lambda _: True,
}


def error_rows(errors: Iterable[FitErrors]) -> list[ErrorRow]:
    """One row for each set and phase, then for kinds of sets and all sets together."""
    errors = list(errors)
    rows = []
    for is_left_out in (False, True):
        chosen = [entry for entry in errors if entry.is_left_out == is_left_out]
        for entry in chosen:
            samples = entry.samples
            names = (samples.model.name, samples.tensor_parallel, samples.precision.value)
            for phase in Phase:
                rows += _error_row(names, phase, is_left_out, entry.of(phase))
        for name, belongs in _POOLS.items():
            pool = [entry for entry in chosen if belongs(entry.samples)]
            for phase in Phase if len(pool) > 1 else ():
                errors_of = np.concatenate([entry.of(phase) for entry in pool])
                rows += _error_row((name, 0, "all"), phase, is_left_out, errors_of)
    return rows


def _error_row(
    names: tuple[str, int, str], phase: Phase, is_left_out: bool, errors: Array
) -> list[ErrorRow]:
    """The row of some errors, or none where there are none."""
    if not errors.size:
        return []
    model, tensor_parallel, precision = names
    row = ErrorRow(
        model=model,
        tensor_parallel=tensor_parallel,
        precision=precision,
        phase=phase.label,
        is_left_out=is_left_out,
        num_samples=int(errors.size),
        median_frac=float(f"{np.median(errors):.4g}"),
        p95_frac=float(f"{np.quantile(errors, 0.95):.4g}"),
    )
    return [row]
