"""Rewards of a rollout by window of arrival, and advantages on one scale for every regime.

A rollout is whole episodes, so each window's reward is known when it ends: what the requests that
arrived in it earned more than under the twin. Advantages may be brought to mean 0 and deviation 1
in each kind of regime by itself, as overload would else drown all others.

Does not know: the algorithm's network, or environments.
"""

from collections.abc import Iterable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

# Below this deviation a regime has nothing to learn from, and is left as it is.
_LEAST_DEVIATION = 1e-6


class Normalised(StrEnum):
    """Over what advantages are brought to one scale."""

    MINIBATCH = "minibatch"  # by the algorithm itself
    POOLED = "pooled"  # over a rollout
    REGIME = "regime"  # over a rollout, each kind of regime by itself


class ArrivalRewards(BaseCallback):
    """Replaces a rollout's rewards by those of the window in which each request arrived.

    Where regimes have kinds, `normalised` says how advantages are scaled; the algorithm must not
    do it too, unless that is `MINIBATCH`.
    """

    def __init__(self, normalised: Normalised = Normalised.MINIBATCH) -> None:
        super().__init__()
        self._normalised = normalised
        self._by_env: list[list[np.ndarray]] = []
        self._regimes: list[list[int]] = []

    def _on_rollout_start(self) -> None:
        self._by_env = [[] for _ in range(self.training_env.num_envs)]
        self._regimes = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for rewards, info in zip(self._by_env, infos, strict=True):
            if "arrival_reward" in info:
                rewards.append(info["arrival_reward"])
        self._regimes.append([info.get("regime", 0) for info in infos])
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        buffer.rewards[:] = np.stack([np.concatenate(r) for r in self._by_env], axis=1)
        buffer.compute_returns_and_advantage(
            last_values=self.locals["values"], dones=self.locals["dones"]
        )
        self.logger.record("rollout/reward_per_window", float(buffer.rewards.mean()))
        if self._normalised is Normalised.MINIBATCH:
            return
        regimes = np.array(self._regimes)
        kinds = np.unique(regimes) if self._normalised is Normalised.REGIME else [None]
        normalise(buffer.advantages, regimes, kinds)


def normalise(
    advantages: NDArray[np.float32], regimes: NDArray[np.int64], kinds: Iterable[int | None]
) -> None:
    """Bring advantages to mean 0 and deviation 1 in each kind, in place; None is all of them.

    Shapes: `advantages` and `regimes` alike.
    """
    for kind in kinds:
        chosen = regimes == kind if kind is not None else np.ones(regimes.shape, np.bool_)
        own = advantages[chosen]
        deviation = float(own.std())
        if deviation > _LEAST_DEVIATION:
            advantages[chosen] = (own - own.mean()) / deviation
