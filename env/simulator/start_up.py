"""How long replicas take to start and wake, as settings of a fleet.

Does not know: links and weights (`lifecycle.py` loads them).
"""

from dataclasses import dataclass

from ..topology import WeightSource

# s from weights in place to ready at a wake, assumed: vLLM's sleep mode keeps the process, its
# compiled code and its CUDA graphs
DEFAULT_WAKE_INIT_S = 0.5
# s and factor of a slow start: first requests are 5-60 s slower (research section 6); vLLM of an
# 8B answers 25 s after it is initialised (issue 20264). The factor is assumed.
DEFAULT_SLOW_START_SPAN_S = 25.0
DEFAULT_SLOW_START_FACTOR = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUpConfig:
    """What a start consists of, beside the replica's own `engine_init_s`."""

    node_start_s: float = 0.0
    """Time until the node is there: 0 for a warm node, 60 to 300 for one from a cloud."""
    weight_source: WeightSource = WeightSource.DISK
    """Where weights are loaded from."""
    wake_init_s: float = DEFAULT_WAKE_INIT_S
    """Time from weights in place to ready, at a wake."""
    slow_start_factor: float = DEFAULT_SLOW_START_FACTOR
    """Slow-down of iterations just after a start; it fades in steps."""
    slow_start_span_s: float = DEFAULT_SLOW_START_SPAN_S
    """Time until a started replica is as fast as ever; 0 for no slow start."""
    is_restart_cold: bool = False
    """A crashed engine loads and initialises anew after its restart span, and is not ready at its
    end."""

    def __post_init__(self) -> None:
        for name in ("node_start_s", "wake_init_s", "slow_start_span_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.slow_start_factor >= 1:
            msg = f"slow_start_factor must be at least 1, got {self.slow_start_factor}"
            raise ValueError(msg)
