import dataclasses
import re

import numpy as np
import pytest

from trimtab.env.state.feature import Live, Node
from trimtab.env.state.registry import FEATURES
from trimtab.runtime.telemetry import signals as table
from trimtab.runtime.telemetry.signals import (
    SIGNALS,
    SIGNALS_BY_SCOPE,
    Kind,
    Scope,
    num_values,
    signal_index,
    signals_hash,
)


def test_a_fleet_of_512_servers_gives_200_000_values() -> None:
    assert 512 * num_values(num_gpus=8, num_replicas=2) >= 200_000


def test_names_are_unique_in_a_scope_and_columns_follow_the_table() -> None:
    for scope, signals in SIGNALS_BY_SCOPE.items():
        assert len({signal.name for signal in signals}) == len(signals)
        assert [signal_index(scope, signal.name) for signal in signals] == [*range(len(signals))]


def test_an_unknown_signal_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"gpu has no signal 'power'; expected one of .*power_watts"
    ):
        signal_index(Scope.GPU, "power")


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: f"{signal.scope}.{signal.name}")
def test_a_signal_has_a_range_a_unit_and_a_source(signal: table.Signal) -> None:
    assert np.isfinite([signal.low, signal.high]).all()
    assert signal.low < signal.high
    assert signal.unit
    assert signal.source
    assert set(signal.source) <= set(Live)


def test_a_counter_is_folded_at_a_power_of_two_so_that_floats_hold_its_steps() -> None:
    for signal in SIGNALS:
        if signal.kind is Kind.COUNTER:
            assert signal.low == 0
            assert float(np.log2(signal.high)).is_integer(), signal.name


def test_the_hash_changes_with_a_range_and_not_with_a_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals_hash.cache_clear()
    before = signals_hash()

    def hash_with(**change: object) -> str:
        changed = dataclasses.replace(SIGNALS[0], **change)  # type: ignore[arg-type]
        monkeypatch.setattr(table, "SIGNALS", (changed, *SIGNALS[1:]))
        signals_hash.cache_clear()
        return signals_hash()

    assert hash_with(source={Live.HOST: "elsewhere"}) == before
    assert hash_with(high=SIGNALS[0].high * 2) != before
    assert hash_with(name="another") != before
    monkeypatch.undo()
    signals_hash.cache_clear()


def asked_of(live: Live) -> set[str]:
    """Names of metrics and functions that features of GPUs, servers, replicas and links name."""
    nodes = {Node.GPU, Node.SERVER, Node.REPLICA, Node.LINK}
    texts = [f.live[live] for f in FEATURES if f.node in nodes and live in f.live]
    pattern = {
        Live.NVML: r"nvmlDeviceGet\w+|(?<=GPM )\w+|(?<=fields )\w+|(?<=field )\w+",
        Live.HOST: r"/(?:proc|sys)/[\w/]+",
    }.get(live, rf"{live}:\w+")
    return {name for text in texts for name in re.findall(pattern, text)}


@pytest.mark.parametrize(
    "live", [Live.NVML, Live.VLLM, Live.SGLANG, Live.LLAMACPP, Live.HOST], ids=str
)
def test_what_features_ask_of_live_sources_is_among_the_signals(live: Live) -> None:
    names = asked_of(live)
    assert len(names) > 3
    sources = " ".join(signal.source.get(live, "") for signal in SIGNALS)
    otherwise = {"nvmlDeviceGetTotalEnergyConsumption": "TOTAL_ENERGY_CONSUMPTION"}
    otherwise |= {"nvmlDeviceGetPcieReplayCounter": "PCIE_REPLAY_COUNTER"}
    assert [name for name in names if otherwise.get(name, name) not in sources] == []
