"""What a gateway writes down of its life: requests as a trace, windows, and decisions in full.

Does not know: how any of it is written (`runtime/recorder`, `runtime/decision_log`), or who reads.
"""

import json
from pathlib import Path

from ..decision_log.decision_log import Circumstances, DecisionLog
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..recorder.recorder import Recorder
from .steering import Steering


class Journal:
    """The recorder and the decision log of one gateway; either may be missing."""

    def __init__(
        self,
        dispatcher: LiveDispatcher,
        steering: Steering,
        *,
        record_dir: Path | None,
        decisions_dir: Path | None,
    ) -> None:
        """Become a listener of the dispatcher where there is something to write."""
        names = [replica.name for replica in dispatcher.cluster.replicas]
        self._dispatcher, self._steering = dispatcher, steering
        self.recorder = None if record_dir is None else Recorder(record_dir, names)
        self.decisions: DecisionLog | None = None
        if decisions_dir is not None:
            self.decisions = DecisionLog(decisions_dir, names, circumstances=self._circumstances)
        dispatcher.listeners += [part for part in (self.recorder, self.decisions) if part]

    def start(self) -> None:
        """Begin to write."""
        if self.recorder is not None:
            self.recorder.start()
        if self.decisions is not None:
            self.decisions.start()

    def look(self) -> None:
        """Take the decisions that the dispatcher kept; often, as it keeps few."""
        if self.decisions is not None:
            self.decisions.keep(self._dispatcher.decisions.take())

    def window(self, now_s: float) -> None:
        """Note who ruled the window that ends."""
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
        if self.recorder is not None:
            self.recorder.close()
        if self.decisions is not None:
            self.decisions.close()
