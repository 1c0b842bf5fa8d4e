"""The value network: evaluated as its layers say, whole or refused, and the closed form at 0."""

import numpy as np
import pytest

from trimtab.env.value.features import NUM_FEATURES, OWN_MET, RUN_LOSS, WAIT_LOSS
from trimtab.env.value.network import (
    NUM_SCRATCH,
    NUM_WEIGHTS,
    SHAPES,
    ValueNetwork,
    closed_form,
    evaluate,
)


def random_tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()}


def random_features(count=50, seed=1):
    found = np.random.default_rng(seed).normal(0, 1, (count, NUM_FEATURES)).astype(np.float32)
    found[:, OWN_MET] = np.abs(found[:, OWN_MET]) % 1.0
    return found


def test_the_kernel_evaluates_what_the_layers_say():
    network, seen = ValueNetwork.of_tensors(random_tensors()), random_features()
    expected = network.worths(seen)
    assert expected.std(axis=0).min() > 0.1
    scratch = np.zeros(NUM_SCRATCH, np.float32)
    for features, (own, others) in zip(seen, expected, strict=True):
        scratch[:NUM_FEATURES] = features
        # Compiled code of one file may be older than the constants of another.
        found = evaluate.py_func(network.weights, scratch, 1.0, 0.0)
        assert found[0] == pytest.approx(own, abs=1e-4)
        assert found[1] == pytest.approx(others, abs=1e-4)


def test_weights_of_zero_are_the_closed_form():
    seen = random_features()
    found = closed_form().worths(seen)
    np.testing.assert_array_equal(found[:, 0], seen[:, OWN_MET])
    np.testing.assert_allclose(found[:, 1], seen[:, RUN_LOSS] + seen[:, WAIT_LOSS], rtol=1e-6)


def test_tensors_come_back():
    tensors = random_tensors()
    again = ValueNetwork.of_tensors(tensors).tensors
    assert list(again) == list(SHAPES)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match=rf"must be float32 \[{NUM_WEIGHTS}\], got float64 \[3\]"):
        ValueNetwork(np.zeros(3))
    weights = np.zeros(NUM_WEIGHTS, np.float32)
    weights[7] = np.inf
    with pytest.raises(ValueError, match="must be finite, got inf at 7"):
        ValueNetwork(weights)
    tensors = random_tensors()
    with pytest.raises(ValueError, match=r"tensor 'last.bias' must have shape \[2\], got \[3\]"):
        ValueNetwork.of_tensors(tensors | {"last.bias": np.zeros(3, np.float32)})
    del tensors["last.bias"]
    with pytest.raises(ValueError, match=r"missing or unknown: last\.bias"):
        ValueNetwork.of_tensors(tensors)
