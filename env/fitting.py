"""The fit of a calibration to measured iterations, and its error table.

Least squares of log errors by Levenberg-Marquardt with a robust loss, through the very kernel that
simulates: a fitted coefficient means what the simulator makes of it. Where a sample's parts are
known (layers, attention), their errors count a little as well; that keeps coefficients apart that
the whole alone would trade for each other. Coefficients that no sample can tell stay as they were.

Does not know: where samples come from.
Source: Levenberg-Marquardt after Nocedal and Wright, Numerical Optimization, chapter 10; the loss
is pseudo-Huber.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration, Efficiency, ErrorRow
from .datasheet import calibration_of
from .hardware import Gpu
from .latency import predict_parts
from .profiles.samples import IterationSamples, Phase, without
from .roofline import latency_coefficients

Array = NDArray[np.float64]

# log error from which the loss grows linearly
_ROBUST_SCALE = 0.05
# weight of a part's error beside the whole's
_PART_WEIGHT = 0.2
# weight of staying near the start, per coefficient
_PRIOR_WEIGHT = 2e-3
# the same for one recorded run, which tells few coefficients well
_RUN_PRIOR_WEIGHT = 5e-2
_MAX_ROUNDS = 40
# rounds of a fit that starts one step from its end
_LEFT_OUT_ROUNDS = 2
# change of a log coefficient for a derivative
_STEP = 1e-4
# relative gain of a round below which the fit is done
_MIN_GAIN = 1e-4

# Where a fit starts when there is nothing better: the middle of what GPUs reach.
START = Efficiency(
    memory_frac=0.8,
    compute_frac=0.85,
    roofline_power=2.0,
    tile_pad_frac=0.2,
    narrow_values=100.0,
    sustained_frac=0.1,
    activation_frac=0.8,
    layer_s=2e-5,
    attention_frac=0.7,
    prefill_layer_s=1e-5,
    prefill_position_s=1e-9,
    kv_frac=0.85,
    decode_layer_s=1e-5,
    decode_seq_layer_s=3e-8,
)

_DENSE = (
    "memory_frac",
    "compute_frac",
    "roofline_power",
    "tile_pad_frac",
    "narrow_values",
    "sustained_frac",
    "activation_frac",
    "layer_s",
    "attention_frac",
    "prefill_layer_s",
    "prefill_position_s",
    "kv_frac",
    "decode_layer_s",
    "decode_seq_layer_s",
)
_EIGHT_BIT = tuple(
    f"eight_bit_{name}"
    for name in (
        "memory_frac",
        "compute_frac",
        "roofline_power",
        "tile_pad_frac",
        "narrow_values",
        "sustained_frac",
    )
)
_EXPERTS = (
    "expert_memory_frac",
    "expert_compute_frac",
    "expert_narrow_values",
    "expert_sustained_frac",
    "expert_layer_s",
    "expert_overlap_frac",
)
# coefficients that are fitted as what they exceed 1 by
_ABOVE_ONE = ("roofline_power", "eight_bit_roofline_power")
_SMALLEST = 1e-13
_SMALLEST_EXCESS = 0.1


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


@dataclass(frozen=True, slots=True)
class _Stage:
    """Coefficients that some of the samples tell, once those of the stages before are known."""

    names: tuple[str, ...]
    is_told_by: Callable[[IterationSamples], bool]


def _stages(sets: Sequence[IterationSamples]) -> list[_Stage]:
    """What to fit on which sets: dense 16-bit models first, then 8 bits, then experts."""
    names: tuple[str, ...] = _DENSE
    if any(entry.is_mixed_measured for entry in sets):
        names += ("mixed_tile_rows",)
    if any(entry.has_engine for entry in sets):
        names += ("engine_step_s", "engine_request_s")
    stages = [
        _Stage(names, _is_plain),
        _Stage(_EIGHT_BIT, lambda entry: not entry.model.is_moe and not _is_plain(entry)),
        _Stage(_EXPERTS, lambda entry: entry.model.is_moe),
    ]
    told = [stage for stage in stages if any(map(stage.is_told_by, sets))]
    if told[0] is stages[0]:
        return told
    # Without a plain model everything has to be told by what there is.
    names += tuple(name for stage in told for name in stage.names)
    return [_Stage(names, lambda _: True)]


def _is_plain(samples: IterationSamples) -> bool:
    """Whether the samples are of a dense model in 16 bits."""
    return not samples.model.is_moe and samples.precision.bytes_per_value > 1


def fit(
    sets: Sequence[IterationSamples],
    gpu: Gpu,
    start: Calibration,
    *,
    prior_weight: float = _PRIOR_WEIGHT,
    on_round: Callable[[], None] | None = None,
) -> Calibration:
    """The calibration nearest to the samples; transfer tables are kept from `start`.

    Raises: `ValueError` without samples.
    """
    if not sets or not sum(len(entry.times_s) for entry in sets):
        msg = "fit needs at least one measured iteration, got none"
        raise ValueError(msg)
    fitted = replace(start, errors=())
    for stage in _stages(sets):
        chosen = [entry for entry in sets if stage.is_told_by(entry)]
        fitted = _fit_stage(chosen, gpu, fitted, stage.names, prior_weight, on_round)
    return fitted


class _Problem:
    """Least squares of some coefficients on some sets, residuals set by set."""

    def __init__(
        self,
        sets: Sequence[IterationSamples],
        gpu: Gpu,
        start: Calibration,
        names: tuple[str, ...],
        prior_weight: float,
    ) -> None:
        self.sets, self.gpu, self.start, self.names = sets, gpu, start, names
        self.origin = _encoded(start.efficiency, names)
        self.prior_weight = prior_weight * np.sqrt(len(sets))

    def calibration(self, point: Array) -> Calibration:
        """The calibration of a point."""
        return replace(self.start, efficiency=_decoded(self.start.efficiency, self.names, point))

    def residuals(self, point: Array) -> list[Array]:
        """Errors of each set, then the distance from the start."""
        calibration = self.calibration(point)
        rows = [_residuals(entry, self.gpu, calibration) for entry in self.sets]
        return [*rows, self.prior_weight * (point - self.origin)]

    def linearised(self, point: Array) -> tuple[list[Array], list[Array]]:
        """Errors and their derivatives, [S] and [S, P] for each set and the prior."""
        errors = self.residuals(point)
        columns = [
            [
                (moved - error) / _STEP
                for moved, error in zip(self.residuals(point + _STEP * axis), errors, strict=True)
            ]
            for axis in np.eye(point.size)
        ]
        blocks = [np.stack(block, axis=1) for block in zip(*columns, strict=True)]
        return errors, blocks


def _fit_stage(
    sets: Sequence[IterationSamples],
    gpu: Gpu,
    start: Calibration,
    names: tuple[str, ...],
    prior_weight: float,
    on_round: Callable[[], None] | None,
) -> Calibration:
    """Fit some coefficients on some samples."""
    problem = _Problem(sets, gpu, start, names, prior_weight)
    return problem.calibration(_least_squares(problem, problem.origin, _MAX_ROUNDS, on_round))


def _encoded(efficiency: Efficiency, names: Iterable[str]) -> Array:
    """Logarithms of coefficients, of those above 1 as what they exceed it by."""
    values = [
        max(getattr(efficiency, name) - 1.0, _SMALLEST_EXCESS)
        if name in _ABOVE_ONE
        else max(getattr(efficiency, name), 1.0 if name == "mixed_tile_rows" else _SMALLEST)
        for name in names
    ]
    return np.asarray(np.log(values))


def _decoded(base: Efficiency, names: Sequence[str], point: Array) -> Efficiency:
    """Efficiency with the coefficients of a point, shares kept within their bounds."""
    values = {}
    for name, value in zip(names, np.exp(point), strict=True):
        bounded = float(value) + (name in _ABOVE_ONE)
        is_share = name.endswith(("memory_frac", "compute_frac", "activation_frac", "kv_frac"))
        values[name] = min(bounded, 1.5) if is_share or name == "attention_frac" else bounded
        if name == "expert_overlap_frac":
            values[name] = min(bounded, 0.9)
    return replace(base, **values)


def _robust(error: Array) -> Array:
    """Square root of the pseudo-Huber loss, with the error's sign."""
    scaled = error / _ROBUST_SCALE
    return np.sign(error) * _ROBUST_SCALE * np.sqrt(2.0 * (np.sqrt(1.0 + scaled**2) - 1.0))


