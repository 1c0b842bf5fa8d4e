"""Self-supervised training: nothing leaks, losses fall, what is saved is what was trained."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from trimtab.env.state.feature import Node
from trimtab.env.state.random_state import FleetSize, random_state
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_encoder, save_encoder
from trimtab.graph_encoder.dense_encoder import DenseEncoder
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.graph_batch import GraphBatch
from trimtab.graph_encoder.masking import MaskConfig, hide, values_of
from trimtab.graph_encoder.pretraining import Pretrainer, PretrainingConfig, pretrain, summaries
from trimtab.traces.errors import BundleError

SMALL = FleetSize(num_servers=2, gpus_per_server=2, gpus_per_replica=2, num_zones=1, num_tenants=2)


def make_sequence(seed: int, num_windows: int = 6) -> list[GraphBatch]:
    """States of one fleet in which every value drifts: the next is foretold by the last."""
    rng = np.random.default_rng(seed)
    first, last = random_state(rng, SMALL), random_state(rng, SMALL)
    builder = GraphBuilder()
    return [
        builder.build(
            replace(
                first,
                values={
                    node: (1 - i / num_windows) * first.values[node]
                    + i / num_windows * last.values[node]
                    for node in Node
                },
            )
        )
        for i in range(num_windows)
    ]


@pytest.fixture(scope="module")
def graphs() -> GraphBatch:
    return make_sequence(0)[0]


def test_hidden_values_leave_no_trace(graphs):
    """Whatever was hidden may have been anything else that is known: the input is the same."""
    config = MaskConfig(value_frac=0.5, node_frac=0.2)
    masked = hide(graphs, config, torch.Generator().manual_seed(0))
    other = {kind: rows.clone() for kind, rows in graphs.x.items()}
    for kind, rows in other.items():
        hidden = masked.is_hidden[kind]
        assert hidden.any(), kind
        rows[:, : hidden.shape[1]][hidden] = 3.0
    again = hide(replace(graphs, x=other), config, torch.Generator().manual_seed(0))
    for kind in graphs.x:
        torch.testing.assert_close(again.graphs.x[kind], masked.graphs.x[kind], rtol=0, atol=0)


def test_as_much_is_hidden_as_was_asked_for_and_nothing_that_was_absent():
    size = FleetSize(num_servers=40, gpus_per_server=8)
    graphs = GraphBuilder().build(random_state(np.random.default_rng(0), size))
    masked = hide(graphs, MaskConfig(value_frac=0.3, node_frac=0.1), torch.Generator())
    values, was_known = values_of(graphs, "gpu")
    hidden = masked.is_hidden["gpu"]
    assert not (hidden & ~was_known).any()
    frac = float(hidden.sum() / was_known.sum())
    assert frac == pytest.approx(1 - 0.7 * 0.9, abs=0.05)
    left, is_known = values_of(masked.graphs, "gpu")
    torch.testing.assert_close(is_known, was_known & ~hidden)
    torch.testing.assert_close(left[is_known], values[is_known])


@pytest.mark.parametrize("field", ["value_frac", "node_frac"])
def test_shares_to_hide_are_shares(field):
    with pytest.raises(ValueError, match=f"{field} must be in \\[0, 1\\), got 1.0"):
        MaskConfig(**{field: 1.0})


def test_summaries_are_of_known_nodes(graphs):
    values, is_known = values_of(graphs, "gpu")
    found, is_summary_known = summaries(graphs, "gpu")
    num = values.shape[1]
    for i in range(num):
        column = values[is_known[:, i], i].numpy()
        assert bool(is_summary_known[0, i]) == (column.size > 0)
        if column.size:
            expected = [column.mean(), column.std(), column.max()]
            np.testing.assert_allclose(found[0, [i, num + i, 2 * num + i]], expected, atol=1e-5)


def test_training_lowers_the_loss_on_a_fleet_never_seen():
    config = PretrainingConfig(num_steps=40, batch_size=3, hidden_size=16, validate_every=20)
    result = pretrain([make_sequence(1), make_sequence(2)], [make_sequence(3)], config)
    before, after = result.validation[0], result.validation[-1]
    assert [look.step for look in result.validation] == [0, 20, 40]
    assert after.restore < 0.7 * before.restore
    assert after.foretell < 0.7 * before.foretell
    assert after.summarise < before.summarise
    assert len(result.training) == 40


def test_same_seed_same_encoder_and_the_best_is_kept():
    config = PretrainingConfig(num_steps=6, batch_size=2, hidden_size=8, validate_every=2)
    runs = [pretrain([make_sequence(1)], [make_sequence(2)], config) for _ in range(2)]
    for one, two in zip(*(run.encoder.state_dict().values() for run in runs), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert runs[0].validation == runs[1].validation
    other = pretrain([make_sequence(1)], [make_sequence(2)], replace(config, seed=1))
    assert other.validation != runs[0].validation


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 windows, got \[6, 1\]"):
        Pretrainer([make_sequence(0), make_sequence(0)[:1]], PretrainingConfig())
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        PretrainingConfig(num_steps=0)
    with pytest.raises(ValueError, match=r"learning_rate must be above 0, got -0.1"):
        PretrainingConfig(learning_rate=-0.1)


@pytest.fixture
def encoder() -> AttentionEncoder:
    torch.manual_seed(0)
    return AttentionEncoder(hidden_size=8)


def test_a_saved_encoder_gives_the_same_vectors(tmp_path, encoder, graphs):
    save_encoder(tmp_path / "encoder", encoder, {"seed": 0})
    loaded = load_encoder(tmp_path / "encoder")
    with torch.inference_mode():
        expected, found = (DenseEncoder(one)(graphs).pooled for one in (encoder, loaded))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert json.loads((tmp_path / "encoder" / CONFIG_NAME).read_text())["training"] == {"seed": 0}


def test_only_an_encoder_is_replaced_and_only_if_asked(tmp_path, encoder):
    save_encoder(tmp_path / "encoder", encoder, {})
    with pytest.raises(BundleError, match="exists; choose another path or pass overwrite=True"):
        save_encoder(tmp_path / "encoder", encoder, {})
    save_encoder(tmp_path / "encoder", encoder, {"again": 1}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(BundleError, match="exists and is no encoder"):
        save_encoder(tmp_path / "mine", encoder, {}, overwrite=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"registry_hash": "0123"}, "feature registry is 0123, this code has [0-9a-f]{16}; train"),
        ({"format_version": 9}, "format_version is 9, expected 1"),
        ({"hidden_size": 0}, "hidden_size: Input should be greater than or equal to 1"),
        ({"hidden_size": 16}, "does not fit"),
        ({"weights_sha256": "00"}, "has sha256 [0-9a-f]{64}, expected 00"),
        ({"other": 1}, "other: Unexpected keyword argument"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(tmp_path, encoder, change, text):
    save_encoder(tmp_path / "encoder", encoder, {})
    path = tmp_path / "encoder" / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=text):
        load_encoder(tmp_path / "encoder")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_missing_and_damaged_files_are_named(tmp_path, encoder, name):
    save_encoder(tmp_path / "encoder", encoder, {})
    (tmp_path / "encoder" / name).write_bytes(b"\x00")
    with pytest.raises(BundleError, match=re.escape(name)):
        load_encoder(tmp_path / "encoder")
    (tmp_path / "encoder" / name).unlink()
    with pytest.raises(BundleError, match=f"{re.escape(name)} cannot be read: No such file"):
        load_encoder(tmp_path / "encoder")


def test_weights_that_are_not_finite_are_not_saved(tmp_path, encoder):
    with torch.no_grad():
        next(encoder.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match="is not finite; training diverged"):
        save_encoder(tmp_path / "encoder", encoder, {})
    assert not list(tmp_path.iterdir())
