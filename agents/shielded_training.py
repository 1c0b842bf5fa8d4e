"""The shield in training: what stands between a policy that explores and its fleets, and its log.

The policy learns on what the shield lets through. It has no fallback here, as a policy that is
replaced learns nothing; breakers are left out, as looking at the whole state every 100 ms of
simulated time would take longer than all else.

Does not know: the algorithm.
"""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from ..env.guard import Guard, GuardReport
from .shield.projection import KnobLimits
from .shield.shield import ShieldConfig
from .shield.simulated_shield import SimulatedShield

TICK_S = 0.02
"""Time between two looks of the response controller in training: the longest that it may take."""


def training_guard() -> Guard:
    """Return a shield for one fleet."""
    return SimulatedShield(ShieldConfig(limits=KnobLimits(), tick_s=TICK_S))


class ShieldLog(BaseCallback):
    """Logs how often and how far the shield changed what the policy set, and what it did itself."""

    def __init__(self) -> None:
        super().__init__()
        self._reports: list[GuardReport] = []

    def _on_step(self) -> bool:
        self._reports += [info["outcome"]["guard"] for info in self.locals["infos"]]
        return True

    def _on_rollout_end(self) -> None:
        sizes = np.array([report.override_size for report in self._reports])
        values = {
            "override_rate": np.mean([report.is_overridden for report in self._reports]),
            "override_size": sizes[sizes > 0].mean() if sizes.any() else 0.0,
            "max_override_size": sizes.max(),
            "actions_per_window": np.mean([report.num_actions for report in self._reports]),
            "skipped_per_window": np.mean([report.num_skipped for report in self._reports]),
            "barred_frac": np.mean([report.barred_frac for report in self._reports]),
        }
        for name, value in values.items():
            self.logger.record(f"shield/{name}", float(value))
        self._reports = []