def _residuals(samples: IterationSamples, gpu: Gpu, calibration: Calibration) -> Array:
    """Weighted errors of one set; its three phases count the same, however many samples each."""
    parts = predicted_parts_s(samples, gpu, calibration)
    counts = np.bincount(samples.phases, minlength=3)
    weights = 1.0 / np.sqrt(counts[samples.phases])
    rows = [weights * _robust(np.log(parts.sum(axis=1) / samples.times_s))]
    known = np.isfinite(samples.parts_s[:, :3])
    relative = (parts[:, :3] - samples.parts_s[:, :3]) / samples.times_s[:, None]
    part_errors = _PART_WEIGHT * weights[:, None] * _robust(np.where(known, relative, 0.0))
    return np.concatenate([*rows, part_errors.ravel()])


def _least_squares(
    problem: _Problem,
    start: Array,
    max_rounds: int,
    on_round: Callable[[], None] | None = None,
) -> Array:
    """Point of the least sum of squares."""
    point, damping = start, 1e-2
    for _ in range(max_rounds):
        if on_round is not None:
            on_round()
        errors, blocks = problem.linearised(point)
        cost = sum(float(error @ error) for error in errors)
        for _ in range(8):
            trial = point + _move(errors, blocks, damping)
            trial_cost = sum(float(error @ error) for error in problem.residuals(trial))
            if trial_cost < cost:
                break
            damping *= 4.0
        else:
            return point
        point = trial
        damping = max(damping / 5.0, 1e-9)
        if (cost - trial_cost) / cost < _MIN_GAIN:
            return point
    return point


