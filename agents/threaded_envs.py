"""Vectorised environments stepped by threads: the compiled simulator runs without the GIL.

Results do not depend on the number of threads: each environment has its own random numbers.

Does not know: what the environments are.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class ThreadedVecEnv(DummyVecEnv):
    """SB3's `DummyVecEnv`, with the environments of a step run side by side."""

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        super().__init__(list(env_fns))
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count())

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment, and reset those whose episode ended."""
        infos = list(self._pool.map(self._step_one, range(self.num_envs)))
        self.buf_infos = infos
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), list(infos)

    def _step_one(self, index: int) -> dict[str, Any]:
        env = self.envs[index]
        observation, reward, is_terminated, is_truncated, info = env.step(self.actions[index])
        is_done = is_terminated or is_truncated
        # The name that SB3's algorithms look for.
        info["TimeLimit.truncated"] = is_truncated and not is_terminated
        if is_done:
            info["terminal_observation"] = observation
            observation, self.reset_infos[index] = env.reset()
        self.buf_rews[index] = reward
        self.buf_dones[index] = is_done
        self._save_obs(index, observation)
        return info

    def close(self) -> None:
        """Stop the threads and close the environments."""
        self._pool.shutdown()
        super().close()
