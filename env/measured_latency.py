"""Iteration times of a replica as they were measured, where no roofline of its hardware is known.

An iteration takes a fixed time, and so much for each token that is computed, each sequence that
decodes, and each token of context that is read. That is the roofline's form with its parts added
up, and it fits engines on CPUs and engines without a model, whose times are about linear.

Does not know: how times were measured (`runtime/fidelity`), or the roofline (`roofline.py`).
"""

from dataclasses import dataclass, fields

import numpy as np

from .latency import LATENCY_DTYPE

# In place of 0 where a logarithm is taken, s.
_NOTHING_S = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLatency:
    """Times of a replica.

    Raises:
        ValueError: a time is negative or not finite, or an iteration would take none.
    """

    step_s: float
    """Fixed time of an iteration."""
    token_s: float
    """Each prompt token, and each sequence that decodes."""
    sequence_s: float = 0.0
    """Each sequence that decodes, beyond its token."""
    context_s: float = 0.0
    """Each token of context of a decoding sequence."""
    attention_s: float = 0.0
    """Each pair of a prompt token and one before it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < np.inf:
                msg = f"{field.name} must be at least 0 and finite, got {value}"
                raise ValueError(msg)
        if not self.step_s + self.token_s > 0.0:
            msg = "step_s or token_s must be above 0: no iteration takes no time"
            raise ValueError(msg)

    def coefficients(self) -> np.ndarray:
        """Return the times in the simulator's form, LATENCY_DTYPE [1]."""
        record = np.zeros(1, LATENCY_DTYPE)
        record["step_s"] = self.step_s
        record["activation_token_s"] = self.token_s
        record["request_s"] = self.sequence_s
        record["decode_context_s"] = self.context_s
        record["prefill_attention_s"] = self.attention_s
        record["communication_s"] = _NOTHING_S
        for name in (
            *("expert_miss_frac", "roofline_power", "mixed_context_factor", "tile_tokens"),
            *("micro_batches", "speculative_input_tokens", "speculative_output_tokens"),
        ):
            record[name] = 1.0
        return record