def _move(errors: Sequence[Array], blocks: Sequence[Array], damping: float) -> Array:
    """One damped Gauss-Newton step."""
    curvature = np.sum([block.T @ block for block in blocks], axis=0)
    gradient = np.sum(
        [block.T @ error for block, error in zip(blocks, errors, strict=True)], axis=0
    )
    scale = np.diag(np.diag(curvature) + 1e-9)
    move = -np.linalg.solve(curvature + damping * scale, gradient)
    return np.asarray(np.clip(move, -1.0, 1.0))


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


def left_out_errors(
    sets: Sequence[IterationSamples],
    gpu: Gpu,
    fitted: Calibration,
    on_set: Callable[[], None] | None = None,
) -> list[FitErrors]:
    """Errors of every set under a fit that did not see it; the fit of all is the start.

    Only the coefficients that the set would tell are fitted anew. A set that alone tells them is
    left out of the table.
    """
    rows = []
    for stage in _stages(sets):
        told = [entry for entry in sets if stage.is_told_by(entry)]
        if len(told) < 2:
            continue
        whole = _Problem(told, gpu, fitted, stage.names, _PRIOR_WEIGHT)
        errors, blocks = whole.linearised(whole.origin)
        for i, samples in enumerate(told):
            # one step on the derivatives of all leads most of the way
            kept = [j for j in range(len(errors)) if j != i]
            move = _move([errors[j] for j in kept], [blocks[j] for j in kept], 1e-6)
            problem = _Problem(without(told, samples), gpu, fitted, stage.names, _PRIOR_WEIGHT)
            point = _least_squares(problem, whole.origin + move, _LEFT_OUT_ROUNDS)
            partial = problem.calibration(point)
            rows.append(prediction_errors(samples, gpu, partial, is_left_out=True))
            if on_set is not None:
                on_set()
    return rows


_POOLS: dict[str, Callable[[IterationSamples], bool]] = {
    "dense": _is_plain,
    "8-bit": lambda entry: not entry.model.is_moe and not _is_plain(entry),
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


def calibrated(
    sets: Sequence[IterationSamples],
    gpu: Gpu,
    start: Calibration,
    on_step: Callable[[], None] | None = None,
) -> Calibration:
    """Fit a calibration and put its error table beside the coefficients."""
    prior_weight = _RUN_PRIOR_WEIGHT if any(entry.has_engine for entry in sets) else _PRIOR_WEIGHT
    fitted = fit(sets, gpu, start, prior_weight=prior_weight, on_round=on_step)
    errors = [prediction_errors(entry, gpu, fitted, is_left_out=False) for entry in sets]
    errors += left_out_errors(sets, gpu, fitted, on_step)
    return replace(fitted, errors=tuple(error_rows(errors)))


def with_run_prior(gpu: Gpu, run_name: str) -> Calibration:
    """What is known of a GPU before a recorded run, as the start of a fit to that run."""
    known = calibration_of(gpu)
    return replace(known, sources=(*known.sources, f"refitted on the recorded run {run_name}"))
