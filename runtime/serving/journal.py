"""What a gateway writes down of its life: requests as a trace, windows, and decisions in full.

Does not know: how any of it is written (`runtime/recorder`, `runtime/decision_log`), or who reads.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ...env.state.cluster_state import ClusterState
from ..decision_log.decision_log import Circumstances, DecisionLog
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..engines.live_replica import LiveReplica
from ..live_fleet.state_codec import encode_state
from ..recorder.recorder import Recorder
from ..tracing.span_writer import SpanWriter, otlp_exporter
from .steering import Steering


class Journal:
    """Recorder, decision log and span writer of one gateway; any may be missing."""

    def __init__(
        self,
        dispatcher: LiveDispatcher,
        steering: Steering,
        *,
        record_dir: Path | None,
        decisions_dir: Path | None,
        spans_url: str | None = None,
        replicas: Sequence[LiveReplica] = (),
    ) -> None:
        """Become a listener of the dispatcher where there is something to write.

        Spans of requests to `replicas` are posted to an OTLP collector at `spans_url`.

        Raises: MissingExtraError for spans without OpenTelemetry.
        """
        names = [replica.name for replica in dispatcher.cluster.replicas]
        self._dispatcher, self._steering = dispatcher, steering
        self.recorder = None if record_dir is None else Recorder(record_dir, names)
        self.decisions: DecisionLog | None = None
        if decisions_dir is not None:
            self.decisions = DecisionLog(decisions_dir, names, circumstances=self._circumstances)
        self.spans: SpanWriter | None = None
        if spans_url is not None:
            self.spans = SpanWriter(
                otlp_exporter(spans_url), replicas, circumstances=self._circumstances
            )
        dispatcher.listeners += [part for part in self._parts if part is not None]

    @property
    def _parts(self) -> tuple[Recorder | None, DecisionLog | None, SpanWriter | None]:
        return self.recorder, self.decisions, self.spans

    def start(self) -> None:
        """Begin to write."""
        for part in self._parts:
            if part is not None:
                part.start()

    def look(self) -> None:
        """Take the decisions that the dispatcher kept; often, as it keeps few."""
        if self.decisions is None and self.spans is None:
            return
        records = self._dispatcher.decisions.take()
        if self.decisions is not None:
            self.decisions.keep(records)
        if self.spans is not None:
            self.spans.keep(records)

    def window(self, now_s: float, state: Callable[[], ClusterState]) -> None:
        """Note who ruled the window that ends, and the state at its end, if anybody records."""
        if self.recorder is None:
            return
        steering = self._steering
        newest = steering.records[-1] if steering.records else None
        self.recorder.note_window(
            {
                "at_s": now_s,
                "ruler": str(steering.ruler),
                "doubt": str(steering.doubt or ""),
                "gain": newest.gain.mean if newest is not None else 0.0,
                "gain_samples": newest.gain.num_sampled if newest is not None else 0,
                "override_size": newest.override_size if newest is not None else 0.0,
                "knob_version": self._dispatcher.knob_version,
                "policy_version": self._dispatcher.policy_version,
                "state": encode_state(state()),
                **{f"knob_{name}": value for name, value in steering.knobs.as_dict().items()},
            }
        )

    def _circumstances(self) -> Circumstances:
        steering = self._steering
        newest = steering.records[-1] if steering.records else None
        attention = {} if newest is None else dict(newest.attention)
        return Circumstances(
            ruler=str(steering.ruler),
            doubt=str(steering.doubt or ""),
            override_size=0.0 if newest is None else newest.override_size,
            attention=json.dumps(attention) if attention else "",
        )

    def close(self) -> None:
        """Write what is left."""
        self.look()
        for part in self._parts:
            if part is not None:
                part.close()
