"""The SB3 face of the vector environment: what `DummyVecEnv` gives, from fleets in one call."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from trimtab.agents.fleet_vec_env import FleetVecEnv
from trimtab.agents.training import layout_for
from trimtab.env.reward import ScenarioTasks
from trimtab.env.scenario import Part
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.env.vector_env import FleetVectorEnv

NUM_ENVS = 4
EPISODE = EpisodeConfig(num_windows=5)


@pytest.fixture
def arguments(scenario) -> dict:
    return {
        "tasks": ScenarioTasks(scenario, Part.TRAIN, num_workloads=3),
        "episode": EPISODE,
        "layout": layout_for(scenario),
    }


@pytest.fixture
def fleet_env(arguments) -> FleetVecEnv:
    return FleetVecEnv(FleetVectorEnv(NUM_ENVS, **arguments))


def test_steps_are_those_of_dummy_vec_env(fleet_env, arguments):
    dummy = DummyVecEnv([lambda: ShortTermEnv(**arguments)] * NUM_ENVS)
    seeds = [env.seed(11) for env in (fleet_env, dummy)]
    assert seeds[0] == seeds[1] == [11, 12, 13, 14]
    first, second = fleet_env.reset(), dummy.reset()
    rng = np.random.default_rng(0)
    for _ in range(12):
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
        actions = rng.uniform(-1, 1, (NUM_ENVS, *dummy.action_space.shape)).astype(np.float32)
        (first, *own), (second, *other) = fleet_env.step(actions), dummy.step(actions)
        for a, b in zip(own[:2], other[:2], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        for a, b in zip(own[2], other[2], strict=True):
            assert a.keys() == b.keys()
            assert a["TimeLimit.truncated"] == b["TimeLimit.truncated"]
            assert a["outcome"] == b["outcome"]
            for key in a.get("terminal_observation", {}):
                last = a["terminal_observation"][key], b["terminal_observation"][key]
                np.testing.assert_array_equal(*last, err_msg=key)
    fleet_env.close()


def test_every_end_is_a_truncation_with_its_last_observation(fleet_env):
    fleet_env.reset()
    actions = np.zeros((NUM_ENVS, *fleet_env.action_space.shape), np.float32)
    for _ in range(EPISODE.num_windows):
        observation, _, is_done, infos = fleet_env.step(actions)
    assert is_done.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["arrival_reward"].shape == (EPISODE.num_windows,)
        assert np.any(info["terminal_observation"]["replica"] != observation["replica"][i])
    fleet_env.close()


def test_attributes_and_methods_reach_the_environments(fleet_env):
    assert fleet_env.get_attr("episode") == [EPISODE] * NUM_ENVS
    fleet_env.set_attr("label", "x", indices=[1, 2])
    assert fleet_env.get_attr("label", indices=[1]) == ["x"]
    assert fleet_env.has_attr("label") is False
    states = fleet_env.env_method("reset", seed=3, indices=0)
    assert len(states) == 1
    assert fleet_env.env_is_wrapped(gymnasium.Wrapper) == [False] * NUM_ENVS
    fleet_env.close()
