"""Helpers of the telemetry tests: a rack, its frames, and a derivation that is easy to follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE, column
from trimtab.runtime.telemetry.aggregator import Aggregator, AggregatorConfig
from trimtab.runtime.telemetry.frames import Hello, Ping, Pong, Sample, decode, encode
from trimtab.runtime.telemetry.rack_layout import RACK_NODES, RackLayout, ServerPlace
from trimtab.runtime.telemetry.raw_window import RawWindow
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope, signal_index, signals_hash

POWER = signal_index(Scope.GPU, "power_watts")
ACTIVITY = signal_index(Scope.GPU, "sm_activity_frac")
TEMPERATURE = signal_index(Scope.GPU, "temperature_celsius")
CPU = signal_index(Scope.SERVER, "cpu_total_s")
SM = column(Node.GPU, "sm_activity_frac")
CELSIUS = column(Node.GPU, "temperature_celsius")


def make_layout(num_servers: int = 2, num_gpus: int = 2, rack: str = "r0") -> RackLayout:
    return RackLayout(
        rack=rack,
        servers=tuple(
            ServerPlace(
                server=f"{rack}-s{i}",
                probe=f"{rack}-p{i}",
                num_gpus=num_gpus,
                num_replicas=1,
                num_links=2,
            )
            for i in range(num_servers)
        ),
    )


class TwoFeatures:
    """Derives the activity and temperature of GPUs; all else is absent."""

    def __init__(self, layout: RackLayout) -> None:
        self._layout = layout

    def derive(
        self, window: RawWindow
    ) -> Mapping[Node, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        derived = {}
        for node in RACK_NODES:
            shape = (len(self._layout.row_server[node]), len(FEATURES_BY_NODE[node]))
            values = np.full(shape, np.nan)
            if node is Node.GPU:
                last = window.last[Scope.GPU].reshape(shape[0], -1)
                values[:, SM] = last[:, ACTIVITY]
                values[:, CELSIUS] = last[:, TEMPERATURE]
            derived[node] = (values, np.isfinite(values))
        return derived


@dataclass
class FakeProbe:
    """A probe of one server whose clock is `offset_s` ahead."""

    layout: RackLayout
    server: int
    offset_s: float = 0.0
    epoch: int = 1
    sequence: int = 0
    activity: float = 0.5
    cpu_s: float = field(default=0.0)
    """Counter of the server, folded by nobody."""

    @property
    def name(self) -> str:
        return self.layout.servers[self.server].probe

    def hello(self, **changed: object) -> bytes:
        place = self.layout.servers[self.server]
        fields: dict[str, object] = {
            "probe": self.name,
            "server": place.server,
            "rack": self.layout.rack,
            "epoch": self.epoch,
            "signals_hash": signals_hash(),
            "gpus": [f"g{i}" for i in range(place.num_gpus)],
            "replicas": [f"m{i}" for i in range(place.num_replicas)],
        }
        return encode(Hello(**(fields | changed)))  # type: ignore[arg-type]

    def blocks(self) -> dict[Scope, NDArray[np.float32]]:
        place = self.layout.servers[self.server]
        rows = {Scope.SERVER: 1, Scope.GPU: place.num_gpus, Scope.REPLICA: place.num_replicas}
        blocks = {
            scope: np.full((number, len(SIGNALS_BY_SCOPE[scope])), np.nan, np.float32)
            for scope, number in rows.items()
        }
        blocks[Scope.SERVER][0, CPU] = self.cpu_s
        blocks[Scope.GPU][:, ACTIVITY] = self.activity
        blocks[Scope.GPU][:, TEMPERATURE] = 60.0
        return blocks

    def sample(
        self,
        at_s: float,
        *,
        sequence: int | None = None,
        blocks: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> bytes:
        """Return a sample taken at a moment of hub time; counts on unless given a sequence."""
        if sequence is None:
            sequence, self.sequence = self.sequence, self.sequence + 1
            self.cpu_s += 1.0
        content = self.blocks() if blocks is None else blocks
        return encode(
            Sample(
                probe=self.name,
                epoch=self.epoch,
                sequence=sequence,
                sampled_at_s=at_s + self.offset_s,
                sent_at_s=at_s + self.offset_s,
                blocks={str(scope): block.tobytes() for scope, block in content.items()},
            )
        )

    def answer(self, body: bytes, at_s: float) -> bytes:
        ping = decode(body)
        assert isinstance(ping, Ping)
        return encode(
            Pong(
                probe=self.name,
                nonce=ping.nonce,
                ping_sent_at_s=ping.sent_at_s,
                received_at_s=at_s + self.offset_s,
                sent_at_s=at_s + self.offset_s,
            )
        )


def make_aggregator(
    layout: RackLayout, *, epoch: int = 1, config: AggregatorConfig | None = None
) -> Aggregator:
    return Aggregator(layout, TwoFeatures(layout), epoch=epoch, config=config)


def make_probes(layout: RackLayout, offset_s: float = 0.0) -> list[FakeProbe]:
    return [FakeProbe(layout, i, offset_s=offset_s) for i in range(len(layout.servers))]


def exchange_clocks(
    aggregator: Aggregator, probes: list[FakeProbe], now_s: float, way_s: float = 0.0002
) -> None:
    """Let every probe that is asked for its clock answer at once."""
    by_name = {probe.name: probe for probe in probes}
    for name, body in aggregator.pings(now_s):
        answer = by_name[name].answer(body, now_s + way_s)
        aggregator.ingest(answer, now_s + 2 * way_s)


def greet(aggregator: Aggregator, probes: list[FakeProbe], now_s: float = 0.0) -> None:
    for probe in probes:
        aggregator.ingest(probe.hello(), now_s)
    exchange_clocks(aggregator, probes, now_s)


def run_ticks(
    aggregator: Aggregator, probes: list[FakeProbe], start_s: float, num_ticks: int
) -> list[bytes]:
    """Sample every probe once in each tick of 0.1 s; return the frames."""
    frames = []
    for t in range(num_ticks):
        now_s = start_s + 0.1 * t
        for probe in probes:
            aggregator.ingest(probe.sample(now_s - 0.01), now_s - 0.005)
        frames += aggregator.tick(now_s)
    return frames
