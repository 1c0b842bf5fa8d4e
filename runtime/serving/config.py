"""What `trimtab serve` is told.

Does not know: what is done with it (`server.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from ...agents.shield.move_projection import MoveLimits
from ..gateway.config import GatewayConfig
from .planner import PLANNERS
from .promotion_rule import PromotionRule, parse_promotion_rule

_SPANS = (
    *("window_s", "tick_s", "look_s", "plan_s", "drain_s", "default_ttft_s", "default_tpot_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One gateway in front of one fleet.

    Raises:
        ValueError: a span is not above 0, or a shadow is asked for without a bundle.
    """

    fleet_path: Path
    """Live fleet file."""
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    admin_host: str = "127.0.0.1"
    admin_port: int = 0
    """Port of the admin API; 0 lets the system choose."""
    token: str | None = None
    """Token of the admin API; None makes one."""
    scheduler: str | None = None
    """Heuristic that rules without a policy, while it is in shadow, and when it is in doubt; None:
    the fallback of the rules, else the analytic scorer."""
    knobs_path: Path | None = None
    """Tuned knobs that take the scheduler's place."""
    bundle_path: Path | None = None
    """Policy that steers; None for the scheduler alone."""
    rules_path: Path | None = None
    """Policy file: tenants, breakers, limits, fallback."""
    keys_path: Path | None = None
    """File of API keys; None lets everybody in."""
    models_dir: Path | None = None
    """Store of model profiles that the admin port takes uploads for; None for no uploads."""
    record_dir: Path | None = None
    """Where requests are recorded as a trace; None for nowhere."""
    decisions_dir: Path | None = None
    """Where decisions are logged; None for nowhere."""
    spans_url: str | None = None
    """OTLP collector that gets a span of each request, as `http://host:4318/v1/traces`."""
    decision_every: int = 16
    """Every n-th decision is logged in full."""
    shadow_first_s: float | None = None
    """Time that a policy spends in shadow before it may serve; None: it serves at once."""
    promote: PromotionRule = field(
        default_factory=lambda: parse_promotion_rule("gain > 0 and doubts < 0.05")
    )
    """What it must show there."""
    planner: str = "hold"
    """Who moves capacity, of `PLANNERS`."""
    move_limits: MoveLimits = field(default_factory=MoveLimits)
    """Bounds of the planner's moves."""
    tokenizer_path: Path | None = None
    """A `tokenizer.json` by which prompts are counted, and KV events understood; None estimates."""
    state_dir: Path | None = None
    """Where sockets, the token and what was learned are kept; None for a temporary place."""
    has_observer: bool = True
    """Whether a process beside reads the engines' pages."""
    window_s: float = 2.0
    tick_s: float = 0.01
    look_s: float = 0.1
    plan_s: float = 60.0
    drain_s: float = 30.0
    """Longest time that open requests may take when the gateway ends."""
    default_ttft_s: float = 2.0
    """Limit on time to first token of requests that name none, and whose tenant has none."""
    default_tpot_s: float = 0.2
    """The same on time per output token."""

    def __post_init__(self) -> None:
        for name in _SPANS:
            if not getattr(self, name) > 0:
                msg = f"{name} must be above 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.shadow_first_s is not None and not self.shadow_first_s > 0:
            msg = f"shadow_first_s must be above 0, got {self.shadow_first_s}"
            raise ValueError(msg)
        if self.shadow_first_s is not None and self.bundle_path is None:
            msg = "shadow_first_s needs a bundle_path: without a policy nothing can be in shadow"
            raise ValueError(msg)
        if self.planner not in PLANNERS:
            msg = f"planner must be one of {', '.join(PLANNERS)}, got '{self.planner}'"
            raise ValueError(msg)
        if self.decision_every < 1:
            msg = f"decision_every must be at least 1, got {self.decision_every}"
            raise ValueError(msg)
