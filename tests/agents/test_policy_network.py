"""The learned policy: action 0 untrained, equal treatment of replicas, padding, PPO, saving."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import nn

from trimtab.agents.policy_network import EquivariantPolicy
from trimtab.env.knobs import TUNABLE_KNOBS
from trimtab.env.observation import Observation, ObservationLayout, observation_space

NUM_KNOBS = len(TUNABLE_KNOBS)
LAYOUT = ObservationLayout()
LARGE_LAYOUT = ObservationLayout(max_replicas=32, max_gpus=40, max_servers=6, max_tenants=3)
NUM_REPLICAS = 12


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_observation(layout: ObservationLayout = LAYOUT, seed: int = 0) -> Observation:
    """A fleet of 12 replicas on 14 GPUs of 3 servers with 2 tenants, the same in any layout."""
    rng = np.random.default_rng(seed)
    space = observation_space(layout)
    observation = {key: np.zeros(box.shape, np.float32) for key, box in space.spaces.items()}
    for node, count in (("replica", NUM_REPLICAS), ("gpu", 14), ("server", 3), ("tenant", 2)):
        rows = observation[node].reshape(observation[f"{node}_mask"].size, -1)
        rows[:count] = rng.normal(size=(count, rows.shape[1]))
        observation[f"{node}_mask"][:count] = 1.0
    # two replicas have two GPUs
    observation["gpu_replica"][:14] = np.append(rng.permutation(NUM_REPLICAS), [0, 1])
    observation["gpu_server"][:14] = np.arange(14) // 5
    observation["fleet"][:] = rng.normal(size=observation["fleet"].shape)
    observation["action"][: NUM_KNOBS + NUM_REPLICAS] = rng.uniform(-1, 1, NUM_KNOBS + NUM_REPLICAS)
    return observation


def action_space(layout: ObservationLayout) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (layout.action_size,), np.float32)


def make_policy(layout: ObservationLayout = LAYOUT, **arguments: Any) -> EquivariantPolicy:
    torch.manual_seed(0)
    return EquivariantPolicy(
        observation_space(layout), action_space(layout), lambda _: 3e-4, **arguments
    )


def scramble(policy: EquivariantPolicy) -> EquivariantPolicy:
    """Give the heads, which start at 0, weights that make every input count."""
    torch.manual_seed(1)
    for head in (policy.action_net.knobs, policy.action_net.bias):
        nn.init.normal_(head[-1].weight, std=0.1)
        nn.init.normal_(head[-1].bias, std=0.1)
    return policy


def act(policy: EquivariantPolicy, observation: Observation) -> np.ndarray:
    action, _ = policy.predict(observation, deterministic=True)
    return action


class RandomObservationEnv(gymnasium.Env):
    """Random observations; the reward is highest for the action that is all 0.5."""

    def __init__(self) -> None:
        self.observation_space = observation_space(LAYOUT)
        self.action_space = action_space(LAYOUT)
        self.num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.num_steps = 0
        return make_observation(seed=int(self.np_random.integers(1000))), {}

    def step(self, action: np.ndarray):
        self.num_steps += 1
        reward = -float(np.square(action - 0.5).mean())
        observation = make_observation(seed=int(self.np_random.integers(1000)))
        return observation, reward, False, self.num_steps >= 16, {}


def make_ppo(**arguments: Any) -> PPO:
    defaults = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
    return PPO(EquivariantPolicy, RandomObservationEnv(), **(defaults | arguments))


def test_untrained_policy_returns_exactly_zero():
    policy = make_policy()
    for seed in range(3):
        assert not act(policy, make_observation(seed=seed)).any()


def test_same_seed_gives_the_same_policy():
    first, second = make_policy().state_dict(), make_policy().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_permuted_replicas_give_permuted_biases_and_the_same_residuals():
    policy, observation = scramble(make_policy()), make_observation()
    order = np.random.default_rng(5).permutation(LAYOUT.max_replicas)
    permuted = dict(observation)
    permuted["replica"] = observation["replica"].reshape(order.size, -1)[order].ravel()
    permuted["replica_mask"] = observation["replica_mask"][order]
    permuted["gpu_replica"] = np.argsort(order)[observation["gpu_replica"].astype(int)].astype(
        np.float32
    )
    permuted["action"] = np.append(
        observation["action"][:NUM_KNOBS], observation["action"][NUM_KNOBS:][order]
    )
    expected, found = act(policy, observation), act(policy, permuted)
    assert np.ptp(expected[NUM_KNOBS : NUM_KNOBS + NUM_REPLICAS]) > 0.01
    np.testing.assert_allclose(found[:NUM_KNOBS], expected[:NUM_KNOBS], atol=1e-5)
    np.testing.assert_allclose(found[NUM_KNOBS:], expected[NUM_KNOBS:][order], atol=1e-5)


def test_padding_makes_no_difference_and_the_state_dict_fits_any_size():
    small, large = scramble(make_policy()), make_policy(LARGE_LAYOUT)
    large.load_state_dict(small.state_dict())
    expected = act(small, make_observation(LAYOUT))
    found = act(large, make_observation(LARGE_LAYOUT))
    num_real = NUM_KNOBS + NUM_REPLICAS
    np.testing.assert_allclose(found[:num_real], expected[:num_real], atol=1e-5)
    assert not expected[num_real:].any()
    assert not found[num_real:].any()


def test_padding_makes_no_difference_to_value_log_probability_and_entropy():
    small, large = scramble(make_policy()), make_policy(LARGE_LAYOUT)
    large.load_state_dict(small.state_dict())
    results = []
    for policy, layout in ((small, LAYOUT), (large, LARGE_LAYOUT)):
        observation, _ = policy.obs_to_tensor(make_observation(layout))
        action = torch.linspace(-1, 1, layout.action_size).unsqueeze(0)
        action[:, : NUM_KNOBS + NUM_REPLICAS] = 0.3
        results.append(policy.evaluate_actions(observation, action))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_exploration_has_one_spread_for_each_knob_and_one_for_all_biases():
    policy = make_policy()
    assert policy.log_std.shape == (NUM_KNOBS + 1,)
    observation, _ = policy.obs_to_tensor(make_observation())
    distribution = policy.get_distribution(observation)
    torch.manual_seed(0)
    samples = torch.stack([distribution.sample()[0] for _ in range(2000)])
    spread = samples.std(dim=0)
    real, padded = spread[NUM_KNOBS:].split([NUM_REPLICAS, LAYOUT.max_replicas - NUM_REPLICAS])
    torch.testing.assert_close(
        spread[:NUM_KNOBS], torch.full((NUM_KNOBS,), -0.9).exp(), rtol=0.1, atol=0
    )
    torch.testing.assert_close(real, torch.full((NUM_REPLICAS,), -1.6).exp(), rtol=0.1, atol=0)
    assert not padded.any()


def test_log_probability_is_that_of_the_real_dimensions():
    policy = make_policy()
    observation, _ = policy.obs_to_tensor(make_observation())
    actions, _, log_prob = policy(observation)
    knobs, biases = actions[0, :NUM_KNOBS], actions[0, NUM_KNOBS : NUM_KNOBS + NUM_REPLICAS]
    expected = (
        torch.distributions.Normal(0.0, np.exp(-0.9)).log_prob(knobs).sum()
        + torch.distributions.Normal(0.0, np.exp(-1.6)).log_prob(biases).sum()
    )
    torch.testing.assert_close(log_prob[0], expected)


def test_optimiser_holds_every_parameter_once():
    policy = make_policy()
    held = [id(p) for group in policy.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in policy.parameters()}


def test_actor_and_critic_share_nothing():
    policy = make_policy()
    actor = {id(parameter) for parameter in policy.pi_features_extractor.parameters()}
    assert actor.isdisjoint(id(p) for p in policy.vf_features_extractor.parameters())


def test_ppo_trains_every_part():
    model = make_ppo()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(256)
    after = model.policy.state_dict()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.slow
def test_ppo_moves_knobs_and_biases_towards_the_best_action():
    # the reward is of the step alone, hence gamma 0; biases have half the spread, so move slower
    model = make_ppo(n_steps=512, batch_size=128, n_epochs=3, gamma=0.0, learning_rate=1e-3)
    model.learn(4096)
    actions = np.stack([act(model.policy, make_observation(seed=seed)) for seed in range(24)])
    assert actions[:, :NUM_KNOBS].mean() > 0.2
    assert actions[:, NUM_KNOBS : NUM_KNOBS + NUM_REPLICAS].mean() > 0.04


def test_ppo_saves_and_loads(tmp_path: Path):
    model = make_ppo()
    model.learn(64)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    expected = act(model.policy, make_observation())
    assert expected.any()
    assert np.array_equal(act(loaded.policy, make_observation()), expected)


def test_policy_saves_and_loads(tmp_path: Path):
    policy = scramble(make_policy(features_extractor_kwargs={"hidden_size": 8}))
    policy.save(str(tmp_path / "policy.pt"))
    loaded = EquivariantPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    assert np.array_equal(act(loaded, make_observation()), act(policy, make_observation()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net_arch": [64]}, r"net_arch must be \[\] for EquivariantPolicy, got \[64\]"),
        ({"use_sde": True}, "use_sde must be False for EquivariantPolicy, got True"),
        ({"share_features_extractor": True}, "share_features_extractor must be False"),
    ],
)
def test_fixed_arguments_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make_policy(**arguments)


def test_wrong_action_space_is_refused():
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    expected = rf"shape \({LAYOUT.action_size},\) .*got \(3,\)"
    with pytest.raises(ValueError, match=expected):
        EquivariantPolicy(observation_space(LAYOUT), space, lambda _: 3e-4)
