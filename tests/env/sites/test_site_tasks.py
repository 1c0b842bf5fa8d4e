"""Sites as tasks: the same arrivals as the twin's, regimes by window, and what is to come."""

from itertools import pairwise

import numpy as np
import pytest
from site_makers import make_site

from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.observation import ObservationLayout
from trimtab.env.reward import run_twin
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.env.sites import Capacity, Episode, RegimeKind, episode, site_episode
from trimtab.env.sites.regime import CHANGING
from trimtab.env.sites.tasks import NUM_FUTURE, SiteTasks
from trimtab.env.vector_env import FUTURE, FleetVectorEnv

BASE = ANALYTIC_SCORER_KNOBS
SHAPE = EpisodeConfig(window_s=2.0, num_windows=120)
LAYOUT = ObservationLayout(max_replicas=8, max_gpus=8, max_servers=8)


@pytest.fixture(autouse=True)
def _known_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Capacity(rate_rps=8.0, light_goodput_frac=1.0)
    monkeypatch.setattr(episode, "site_capacity", lambda *_: known)


def some_episodes(num: int) -> list[Episode]:
    site = make_site(regimes=CHANGING)
    return [site_episode(site, i, None, span_s=240.0) for i in range(num)]


def drawn(tasks: SiteTasks, *, window_s: float = 2.0, num_windows: int = 120):
    rng = np.random.default_rng(0)
    return tasks.draw(rng, BASE, window_s=window_s, num_windows=num_windows)


def test_action_0_earns_what_the_twin_does_and_regimes_are_those_of_the_episode() -> None:
    episodes = some_episodes(1)
    env = ShortTermEnv(tasks=SiteTasks(episodes), base=BASE, episode=SHAPE, layout=LAYOUT)
    env.reset(seed=0)
    nothing = np.zeros(LAYOUT.action_size, np.float32)
    steps = [env.step(nothing) for _ in range(120)]
    assert [reward for _, reward, *_ in steps] == pytest.approx([0.0] * 120, abs=1e-12)
    assert steps[-1][4]["arrival_reward"] == pytest.approx(np.zeros(120), abs=1e-12)
    kinds = [list(RegimeKind)[info["regime"]] for *_, info in steps]
    expected = episodes[0].regime_at(2.0 * np.arange(120))
    assert kinds == [episodes[0].regimes[place].kind for place in expected]
    assert len(set(kinds)) > 1


def test_without_a_twin_rewards_are_what_was_earned() -> None:
    with_twin, without = (SiteTasks(some_episodes(1), has_twin=has) for has in (True, False))
    earned = drawn(with_twin).twin.by_arrival
    assert earned.sum() > 0.0
    bare = drawn(without).twin
    assert not bare.by_arrival.any()
    assert not bare.resolved.any()
    assert bare.weight_per_window == drawn(with_twin).twin.weight_per_window


def test_the_twin_is_the_base_on_the_same_episode() -> None:
    episodes = some_episodes(1)
    alone = run_twin(
        episodes[0].fleet(), BASE, seed=episodes[0].number, window_s=2.0, num_windows=120
    )
    np.testing.assert_array_equal(drawn(SiteTasks(episodes)).twin.by_arrival, alone.by_arrival)


def test_what_is_to_come_tells_load_before_it_arrives() -> None:
    episodes = some_episodes(1)
    task = drawn(SiteTasks(episodes))
    future = task.future
    assert future is not None
    assert future.shape == (121, NUM_FUTURE)
    assert np.isfinite(future).all()
    requests = episodes[0].workload.requests
    tokens = [
        requests["query"]["input_tokens"][
            (requests["arrival_s"] >= a) & (requests["arrival_s"] < b)
        ].sum()
        for a, b in pairwise(2.0 * np.arange(121))
    ]
    assert future[:-1, 0] == pytest.approx(np.log1p(tokens / np.mean(tokens)), abs=1e-5)
    assert not future[-1].any()


def test_only_observations_of_training_have_the_future() -> None:
    episodes = some_episodes(2)
    plain = FleetVectorEnv(2, tasks=SiteTasks(episodes), base=BASE, episode=SHAPE, layout=LAYOUT)
    seeing = FleetVectorEnv(
        2, tasks=SiteTasks(episodes), base=BASE, episode=SHAPE, layout=LAYOUT,
        num_future=NUM_FUTURE,
    )  # fmt: skip
    seen, _ = plain.reset(seed=0)
    assert FUTURE not in seen
    more, _ = seeing.reset(seed=0)
    assert {*seen, FUTURE} == set(more)
    nothing = np.zeros((2, LAYOUT.action_size), np.float32)
    steps = seeing.step_all(nothing)
    tasks = [env.task for env in seeing.envs]
    for row, task in zip(steps.observation[FUTURE], tasks, strict=True):
        assert task.future is not None
        np.testing.assert_array_equal(row, task.future[1])


def test_no_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="need at least 1 episode to draw from, got 0"):
        SiteTasks([])
