"""Training of the value network: it learns what labels hold, calibrates, and writes whole files."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from trimtab.agents.run_record import read_record
from trimtab.agents.universal import universal_worth
from trimtab.agents.value_file import load_value, value_bytes
from trimtab.agents.value_training import (
    ValueTrainingConfig,
    calibration,
    collect_labels,
    explained,
    fit_network,
    train_value,
)
from trimtab.env.sites import Split, sample_site, site_episode
from trimtab.env.value.features import NUM_FEATURES, OWN_MET, RUN_LOSS, WAIT_LOSS
from trimtab.env.value.labels import LABEL_DTYPE
from trimtab.env.value.network import closed_form
from trimtab.scripts.cli import app
from trimtab.traces.errors import BundleError

QUICK = ValueTrainingConfig(
    num_rounds=1, decisions_per_episode=40, num_epochs=30, batch_size=256, learning_rate=1e-2
)


def made_labels(count=3000, seed=0):
    """Labels whose own chance is off by a known function of two features."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(count, LABEL_DTYPE)
    labels["features"] = rng.normal(0.0, 1.0, (count, NUM_FEATURES))
    labels["features"][:, OWN_MET] = 0.5
    labels["features"][:, [RUN_LOSS, WAIT_LOSS]] = 0.0
    labels["own"] = 0.5 + 0.3 * np.tanh(labels["features"][:, 10] - labels["features"][:, 12])
    labels["others"] = -0.2 * np.maximum(0.0, labels["features"][:, 20])
    return labels


def test_what_the_closed_form_misses_is_learned():
    network = fit_network(made_labels(), QUICK)
    unseen = made_labels(seed=1)
    assert explained(closed_form(), unseen) < 0.1
    assert explained(network, unseen) > 0.9
    for foretold, found, count in calibration(network, unseen):
        assert count < 100 or found == pytest.approx(foretold, abs=0.05)
    again = fit_network(made_labels(), QUICK)
    np.testing.assert_array_equal(network.weights, again.weights)


def test_what_others_lose_is_left_alone_if_asked():
    config = ValueTrainingConfig(num_rounds=1, num_epochs=5, batch_size=256, learns_others=False)
    network, unseen = fit_network(made_labels(), config), made_labels(seed=1)
    assert np.abs(network.worths(unseen["features"])[:, 1]).max() == 0.0


def episodes(split, numbers):
    return [
        site_episode(sample_site(split, i, None, is_changing=False), 0, None, span_s=12.0)
        for i in numbers
    ]


def test_labels_of_sites_are_fitted_better_than_without():
    train, unseen = episodes(Split.TRAIN, (1, 3)), episodes(Split.VALIDATION, (0,))
    steps = []
    result = train_value(train, unseen, universal_worth(), QUICK, on_step=steps.append)
    assert result.num_labels > 100
    assert len(steps) == 2
    own = collect_labels(train, universal_worth(), closed_form(), QUICK)
    assert explained(result.network, own) > explained(closed_form(), own)
    with pytest.raises(ValueError, match="need episodes to train and validate on, got 0 and 1"):
        train_value([], unseen, universal_worth(), QUICK)


def test_a_network_comes_back_from_its_file_and_others_are_refused(tmp_path):
    network = fit_network(made_labels(500), QUICK)
    path = tmp_path / "value.safetensors"
    path.write_bytes(value_bytes(network))
    np.testing.assert_array_equal(load_value(path).weights, network.weights)
    path.write_bytes(b"no network")
    with pytest.raises(BundleError, match=r"value network '.*value\.safetensors'"):
        load_value(path)


def test_the_command_writes_weights_and_what_they_explain(tmp_path):
    out = tmp_path / "value"
    arguments = ["train-value", "--sites", "1", "--rounds", "1", "--epochs", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "of the variance of worth at unseen sites the closed form" in result.output
    report = json.loads((out / "value.json").read_text())
    assert report["num_labels"] > 100
    load_value(out / "value.safetensors")
    record = read_record(out / "run.yaml")
    assert record.settings == {"sites": 1, "rounds": 1, "epochs": 1, "own_only": False}
    assert record.results[0].mean == pytest.approx(100 * report["trained_r2"], abs=0.01)
