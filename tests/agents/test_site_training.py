"""Training over sites: starts at the base, moves only what counts, keeps the best checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from trimtab.agents.arrival_rewards import Normalised
from trimtab.agents.bundle import load_bundle, save_bundle
from trimtab.agents.knob_search import knobs_to_tune
from trimtab.agents.site_training import (
    SITE_LAYOUT,
    SiteTrainingConfig,
    changing_episodes,
    goodput_under,
    make_site_model,
    train_on_sites,
)
from trimtab.agents.training_log import WandbMode
from trimtab.agents.universal import universal_scorer, universal_worth
from trimtab.env.knobs import SCORER_KNOBS, TUNABLE_KNOBS, WORTH_KNOBS
from trimtab.env.observation import ObservationLayout
from trimtab.env.short_term_env import EpisodeConfig
from trimtab.env.sites import Capacity, Split, episode
from trimtab.graph_encoder.extractor import Reads

SHAPE = EpisodeConfig(num_windows=10)
QUICK = SiteTrainingConfig(
    num_windows=80, num_envs=4, num_checks=1, hidden_size=8, batch_size=40, episode=SHAPE
)


@pytest.fixture(autouse=True, scope="module")
def _known_capacity():
    patch = pytest.MonkeyPatch()
    known = Capacity(rate_rps=6.0, light_goodput_frac=1.0)
    patch.setattr(episode, "site_capacity", lambda *_: known)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def episodes():
    return changing_episodes(Split.TRAIN, range(3), None, span_s=20.0)


@pytest.fixture(scope="module")
def validation():
    return changing_episodes(Split.VALIDATION, range(2), None, span_s=20.0)


def test_a_quick_training_ends_with_a_bundle_that_acts(episodes, validation, tmp_path):
    played = []
    result = train_on_sites(
        episodes, validation, universal_scorer(), tmp_path, QUICK,
        wandb_mode=WandbMode.DISABLED, on_windows=played.append,
    )  # fmt: skip
    assert sum(played) == result.num_windows == 80
    assert result.validation[0] == (0, 0.0)
    assert len(result.validation) >= 2
    save_bundle(
        tmp_path / "bundle", policy=result.policy, base_knobs=result.base, layout=result.layout,
        evaluation={}, description="a test",
    )  # fmt: skip
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.base_knobs["scorer_weight"] == 1.0


@pytest.mark.parametrize("reads", list(Reads))
def test_the_untrained_policy_is_the_base_whatever_it_reads(episodes, reads):
    config = SiteTrainingConfig(
        num_envs=2, hidden_size=8, batch_size=20, episode=SHAPE, reads=reads
    )
    model = make_site_model(episodes, universal_scorer(), config)
    base, policy = (
        goodput_under(p, episodes, universal_scorer(), config) for p in (None, model.policy)
    )
    np.testing.assert_array_equal(base, policy)


@pytest.mark.parametrize(
    ("base", "counting"), [(universal_scorer(), SCORER_KNOBS), (universal_worth(), WORTH_KNOBS)]
)
def test_only_knobs_that_count_are_explored(episodes, base, counting):
    model = make_site_model(episodes, base, QUICK)
    seen = model.env.reset()
    with torch.no_grad():
        tensors = {key: torch.as_tensor(rows) for key, rows in seen.items()}
        actions, _, log_prob = model.policy(tensors)
    is_moved = (actions != 0.0).any(dim=0).numpy()
    moved = {name for name, moves in zip(TUNABLE_KNOBS, is_moved, strict=False) if moves}
    assert moved == set(knobs_to_tune(base)) & set(TUNABLE_KNOBS)
    assert set(counting) <= moved
    assert not is_moved[len(TUNABLE_KNOBS) :].any()
    assert torch.isfinite(log_prob).all()


def test_the_same_seed_gives_the_same_policy(episodes, validation, tmp_path):
    config = SiteTrainingConfig(
        num_windows=40, num_envs=4, num_checks=1, hidden_size=8, batch_size=40, episode=SHAPE,
        normalised=Normalised.POOLED, has_twin=False, sees_future=False,
    )  # fmt: skip
    weights = [
        train_on_sites(
            episodes, validation, universal_scorer(), tmp_path / str(i), config,
            wandb_mode=WandbMode.DISABLED,
        ).policy.state_dict()
        for i in range(2)
    ]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_sites_that_do_not_fit_the_layout_are_left_out(episodes):
    assert max(len(one.cluster.replicas) for one in episodes) <= SITE_LAYOUT.max_replicas
    tiny = ObservationLayout(max_replicas=1, max_gpus=1, max_servers=1)
    assert changing_episodes(Split.TRAIN, range(3), None, span_s=20.0, layout=tiny) == []


def test_nothing_to_validate_on_is_refused(episodes, tmp_path):
    with pytest.raises(ValueError, match=r"need episodes to train and validate on, got \d and 0"):
        train_on_sites(episodes, [], universal_scorer(), tmp_path, QUICK)


def test_a_training_goes_on_where_a_bundle_ended(episodes, validation, tmp_path):
    config = replace(QUICK, learning_rate=5e-3)
    model = make_site_model(episodes, universal_scorer(), config)
    with torch.no_grad():
        # The head of a policy that sheds more.
        model.policy.action_net.knobs[-1].bias[TUNABLE_KNOBS.index("shed_batch")] = -0.5
    save_bundle(
        tmp_path / "first", policy=model.policy, base_knobs=universal_scorer(), layout=SITE_LAYOUT,
        evaluation={}, description="the first",
    )  # fmt: skip
    start = load_bundle(tmp_path / "first")
    begun = make_site_model(episodes, universal_scorer(), config, start=start)
    first, second = (
        goodput_under(m.policy, episodes, universal_scorer(), config) for m in (model, begun)
    )
    np.testing.assert_array_equal(first, second)
    result = train_on_sites(
        episodes, validation, start.base_knobs, tmp_path / "run", config,
        start=start, wandb_mode=WandbMode.DISABLED,
    )  # fmt: skip
    # Judged before anything was learned, beside the base itself.
    assert [windows for windows, _ in result.validation[:2]] == [0, 0]
    assert result.validation[0][1] == 0.0


def test_a_bundle_of_another_size_is_refused(episodes, tmp_path):
    small = make_site_model(episodes, universal_scorer(), QUICK)
    save_bundle(
        tmp_path / "small", policy=small.policy, base_knobs=universal_scorer(), layout=SITE_LAYOUT,
        evaluation={}, description="small",
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not fit a policy of hidden size 16"):
        make_site_model(
            episodes, universal_scorer(), replace(QUICK, hidden_size=16),
            start=load_bundle(tmp_path / "small"),
        )  # fmt: skip
