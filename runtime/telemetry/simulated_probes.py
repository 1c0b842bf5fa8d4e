"""A simulated fleet of probes, of thousands of servers: to try an aggregator's set-up, or load it.

Time is the hub's and is given by the caller, so a run is the same for a seed whether it is played
in real time or faster. Every probe has a clock of its own that is off; frames are delayed, lost,
doubled, reordered and broken at given rates, and what was done is counted in `injected`.

Does not know: how frames travel (`transport.py`), or who reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import FloatArray
from .frames import SCHEMA_VERSION, Ping, Sample, decode, encode
from .raw_signal import Scope
from .reasons import Counts, Reason
from .signals import SIGNALS_BY_SCOPE
from .simulated.clocks import ClockShape, SimulatedClocks
from .simulated.faults import NO_FAULTS, Fate, Fates, FaultRates
from .simulated.layout import SimulatedLayout
from .simulated.load import LoadShape, SimulatedLoad
from .simulated.network import Delivery, NetworkShape, SimulatedNetwork
from .simulated.senders import ANSWER_S, PACKING_S, Sender, sampled_round, spoilt
from .simulated.signals import Blocks, SimulatedSignals

# What an aggregator counts for a fate.
_REASONS: dict[Fate, Reason] = {
    Fate.LOST: Reason.LOST,
    Fate.DUPLICATED: Reason.DUPLICATE,
    Fate.DELAYED: Reason.OUT_OF_ORDER,
    Fate.TORN: Reason.MALFORMED,
    Fate.OTHER_SCHEMA: Reason.WRONG_SCHEMA,
    Fate.INFINITE: Reason.NOT_FINITE,
    Fate.IMPOSSIBLE: Reason.OUT_OF_RANGE,
}
# Periods that a delayed frame comes too late, and that a probe takes to start again.
_DELAY_PERIODS = 1.5
_RESTART_PERIODS = 5
# s between two greetings of a probe
_HELLO_PERIOD_S = 5.0
# s by which a false clock jumps at most
_FALSE_JUMP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetShape:
    """How a simulated fleet behaves."""

    period_s: float = 0.1
    """Between two samples of a probe."""
    page_period_s: float = 1.0
    """Between two reads of an engine's metrics page."""
    load: LoadShape = field(default_factory=LoadShape)
    """How busy it is."""
    clocks: ClockShape = field(default_factory=ClockShape)
    """How far its clocks are off."""
    network: NetworkShape = field(default_factory=NetworkShape)
    """How long its frames travel."""
    faults: FaultRates = field(default_factory=FaultRates)
    """What goes wrong."""

    def __post_init__(self) -> None:
        for name in ("period_s", "page_period_s"):
            if getattr(self, name) <= 0:
                msg = f"{name} must be above 0, got {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the machines showed in one round, before anything was sent.

    The next round writes over the blocks: copy what is kept.
    """

    sampled_at_s: FloatArray
    """[servers]: in hub time."""
    blocks: Blocks
    """By scope [servers, entities, signals]."""


class SimulatedProbes:
    """Probes of a fleet; `advance` returns what arrives, `answer` takes pings."""

    def __init__(
        self, layout: SimulatedLayout, shape: FleetShape | None = None, seed: int = 0
    ) -> None:
        self.layout = layout
        self.shape = shape or FleetShape()
        self.injected = Counts(layout.server_name(s) for s in range(layout.num_servers))
        """What an aggregator has to count. A loss shows once the probe's next frame is out."""
        num_servers = layout.num_servers
        machines, faults, clocks, network = np.random.default_rng(seed).spawn(4)
        load = SimulatedLoad((num_servers, layout.num_replicas), machines, self.shape.load)
        counts = (num_servers, layout.num_gpus, layout.num_replicas)
        self._signals = SimulatedSignals(counts, machines, load, self.shape.page_period_s)
        self.clocks = SimulatedClocks(num_servers, clocks, self.shape.clocks)
        self._network = SimulatedNetwork(network, self.shape.network)
        self._faults_rng = faults
        self._fates = Fates(num_servers, faults, self.shape.faults)
        liars, frozen = faults.permutation(num_servers), self.shape.faults.num_frozen
        self.is_frozen = np.zeros(num_servers, dtype=np.bool_)
        """[servers]: probes that send the same values for ever."""
        self.is_frozen[liars[:frozen]] = True
        self.has_false_clock = np.zeros(num_servers, dtype=np.bool_)
        """[servers]: probes whose answers to pings jump about."""
        self.has_false_clock[liars[frozen : frozen + self.shape.faults.num_false_clocks]] = True
        self._senders = [Sender(layout, s, self.clocks) for s in range(num_servers)]
        self._servers = {sender.probe: s for s, sender in enumerate(self._senders)}
        self.phases_s = machines.uniform(0.0, self.shape.period_s, num_servers)
        """[servers]: when in a period each one samples, in hub time."""
        self._starts_again_at: dict[int, int] = {}  # round by server that is down
        self._num_rounds = 0
        self._frozen: dict[Scope, NDArray[np.float32]] = {}
        self.truth: Truth | None = None
        """The newest round."""

    def advance(self, until_s: float) -> list[Delivery]:
        """Return the frames that arrive until a moment, in order."""
        while self._num_rounds * self.shape.period_s < until_s:
            self._send_round()
            self._num_rounds += 1
        return self._network.arrived(until_s)

    @property
    def liars(self) -> list[str]:
        """Names of the probes that lie, in their values or about their clocks."""
        lies = self.is_frozen | self.has_false_clock
        return [self._senders[s].probe for s in np.flatnonzero(lies)]

    def calm(self) -> None:
        """Let nothing go wrong with frames from now on; liars go on lying."""
        self._fates = Fates(self.layout.num_servers, self._faults_rng, NO_FAULTS)

    def answer(self, probe: str, ping: bytes, sent_at_s: float) -> None:
        """Take a ping that was sent at a moment; its answer comes out of `advance`."""
        to_s, back_s = self._network.delays_s(2).tolist()
        body = self.pong(ping, sent_at_s + to_s)
        if body is not None:
            sender = self._senders[self._servers[probe]]
            arrives_at_s = sent_at_s + to_s + ANSWER_S + back_s
            self._network.send(arrives_at_s, sender.pong_subject, sender.rack, body)

    def pong(self, ping: bytes, received_at_s: float) -> bytes | None:
        """Return the answer to a ping that came at a moment of hub time; None of a probe down.

        Raises:
            ValueError: it is no ping.
        """
        asked = decode(ping)
        if not isinstance(asked, Ping):
            msg = f"ping must be a ping, got a {type(asked).__name__.lower()}"
            raise ValueError(msg)
        server = self._servers[asked.probe]
        if server in self._starts_again_at:
            return None
        is_lie = self.has_false_clock[server]
        jump_s = self._faults_rng.uniform(-_FALSE_JUMP_S, _FALSE_JUMP_S) if is_lie else 0.0
        return self._senders[server].pong(asked, received_at_s, jump_s)

    def _send_round(self) -> None:
        """Sample every machine once, and send what was read."""
        start_s = self._num_rounds * self.shape.period_s
        self._start_those_due()
        blocks = self._signals.step(start_s, self.shape.period_s)
        at_s = start_s + self.phases_s
        self.truth = Truth(sampled_at_s=at_s, blocks=blocks)
        sampled = sampled_round(self._told(blocks), at_s + self.clocks.offset_s(at_s))
        arrivals_s = (at_s + PACKING_S + self._network.delays_s(len(at_s))).tolist()
        fates = self._fates.draw().tolist()
        hello_every = max(1, round(_HELLO_PERIOD_S / self.shape.period_s))
        for s, sender in enumerate(self._senders):
            if s in self._starts_again_at:
                continue
            rack, arrives_at_s = sender.rack, arrivals_s[s]
            if sender.sequence == 0 or (self._num_rounds + s) % hello_every == 0:
                hello_s = arrives_at_s - PACKING_S / 2
                self._network.send(hello_s, sender.hello_subject, rack, sender.hello())
            # What happens to a probe's first frame cannot be seen from its second.
            fate = Fate(fates[s]) if sender.sequence else Fate.DELIVERED
            for late_s, body in self._bodies(fate, sender.sample(sampled)):
                self._network.send(arrives_at_s + late_s, sender.sample_subject, rack, body)
            if fate in _REASONS:
                self.injected.add(_REASONS[fate], sender.probe)
            elif fate is Fate.RESTARTED:
                self._starts_again_at[s] = self._num_rounds + _RESTART_PERIODS

    def _told(self, blocks: Blocks) -> Blocks:
        """Return what the probes say that they read: the frozen ones lie."""
        if not self.is_frozen.any():
            return blocks
        if not self._frozen:
            self._frozen = {scope: block[self.is_frozen] for scope, block in blocks.items()}
        told = {scope: block.copy() for scope, block in blocks.items()}
        for scope, block in told.items():
            block[self.is_frozen] = self._frozen[scope]
        return told

    def _bodies(self, fate: Fate, sample: Sample) -> Iterator[tuple[float, bytes]]:
        """Yield what is sent for a sample, and how much later."""
        if fate is Fate.LOST:
            return
        if fate in (Fate.INFINITE, Fate.IMPOSSIBLE):
            sample = self._spoilt(sample, fate)
        body = encode(sample)
        if fate is Fate.TORN:
            yield 0.0, body[: len(body) // 2]
        elif fate is Fate.OTHER_SCHEMA:
            named = {name: getattr(sample, name) for name in sample.__struct_fields__}
            yield 0.0, encode(Sample(**named | {"schema": SCHEMA_VERSION + 1}))
        yield _DELAY_PERIODS * self.shape.period_s if fate is Fate.DELAYED else 0.0, body
        if fate is Fate.DUPLICATED:
            yield 0.0, body

    def _spoilt(self, sample: Sample, fate: Fate) -> Sample:
        signals = SIGNALS_BY_SCOPE[Scope.GPU]
        place = int(self._faults_rng.integers(self.layout.num_gpus * len(signals)))
        high = signals[place % len(signals)].high
        value = np.inf if fate is Fate.INFINITE else 10.0 * high + 10.0
        return spoilt(sample, Scope.GPU, place, value)

    def _start_those_due(self) -> None:
        due = [s for s, at in self._starts_again_at.items() if at <= self._num_rounds]
        for s in due:
            del self._starts_again_at[s]
            self._senders[s].start_again()
            self._fates.rest(s)
        if due:
            self._signals.reset(np.array(due))
