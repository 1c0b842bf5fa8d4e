"""The aggregator of one rack: frames of probes in, a frame of what changed in the rack out.

Taking a sample costs its checks and one copy. Once a tick, for all servers at once: values are
checked and summed up, features derived, changes found, sketches fed, and what the hub does not
have is coded. Whatever comes in, nothing is raised, and what is not used is counted by reason.

Does not know: how frames travel (`service.py`), what features mean (`derivation.py`), or time
(it is told).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import FloatArray, Node
from ...env.state.registry import column, registry_hash
from .cell_scales import STEP, CellScales
from .change_points import ChangeConfig, ChangePoints
from .clock_rounds import ClockRounds
from .deltas import DeltaEncoder, dead_bands
from .frames import FrameError, Hello, Ping, Pong, Sample, decode, encode
from .probe_gate import Limits, ProbeGate
from .probe_trust import ProbeTrust
from .rack_frames import MAX_CHANGES, ChangeEntry, RackFrame, SketchEntry, ages_of
from .rack_layout import RACK_NODES, RackLayout
from .rack_samples import RackSamples, Summary
from .rack_sketches import RackSketches
from .raw_window import RawWindow
from .reasons import Counts, Reason
from .signals import signals_hash

BoolArray = NDArray[np.bool_]

_ROUND_TRIPS: Final = ("rtt_s", "rtt_jitter_s", "clock_error_s")
"""Features of servers that the aggregator itself measures."""


class Deriver(Protocol):
    """Makes features of raw signals."""

    def derive(self, window: RawWindow) -> Mapping[Node, tuple[FloatArray, BoolArray]]:
        """Return values and validity by node kind, [rows of the rack, features].

        The arrays are the caller's: the aggregator writes what it measures itself into them.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorConfig:
    """How an aggregator works."""

    dead_band_steps: float = 2.5
    """A value is sent when it is more than so many steps of `cell_scales.STEP` away: 1 %."""
    key_every_ticks: int = 50
    """Ticks from one key frame to the next."""
    sketch_span_ticks: int = 100
    """Ticks that a sketch is over; each feature's is sent once in that time."""
    sketch_every_ticks: int = 5
    """A tick of so many feeds the sketches."""
    least_change: float = 0.1
    """In scaled units (10 % of a share, 3 C, 49 % of a count): lesser changes are not reported."""
    limits: Limits = field(default_factory=Limits)
    change: ChangeConfig = field(default_factory=ChangeConfig)

    def __post_init__(self) -> None:
        for name in ("key_every_ticks", "sketch_span_ticks", "sketch_every_ticks"):
            if (value := getattr(self, name)) < 1:
                msg = f"{name} must be at least 1, got {value}"
                raise ValueError(msg)


