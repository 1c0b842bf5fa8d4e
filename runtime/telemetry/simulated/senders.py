"""What each simulated probe puts into frames: who it is, its epoch, its sequence, its clock.

Does not know: when a frame arrives, or whether (`..simulated_probes`).
"""

from dataclasses import dataclass

import numpy as np

from ....env.state.feature import FloatArray
from .. import subjects
from ..frames import Hello, Ping, Pong, Sample, encode
from ..signals import Scope, signals_hash
from .clocks import SimulatedClocks
from .layout import SimulatedLayout
from .signals import Blocks

# s between a sample and its frame: reading the machine, packing
PACKING_S = 0.001
# s that a probe takes to answer a ping
ANSWER_S = 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRound:
    """One sample of every server, packed."""

    shown_at_s: list[float]
    """[servers]: when it was taken, by the probe's own clock."""
    packed: dict[str, tuple[bytes, int]]
    """By scope: all servers' values, and how many bytes are one server's."""

    def blocks_of(self, server: int) -> dict[str, bytes]:
        """Return a server's blocks."""
        return {
            scope: packed[server * size : (server + 1) * size]
            for scope, (packed, size) in self.packed.items()
        }


def sampled_round(blocks: Blocks, shown_at_s: FloatArray) -> SampledRound:
    """Return a round of samples of given values and moments."""
    packed: dict[str, tuple[bytes, int]] = {
        scope.value: (np.ascontiguousarray(block, dtype="<f4").tobytes(), block[0].size * 4)
        for scope, block in blocks.items()
    }
    return SampledRound(shown_at_s=shown_at_s.tolist(), packed=packed)


class Sender:
    """One probe."""

    def __init__(self, layout: SimulatedLayout, server: int, clocks: SimulatedClocks) -> None:
        self._server = server
        self._clocks = clocks
        self._gpus = layout.gpu_names(server)
        self._replicas = layout.replica_names(server)
        self.probe = layout.server_name(server)
        self.rack = layout.rack_of(server)
        self.sample_subject = subjects.sample(self.rack)
        self.hello_subject = subjects.hello(self.rack)
        self.pong_subject = subjects.pong(self.rack)
        self.epoch = 1
        self.sequence = 0
        """Of its next sample."""

    def hello(self) -> bytes:
        """Return who it is."""
        return encode(
            Hello(
                probe=self.probe,
                server=self.probe,
                rack=self.rack,
                epoch=self.epoch,
                signals_hash=signals_hash(),
                gpus=self._gpus,
                replicas=self._replicas,
            )
        )

    def sample(self, sampled: SampledRound) -> Sample:
        """Return its sample of a round."""
        shown_s = sampled.shown_at_s[self._server]
        sample = Sample(
            probe=self.probe,
            epoch=self.epoch,
            sequence=self.sequence,
            sampled_at_s=shown_s,
            sent_at_s=shown_s + PACKING_S,
            blocks=sampled.blocks_of(self._server),
        )
        self.sequence += 1
        return sample

    def pong(self, ping: Ping, received_at_s: float, jump_s: float = 0.0) -> bytes:
        """Return the answer to a ping that came at a moment of hub time.

        `jump_s` is added to what its clock shows: a lie.
        """
        shown_s = self._clocks.shown_s
        return encode(
            Pong(
                probe=self.probe,
                nonce=ping.nonce,
                ping_sent_at_s=ping.sent_at_s,
                received_at_s=shown_s(self._server, received_at_s) + jump_s,
                sent_at_s=shown_s(self._server, received_at_s + ANSWER_S) + jump_s,
            )
        )

    def start_again(self) -> None:
        """Begin a new epoch."""
        self.epoch += 1
        self.sequence = 0


def spoilt(sample: Sample, scope: Scope, place: int, value: float) -> Sample:
    """Return a sample in which one value of a scope is another."""
    values = np.frombuffer(sample.blocks[scope], dtype="<f4").copy()
    values[place] = value
    fields = {name: getattr(sample, name) for name in sample.__struct_fields__}
    return Sample(**fields | {"blocks": sample.blocks | {scope.value: values.tobytes()}})
