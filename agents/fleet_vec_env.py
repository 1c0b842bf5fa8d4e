"""Stable-Baselines3's `VecEnv` over fleets that advance in one call.

Does not know: what an algorithm does with it.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from ..env.observation import Observation
from ..env.short_term_env import ShortTermEnv
from ..env.vector_env import FleetVectorEnv


class FleetVecEnv(VecEnv):
    """The steps of a `FleetVectorEnv` in the form that SB3's algorithms read."""

    def __init__(self, envs: FleetVectorEnv) -> None:
        self._envs = envs
        self._actions = np.zeros(envs.action_space.shape or (), np.float32)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = envs.metadata

    def reset(self) -> Observation:
        """Begin an episode in every environment, with the seeds of the last call to `seed`."""
        observation, _ = self._envs.reset(seed=self._seeds)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Note the actions of a step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Play the step; an environment whose episode ended is in its next one."""
        steps = self._envs.step_all(self._actions)
        for i, info in enumerate(steps.infos):
            # The names that SB3's algorithms look for.
            info["TimeLimit.truncated"] = bool(steps.is_last[i])
            if steps.is_last[i]:
                info["terminal_observation"] = steps.final_observations[i]
                self.reset_infos[i] = steps.reset_infos[i]
        return steps.observation, steps.rewards.astype(np.float32), steps.is_last, steps.infos

    def close(self) -> None:
        """Stop the threads and close the environments."""
        self._envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each environment."""
        return [env.get_wrapper_attr(attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment."""
        for env in self._chosen(indices):
            setattr(env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment and return the results."""
        return [
            env.get_wrapper_attr(method_name)(*method_args, **kwargs)
            for env in self._chosen(indices)
        ]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """Whether each environment is wrapped in a class."""
        return [is_wrapped(env, wrapper_class) for env in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> list[ShortTermEnv]:
        chosen: Iterable[int] = self._get_indices(indices)
        return [self._envs.envs[i] for i in chosen]