class Aggregator:
    """Aggregates one rack. Used from one thread.

    Args:
        layout: the rack's servers.
        deriver: makes features of the rack's raw signals.
        epoch: start of the aggregator in any unit that grows.
        config: how it works.
        index: place among the aggregators of a fleet; spreads their key frames and sketches.
    """

    def __init__(
        self,
        layout: RackLayout,
        deriver: Deriver,
        *,
        epoch: int,
        config: AggregatorConfig | None = None,
        index: int = 0,
    ) -> None:
        self._config = config if config is not None else AggregatorConfig()
        self.layout = layout
        self._deriver = deriver
        self._epoch = epoch
        self._registry_hash = registry_hash()
        probes = tuple(place.probe for place in layout.servers)
        self._probes = {probe: i for i, probe in enumerate(probes)}
        self.counts = Counts(probes)
        """What was not used, by reason and probe."""
        self._gate = ProbeGate(len(probes), self._config.limits)
        self._rounds = ClockRounds(probes)
        self._trust = ProbeTrust(len(probes))
        self._samples = RackSamples(layout)
        self._is_distrusted = np.zeros(len(probes), np.bool_)
        self._trusted_at_s = np.full(len(probes), np.nan)
        scales = CellScales(layout)
        self._scales = scales
        self._raw = np.full(layout.num_cells, np.nan, np.float32)
        self._scaled = np.full(layout.num_cells, np.nan, np.float32)
        least_change = np.where(scales.is_watched, self._config.least_change, np.inf)[
            scales.feature_of
        ]
        self._changes = ChangePoints(
            layout.cell_server, least_change, self._config.change,
            max_changes=MAX_CHANGES,
        )  # fmt: skip
        self._encoder = DeltaEncoder(scales, dead_bands(scales, steps=self._config.dead_band_steps))
        self._sketches = RackSketches(
            layout,
            every_ticks=self._config.sketch_every_ticks,
            span_ticks=self._config.sketch_span_ticks,
            index=index,
        )
        self._num_ticks = index
        self._is_key_due = True
        self._sequence = 0
        self._round_trip_columns = [column(Node.SERVER, name) for name in _ROUND_TRIPS]

    @property
    def clocks(self) -> ClockRounds:
        """The clocks of the rack's probes."""
        return self._rounds

    @property
    def is_distrusted(self) -> BoolArray:
        """[servers]: whose values are masked since their probe lies."""
        return self._is_distrusted

    @property
    def largest_error(self) -> float:
        """Most by which a value at the hub is off, in scaled units, half a step included."""
        return float(self._encoder.largest_error.max()) + 0.5 * STEP

    def request_key(self) -> None:
        """Make the next frame a key."""
        self._is_key_due = True

    def pings(self, now_s: float) -> list[tuple[str, bytes]]:
        """Return the clock round trips that are due: probe and frame."""
        return self._rounds.pings(now_s)

    def ingest(self, body: bytes, received_at_s: float) -> None:
        """Take a frame of a probe; what cannot be used is counted."""
        try:
            message = decode(body)
        except FrameError as error:
            self.counts.add(error.reason)
            return
        if isinstance(message, Ping):  # a question for a probe
            self.counts.add(Reason.UNKNOWN_PROBE)
            return
        probe = self._probes.get(message.probe)
        if probe is None:
            self.counts.add(Reason.UNKNOWN_PROBE)
            return
        if isinstance(message, Sample):
            fault = self._take_sample(probe, message, received_at_s)
        elif isinstance(message, Pong):
            fault = self._rounds.take(probe, message, received_at_s)
        else:
            fault = self._take_hello(probe, message)
        if fault is not None:
            self.counts.add(fault, message.probe)

    def tick(self, now_s: float) -> list[bytes]:
        """Sum up what came since the tick before; return the frames for the hub."""
        summary = self._samples.close_window()
        self._count_faults(summary)
        self._rounds.refresh(now_s)
        faults = np.array([self._gate.num_time_faults(i) for i in range(len(self._probes))])
        self._is_distrusted = self._trust.update(summary, faults, self._rounds.clock.is_unreliable)
        is_new = (summary.num_samples > 0) & ~self._is_distrusted
        self._trusted_at_s[is_new] = summary.window.last_at_s[is_new]
        self._derive(summary.window)
        frame = self._frame(now_s, is_new)
        self._num_ticks += 1
        return [encode(frame)]

    def _take_hello(self, probe: int, hello: Hello) -> Reason | None:
        place = self.layout.servers[probe]
        if hello.signals_hash != signals_hash():
            return Reason.WRONG_SIGNALS
        if hello.rack != self.layout.rack or hello.server != place.server:
            return Reason.UNKNOWN_PROBE
        if (len(hello.gpus), len(hello.replicas)) != (place.num_gpus, place.num_replicas):
            return Reason.WRONG_SHAPE
        is_new = self._gate.greet(probe, hello.epoch)
        if is_new is None:
            return Reason.OLD_EPOCH
        if is_new:
            self._rounds.forget(probe)
            self._trust.forget(probe)
            self._samples.forget(probe)
        return None

    def _take_sample(self, probe: int, sample: Sample, received_at_s: float) -> Reason | None:
        gate = self._gate
        fault = gate.order_fault(probe, sample.epoch, sample.sequence, received_at_s)
        if gate.num_lost:
            self.counts.add(Reason.LOST, sample.probe, gate.num_lost)
            gate.num_lost = 0
        if fault is not None:
            return fault
        if not self._samples.fits(probe, sample.blocks):
            return Reason.WRONG_SHAPE
        at_s, bound_s = self._rounds.to_hub_s(probe, sample.sampled_at_s)
        if at_s != at_s:  # its clock is not known yet: it was sampled when it came, or before
            at_s, bound_s = received_at_s, 0.0
        moment = gate.admit(probe, at_s, bound_s, received_at_s)
        if isinstance(moment, Reason):
            return moment
        if not self._samples.put(probe, moment, sample.blocks):
            return Reason.DROPPED
        return None

    def _count_faults(self, summary: Summary) -> None:
        distrusted = np.where(self._is_distrusted, summary.num_samples, 0)
        for reason, numbers in (
            (Reason.NOT_FINITE, summary.num_not_finite),
            (Reason.OUT_OF_RANGE, summary.num_out_of_range),
            (Reason.UNRELIABLE, distrusted),
        ):
            for i in np.flatnonzero(numbers).tolist():
                self.counts.add(reason, self.layout.servers[i].probe, int(numbers[i]))

    def _derive(self, window: RawWindow) -> None:
        """Fill the rack's cells; NaN where a value is absent, padding or its probe lies."""
        derived = self._deriver.derive(window)
        layout = self.layout
        for node in RACK_NODES:
            values, is_valid = derived[node]
            if node is Node.SERVER:
                self._fill_round_trips(values, is_valid)
            is_shown = layout.is_real[node] & ~self._is_distrusted[layout.row_server[node]]
            self._scales.take(
                node, (values, is_valid), is_shown, raw=self._raw, scaled=self._scaled
            )

    def _fill_round_trips(self, values: FloatArray, is_valid: BoolArray) -> None:
        rounds = self._rounds
        measured = (rounds.least_round_trip_s, rounds.round_trip_spread_s, rounds.error_bound_s)
        for place, array in zip(self._round_trip_columns, measured, strict=True):
            values[:, place] = array
            is_valid[:, place] = np.isfinite(array)

    def _frame(self, now_s: float, is_new: BoolArray) -> RackFrame:
        changes = self._changes.update(self._scaled, is_new)
        is_key = self._is_key_due or self._num_ticks % self._config.key_every_ticks == 0
        delta = self._encoder.encode(self._scaled, is_key=is_key)
        self._is_key_due = False
        self._sequence += 1
        return RackFrame(
            rack=self.layout.rack,
            registry_hash=self._registry_hash,
            layout_hash=self.layout.hash,
            epoch=self._epoch,
            sequence=self._sequence,
            at_s=now_s,
            is_key=is_key,
            ages=ages_of(self._trusted_at_s, now_s),
            num_changed=delta.num_changed,
            num_escapes=delta.num_escapes,
            check=delta.check,
            body=delta.body,
            changes=[
                ChangeEntry(cell=cell, before=before, after=float(self._scaled[cell]))
                for cell, before in zip(
                    changes.signals.tolist(), changes.before.tolist(), strict=True
                )
            ],
            num_changes_left_out=changes.num_left_out,
            sketches=[
                SketchEntry(feature=feature, body=body)
                for feature, body in self._sketches.tick(self._raw, self._num_ticks)
            ],
        )
