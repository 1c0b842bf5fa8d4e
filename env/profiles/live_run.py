"""Reader of a recorded live run: one line of CSV for each iteration that an engine ran.

Columns: `prefill_tokens`, `prefill_start_tokens` (tokens cached before the chunk; with several
prompts their mean weighted by chunk), `decode_seqs`, `decode_context_tokens` (sum over the
sequences), `time_s`. Lines that are slower than five times the median of their phase are left
out: a stall of the host, not an iteration.

Does not know: which engine wrote it.
"""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
from numpy.typing import NDArray

from ...traces.errors import ConfigError
from ..hardware import Precision, nearest_name
from ..model_shape import ModelProfile
from .samples import IterationSamples

COLUMNS = (
    "prefill_tokens",
    "prefill_start_tokens",
    "decode_seqs",
    "decode_context_tokens",
    "time_s",
)
_STALL_FACTOR = 5.0
_MIN_LINES = 20


def live_samples(
    path: Path, model: ModelProfile, tensor_parallel: int, precision: Precision
) -> IterationSamples:
    """The iterations of a recorded run.

    Raises: `ConfigError` for a file that is no such recording, naming line and column.
    """
    columns = _columns(path)
    chunk, start, seqs, context, times_s = (columns[name] for name in COLUMNS)
    _check(path, columns)
    positions = chunk * start + chunk * (chunk + 1) / 2
    zeros = np.zeros(times_s.size)
    samples = IterationSamples(
        model=model,
        tensor_parallel=tensor_parallel,
        precision=precision,
        batches=np.stack([chunk, positions, seqs, context, zeros, zeros], axis=1),
        times_s=times_s,
        parts_s=np.full((times_s.size, 4), np.nan),
        has_engine=True,
        is_mixed_measured=bool(np.any((chunk > 0) & (seqs > 0))),
    )
    return _without_stalls(samples)


def _columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """The known columns as numbers."""
    try:
        table = pyarrow.csv.read_csv(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        msg = f"recorded run '{path}' cannot be read as CSV: {error}"
        raise ConfigError(msg) from error
    for name in COLUMNS:
        if name not in table.column_names:
            nearest = nearest_name(name, table.column_names)
            hint = f"rename {nearest!r}?" if nearest else f"columns: {', '.join(COLUMNS)}"
            msg = f"recorded run '{path}' has no column {name!r}; {hint}"
            raise ConfigError(msg)
    try:
        return {
            name: table[name].cast("float64").to_numpy(zero_copy_only=False) for name in COLUMNS
        }
    except pyarrow.ArrowInvalid as error:
        msg = f"recorded run '{path}' holds text where a number belongs: {error}"
        raise ConfigError(msg) from error


def _check(path: Path, columns: dict[str, NDArray[np.float64]]) -> None:
    """Refuse lines that no iteration can have, and recordings too short to fit."""
    for name, values in columns.items():
        lowest_ok = values > 0 if name == "time_s" else values >= 0
        if not np.all(lowest_ok):
            index = int(np.flatnonzero(~lowest_ok)[0])
            bound = "above 0" if name == "time_s" else "at least 0"
            msg = f"recorded run '{path}' line {index + 2}: {name} must be {bound}, got "
            msg += f"{values[index]:g}"
            raise ConfigError(msg)
    work = columns["prefill_tokens"] + columns["decode_seqs"]
    if not np.all(work > 0):
        index = int(np.flatnonzero(work == 0)[0])
        msg = f"recorded run '{path}' line {index + 2}: an iteration without tokens; leave it out"
        raise ConfigError(msg)
    if work.size < _MIN_LINES:
        msg = f"recorded run '{path}' has {work.size} iterations; a fit needs at least {_MIN_LINES}"
        raise ConfigError(msg)


def _without_stalls(samples: IterationSamples) -> IterationSamples:
    """Leave out iterations that the host held up."""
    kept = np.ones(samples.times_s.size, dtype=np.bool_)
    for phase in np.unique(samples.phases):
        of_phase = samples.phases == phase
        work = samples.batches[:, 0] + samples.batches[:, 2]
        # per-token time falls with the batch; the median of raw times is the safer yardstick
        limit_s = _STALL_FACTOR * np.median(samples.times_s[of_phase])
        kept &= ~(of_phase & (samples.times_s > limit_s) & (work <= np.median(work[of_phase])))
    return IterationSamples(
        model=samples.model,
        tensor_parallel=samples.tensor_parallel,
        precision=samples.precision,
        batches=samples.batches[kept],
        times_s=samples.times_s[kept],
        parts_s=samples.parts_s[kept],
        has_engine=True,
        is_mixed_measured=samples.is_mixed_measured,
    )
