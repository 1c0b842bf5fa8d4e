"""The vector environment: n single environments, bit for bit, in Gymnasium's vector form."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from trimtab.env.observation import ObservationLayout
from trimtab.env.reward import ScenarioTasks
from trimtab.env.scenario import TROUBLED, Part, Scenario, scenario_from_trace
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.env.vector_env import FleetVectorEnv
from trimtab.traces.synthetic import SyntheticConfig, generate

NUM_ENVS = 5
NUM_WINDOWS = 6
LAYOUT = ObservationLayout(max_replicas=5, max_gpus=5, max_servers=4)
EPISODE = EpisodeConfig(num_windows=NUM_WINDOWS)


@pytest.fixture(scope="module")
def scenario(make_cluster) -> Scenario:
    trace = generate(SyntheticConfig(num_requests=4000, rate_rps=10.0, seed=0, block_tokens=128))
    return scenario_from_trace(
        trace,
        name="small",
        cluster=make_cluster(["A100-80G", "A100-80G", "H100-80G", "L40S-48G"]),
        config=TROUBLED,
        load_frac=0.9,
        span_s=2.0 * NUM_WINDOWS,
    )


@pytest.fixture
def make_vector_env(scenario) -> Callable[..., FleetVectorEnv]:
    def make(num_envs: int = NUM_ENVS, **changes: Any) -> FleetVectorEnv:
        tasks = ScenarioTasks(scenario, Part.TRAIN, num_workloads=3)
        arguments = {"tasks": tasks, "episode": EPISODE, "layout": LAYOUT, **changes}
        return FleetVectorEnv(num_envs, **arguments)

    return make


@pytest.fixture
def make_single_envs(scenario) -> Callable[[], SyncVectorEnv]:
    def make() -> SyncVectorEnv:
        tasks = ScenarioTasks(scenario, Part.TRAIN, num_workloads=3)
        return SyncVectorEnv(
            [lambda: ShortTermEnv(tasks=tasks, episode=EPISODE, layout=LAYOUT)] * NUM_ENVS,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )

    return make


def assert_equal(one: Any, other: Any, path: str = "") -> None:
    """Equal in type, shape and every bit, through dicts."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, path
        np.testing.assert_array_equal(one, other, err_msg=path)
    else:
        assert one == other, path


@pytest.mark.parametrize("num_workers", [1, 3])
def test_steps_are_those_of_single_environments(make_vector_env, make_single_envs, num_workers):
    """Observations, rewards, ends and infos over three episodes, whatever the threads."""
    vector, single = make_vector_env(num_workers=num_workers), make_single_envs()
    assert_equal(*(envs.reset(seed=7) for envs in (vector, single)))
    rng = np.random.default_rng(0)
    num_ended, rewards = 0, []
    for _ in range(3 * NUM_WINDOWS):
        actions = rng.uniform(-1.3, 1.3, vector.action_space.shape).astype(np.float32)
        steps = vector.step(actions)
        assert_equal(steps, single.step(actions))
        num_ended += int(steps[3].sum())
        rewards.append(steps[1])
    assert num_ended == 3 * NUM_ENVS
    assert np.count_nonzero(rewards) > NUM_ENVS
    vector.close()


def test_spaces_are_batched_and_hold_what_comes(make_vector_env):
    vector = make_vector_env()
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector.action_space.shape == (NUM_ENVS, *vector.single_action_space.shape)
    observation, infos = vector.reset(seed=0)
    assert infos == {}
    assert observation in vector.observation_space
    observation, rewards, is_terminated, is_truncated, infos = vector.step(
        np.zeros(vector.action_space.shape, np.float32)
    )
    assert observation in vector.observation_space
    assert rewards.tolist() == [0.0] * NUM_ENVS  # action 0 is the base itself
    assert not is_terminated.any()
    assert not is_truncated.any()
    assert infos["_outcome"].all()
    vector.close()


def test_rows_belong_to_the_caller(make_vector_env):
    vector = make_vector_env(2)
    first, _ = vector.reset(seed=0)
    kept = {key: rows.copy() for key, rows in first.items()}
    vector.step(np.ones(vector.action_space.shape, np.float32))
    assert_equal(first, kept)
    vector.close()


def test_is_made_by_gymnasium(scenario):
    tasks = ScenarioTasks(scenario, Part.TRAIN, num_workloads=1)
    vector = gymnasium.make_vec(
        "trimtab/ShortTerm-v0", 2, "vector_entry_point", tasks=tasks, layout=LAYOUT
    )
    assert isinstance(vector.unwrapped, FleetVectorEnv)
    vector.reset(seed=[3, None])
    vector.close()


def test_errors(make_vector_env):
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make_vector_env(0)
    vector = make_vector_env(2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        vector.step(np.zeros(vector.action_space.shape, np.float32))
    with pytest.raises(ValueError, match="one entry for each of 2 envs, got 3"):
        vector.reset(seed=[1, 2, 3])
    vector.close()


def test_live_fleets_are_refused(scenario):
    class LiveTasks:
        def draw(self, *args: Any, **kwargs: Any) -> Any:
            task = ScenarioTasks(scenario, Part.TRAIN, num_workloads=1).draw(*args, **kwargs)
            return type("LiveTask", (), {"fleet": object(), "twin": task.twin, "seed": 0})

    vector = FleetVectorEnv(1, tasks=LiveTasks(), episode=EPISODE, layout=LAYOUT)
    with pytest.raises(TypeError, match="got a object; use one ShortTermEnv for a live fleet"):
        vector.reset(seed=0)
    vector.close()
