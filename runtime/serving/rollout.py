"""From shadow to service: when a policy that decided beside another may take its place.

In shadow the policy's choices are only made on paper; each window brings an estimate of how much
better they would have done. When the time is over, it is promoted if even the lower bound of the
mean is above what is asked for, and if it was in doubt seldom enough. Demotion is the fallback's.

Does not know: how a gain is estimated (`env/shadow.py`), or who serves meanwhile.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from ...traces.errors import ConfigError

# Windows that are drawn together: neighbours in time are not independent.
_BLOCK_WINDOWS = 5
_NUM_DRAWS = 2000
_CONDITION = re.compile(r"^(gain|doubts|overrides)\s*(>|<)\s*(-?\d+(?:\.\d+)?)$")


class Phase(StrEnum):
    """Where a policy stands."""

    SHADOW = "shadow"
    PROMOTED = "promoted"
    HELD = "held"
    """Its time in shadow is over, and it was not good enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteRule:
    """What a policy must show in shadow."""

    least_gain: float = 0.0
    """The lower bound of its gain must be above this; share of the requests' weight."""
    most_doubts_frac: float = 0.05
    """Share of windows in which its proposal was in doubt must be below this."""
    most_overrides_frac: float = 1.0
    """Share of windows in which the shield moved its proposal must be below this."""


def parse_rule(text: str) -> PromoteRule:
    """Read a rule such as `gain > 0.01 and doubts < 0.05`.

    Raises: `ConfigError` for anything else.
    """
    found: dict[str, float] = {}
    for part in text.split(" and "):
        match = _CONDITION.match(part.strip())
        if match is None or (match[1] == "gain") != (match[2] == ">"):
            msg = (
                f"promote rule '{text}': cannot read '{part.strip()}'; expected conditions joined "
                "by 'and': gain > NUMBER, doubts < SHARE, overrides < SHARE"
            )
            raise ConfigError(msg)
        found[match[1]] = float(match[3])
    default = PromoteRule()
    return PromoteRule(
        least_gain=found.get("gain", default.least_gain),
        most_doubts_frac=found.get("doubts", default.most_doubts_frac),
        most_overrides_frac=found.get("overrides", default.most_overrides_frac),
    )


@dataclass(slots=True)
class Rollout:
    """One policy on its way from shadow to service."""

    rule: PromoteRule
    shadow_s: float
    """Time that it has to spend in shadow."""
    begun_at_s: float
    phase: Phase = Phase.SHADOW
    gains: list[float] = field(default_factory=list)
    """Mean gain of each window in which something was compared."""
    num_windows: int = 0
    num_doubts: int = 0
    num_overrides: int = 0
    verdict: str = ""
    """Why it was promoted or held, in words."""

    def note(self, gain: float | None, *, is_doubtful: bool, is_overridden: bool) -> None:
        """Take in a window; `gain` is None where nothing was compared."""
        self.num_windows += 1
        self.num_doubts += is_doubtful
        self.num_overrides += is_overridden
        if gain is not None:
            self.gains.append(gain)

    def bounds(self, seed: int = 0) -> tuple[float, float, float]:
        """Return lower bound, mean and upper bound of the gain; 95 %, by bootstrap over blocks."""
        if not self.gains:
            return -np.inf, 0.0, np.inf
        gains = np.array(self.gains)
        num_blocks = max(1, -(-gains.size // _BLOCK_WINDOWS))
        blocks = [block.mean() for block in np.array_split(gains, num_blocks)]
        if len(blocks) < 2:
            return -np.inf, float(gains.mean()), np.inf
        rng = np.random.default_rng(seed)
        draws = rng.choice(np.array(blocks), (_NUM_DRAWS, len(blocks))).mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(low), float(gains.mean()), float(high)

    def judge(self, now_s: float) -> Phase:
        """Decide if the time in shadow is over; return where the policy stands."""
        if self.phase is not Phase.SHADOW or now_s - self.begun_at_s < self.shadow_s:
            return self.phase
        low, mean, high = self.bounds()
        doubts = self.num_doubts / max(1, self.num_windows)
        overrides = self.num_overrides / max(1, self.num_windows)
        faults = []
        if not low > self.rule.least_gain:
            faults.append(f"the lower bound of its gain is not above {self.rule.least_gain:+.3f}")
        if not doubts < self.rule.most_doubts_frac:
            faults.append(f"doubts in {doubts:.0%} of windows")
        if not overrides < self.rule.most_overrides_frac:
            faults.append(f"overrides in {overrides:.0%} of windows")
        gain = f"gain {mean:+.3f} [{low:+.3f}, {high:+.3f}] over {len(self.gains)} windows"
        self.phase = Phase.HELD if faults else Phase.PROMOTED
        self.verdict = f"{self.phase}: {gain}" + (f"; {'; '.join(faults)}" if faults else "")
        return self.phase
