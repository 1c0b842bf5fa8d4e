"""The environment: conformance, determinism, and what its rewards add up to."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from trimtab.env.knobs import BIAS_SCALE, KNOB_INDEX, TUNABLE_KNOBS, Knobs
from trimtab.env.observation import ObservationLayout
from trimtab.env.reward import ScenarioTasks
from trimtab.env.scenario import TROUBLED, Part, scenario_from_trace
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.traces.synthetic import SyntheticConfig, generate

NUM_WINDOWS = 8
LAYOUT = ObservationLayout(max_replicas=5, max_gpus=5, max_servers=4)
BASE = Knobs.of(scorer_weight=1.0, shed_enabled=1.0)


@pytest.fixture(scope="module")
def tasks(make_cluster) -> ScenarioTasks:
    trace = generate(SyntheticConfig(num_requests=4000, rate_rps=10.0, seed=0, block_tokens=128))
    scenario = scenario_from_trace(
        trace,
        name="small",
        cluster=make_cluster(["A100-80G", "A100-80G", "H100-80G", "L40S-48G"]),
        config=TROUBLED,
        load_frac=0.9,
        span_s=2.0 * NUM_WINDOWS,
    )
    return ScenarioTasks(scenario, Part.TRAIN, num_workloads=3)


@pytest.fixture
def env(tasks) -> ShortTermEnv:
    episode = EpisodeConfig(num_windows=NUM_WINDOWS)
    return ShortTermEnv(tasks=tasks, episode=episode, layout=LAYOUT)


def play(env: ShortTermEnv, actions: list[np.ndarray], seed: int):
    observation, _ = env.reset(seed=seed)
    steps = [(observation, 0.0, False, False, {})]
    return steps + [env.step(action) for action in actions]


def actions_of(env: ShortTermEnv, seed: int) -> list[np.ndarray]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(NUM_WINDOWS)]


def test_registered_environment_passes_both_checkers_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("trimtab/ShortTerm-v0").unwrapped
        check_env(env)
        check_env_for_sb3(env)


def test_same_seed_same_steps(tasks):
    episode = EpisodeConfig(num_windows=NUM_WINDOWS)
    runs = []
    for _ in range(2):
        env = ShortTermEnv(tasks=tasks, episode=episode, layout=LAYOUT)
        runs.append([step for s in range(3) for step in play(env, actions_of(env, s), seed=s)])
    for (obs_a, reward_a, *flags_a, info_a), (obs_b, reward_b, *flags_b, info_b) in zip(
        *runs, strict=True
    ):
        assert reward_a == reward_b
        assert flags_a == flags_b
        assert info_a.get("outcome") == info_b.get("outcome")
        for key in obs_a:
            assert np.array_equal(obs_a[key], obs_b[key]), key


def test_action_zero_earns_exactly_nothing(env):
    zero = np.zeros(env.action_space.shape, np.float32)
    steps = play(env, [zero] * NUM_WINDOWS, seed=1)
    assert [reward for _, reward, *_ in steps[1:]] == [0.0] * NUM_WINDOWS
    assert not steps[-1][4]["arrival_reward"].any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rewards_by_finish_and_by_arrival_add_up_to_the_same(env, seed):
    steps = play(env, actions_of(env, seed), seed=seed)
    rewards = [reward for _, reward, *_ in steps[1:]]
    by_arrival = steps[-1][4]["arrival_reward"]
    assert by_arrival.shape == (NUM_WINDOWS,)
    assert sum(rewards) == pytest.approx(by_arrival.sum(), abs=1e-9)
    assert any(rewards)


def test_a_harmful_action_is_punished(env):
    shed_all = np.zeros(env.action_space.shape, np.float32)
    for name in ("shed_interactive", "shed_batch", "backlog", "iteration"):
        is_shed = name.startswith("shed")
        shed_all[TUNABLE_KNOBS.index(name)] = -1.0 if is_shed else 1.0
    harmful = BASE.replace({"shed_interactive": 0.15, "shed_batch": 0.15})
    tasks = env._tasks
    worse = ShortTermEnv(
        tasks=tasks, base=harmful, episode=EpisodeConfig(num_windows=NUM_WINDOWS), layout=LAYOUT
    )
    assert sum(r for _, r, *_ in play(worse, [shed_all] * NUM_WINDOWS, seed=0)) < -0.1
    assert sum(r for _, r, *_ in play(worse, [-shed_all] * NUM_WINDOWS, seed=0)) > 0.1


def test_episode_is_truncated_never_terminated(env):
    steps = play(env, actions_of(env, 0), seed=0)
    assert [truncated for _, _, _, truncated, _ in steps[1:]] == [False] * (NUM_WINDOWS - 1) + [
        True
    ]
    assert not any(terminated for _, _, terminated, _, _ in steps)


def test_actions_mean_what_they_say(env):
    action = np.zeros(env.action_space.shape, np.float32)
    action[TUNABLE_KNOBS.index("backlog")] = 1.0
    action[len(TUNABLE_KNOBS) + 2] = -0.5
    env.reset(seed=0)
    observation, *_, info = env.step(action)
    assert info["knobs"][KNOB_INDEX["backlog"]] == pytest.approx(BASE["backlog"] * np.exp(0.5))
    assert info["knobs"][KNOB_INDEX["batch_weight"]] == pytest.approx(BASE["batch_weight"])
    bias = env._task.fleet.arrays.knob_bias
    assert bias.tolist() == pytest.approx([0.0, 0.0, -0.5 * BIAS_SCALE, 0.0])
    assert np.array_equal(observation["action"], action)


def test_padding_is_marked(env):
    observation, _ = env.reset(seed=0)
    assert observation["replica_mask"].tolist() == [1, 1, 1, 1, 0]
    assert observation["server_mask"].tolist() == [1, 1, 1, 0]


def test_step_before_reset_is_refused(env):
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(np.zeros(env.action_space.shape, np.float32))


def test_step_after_the_end_is_refused(env):
    steps = play(env, actions_of(env, 0), seed=0)
    assert steps[-1][3]
    with pytest.raises(gymnasium.error.ResetNeeded, match="no episode is running"):
        env.step(np.zeros(env.action_space.shape, np.float32))


def test_two_episodes_differ(env):
    first, _ = env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape, np.float32))
    draws = {env.np_random.integers(3) for _ in range(20)}
    assert draws == {0, 1, 2}
    assert first["fleet"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_s": 0.0}, "window_s must be above 0, got 0.0"),
        ({"num_windows": 0}, "num_windows must be at least 1, got 0"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        EpisodeConfig(**change)
