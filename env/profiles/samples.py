"""Measured iterations of one model on some GPUs.

Does not know: where they were measured, or what predicts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..hardware import Precision
from ..model_shape import ModelProfile

BATCH_COLUMNS = (
    "prefill_tokens",
    "position_tokens",
    "decode_seqs",
    "context_tokens",
    "window_position_tokens",
    "window_context_tokens",
)
PARTS = ("layers", "prefill_attention", "decode_attention", "rest")


class Phase(IntEnum):
    """What an iteration holds."""

    PREFILL = 0
    DECODE = 1
    MIXED = 2

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSamples:
    """Iterations of one (model, parallel degree, precision), with their measured times."""

    model: ModelProfile
    """What ran."""
    tensor_parallel: int
    """GPUs that shared each layer."""
    precision: Precision
    """Format of the weights."""
    batches: NDArray[np.float64]
    """[S, 6], columns as in `BATCH_COLUMNS`."""
    times_s: NDArray[np.float64]
    """[S], measured."""
    parts_s: NDArray[np.float64]
    """[S, 4], measured times of `PARTS`; NaN where only the whole is known."""
    has_engine: bool = False
    """Whether the times hold the engine's own overhead and sampling."""
    has_communication: bool = True
    """Whether the times hold transfers between the GPUs."""
    is_mixed_measured: bool = False
    """Whether mixed batches were run as such, not composed of a prefill and a decode."""

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.model.name} TP{self.tensor_parallel} {self.precision.value}"

    @property
    def phases(self) -> NDArray[np.int64]:
        """[S], values of `Phase`."""
        has_prefill, has_decode = self.batches[:, 0] > 0, self.batches[:, 2] > 0
        phases = np.where(has_prefill, np.where(has_decode, 2, 0), 1)
        return np.asarray(phases, dtype=np.int64)


@dataclass(slots=True)
class BatchList:
    """Batches to measure, by kind of token."""

    window_tokens: int | None
    """Attention window of the model's windowed layers."""
    rows: list[tuple[float, ...]]
    """Number of equal prompts, tokens of each, decoding sequences, context of each."""

    @classmethod
    def of(cls, window_tokens: int | None) -> "BatchList":
        """An empty list."""
        return cls(window_tokens, [])

    def add(self, prompts: int, prompt_tokens: int, seqs: int, seq_tokens: int) -> None:
        """Add one iteration."""
        self.rows.append((prompts, prompt_tokens, seqs, seq_tokens))

    def table(self) -> NDArray[np.float64]:
        """[S, 4], as added."""
        return np.array(self.rows, dtype=np.float64).reshape(-1, 4)

    def batches(self) -> NDArray[np.float64]:
        """[S, 6], columns as in `BATCH_COLUMNS`."""
        prompts, prompt_tokens, seqs, seq_tokens = self.table().T
        return batch_columns(prompts, prompt_tokens, seqs, seqs * seq_tokens, self.window_tokens)


def batch_columns(
    prompts: NDArray[np.float64],
    prompt_tokens: NDArray[np.float64],
    seqs: NDArray[np.float64],
    context_tokens: NDArray[np.float64],
    window_tokens: int | None = None,
) -> NDArray[np.float64]:
    """Columns of `BATCH_COLUMNS` for equal prompts from their start, and equal contexts."""
    # without windowed layers the last two columns cost nothing, whatever they hold
    window = float(window_tokens or 0)
    reached = np.minimum(prompt_tokens, window)
    window_positions = reached * (reached + 1) / 2 + (prompt_tokens - reached) * window
    columns = [
        prompts * prompt_tokens,
        prompts * prompt_tokens * (prompt_tokens + 1) / 2,
        seqs,
        context_tokens,
        prompts * window_positions,
        np.minimum(context_tokens, seqs * window),
    ]
    return np.stack(columns, axis=1)


def without(
    samples: Sequence[IterationSamples], left_out: IterationSamples
) -> list[IterationSamples]:
    """All sets but one."""
    return [entry for entry in samples if entry is not left_out]
