"""Records what any probe read, and plays a recording back: a fleet's telemetry without its GPUs.

A recording is one `.npz` file of plain arrays (no pickle) that names its signals, so that one of
an older table can still be played: signals that it lacks are absent, those that are gone are left
out. Counters are recorded as their sources gave them.

Does not know: where the samples came from, or how they are sent.
"""

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ..signals import SIGNALS_BY_SCOPE, Scope
from .probe import FloatArray, Members, Probe, ProbeUnavailableError, Readings

BUNDLED_RECORDING: Final = Path(__file__).parent / "data" / "synthetic-2gpu.npz"
"""A short recording that comes with the package; its README says how it was made."""
_FORMAT: Final = "trimtab-probe-recording-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Samples of one server at rising moments.

    Shapes: T samples; `times_s` [T], `values[scope]` [T, entities, signals of the scope].
    """

    members: Members
    times_s: FloatArray
    """Since the first sample."""
    values: dict[Scope, FloatArray]

    def __post_init__(self) -> None:
        if not len(self.times_s):
            msg = "a recording must hold at least one sample, got none"
            raise ValueError(msg)
        if (np.diff(self.times_s) < 0).any():
            msg = "times_s of a recording must rise; a sample is before the one ahead of it"
            raise ValueError(msg)

    def save(self, path: Path) -> None:
        """Write the recording to a file."""
        arrays = {
            "format": np.array(_FORMAT),
            "times_s": self.times_s,
            "gpus": np.array(self.members.gpus, dtype=str),
            "replicas": np.array(self.members.replicas, dtype=str),
        }
        for scope, signals in SIGNALS_BY_SCOPE.items():
            arrays[f"{scope}_signals"] = np.array([signal.name for signal in signals])
            arrays[f"{scope}_values"] = self.values[scope]
        np.savez_compressed(path, allow_pickle=False, **arrays)


def load_recording(path: Path) -> Recording:
    """Read a recording from a file.

    Raises: ProbeUnavailableError if there is none, or it is broken.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["format"]) != _FORMAT:
                msg = f"format {str(arrays['format'])!r}, expected {_FORMAT!r}"
                raise ValueError(msg)
            return _recording_of(dict(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        msg = f"recording {str(path)!r} cannot be read: {error}; make one with `Recorder`"
        raise ProbeUnavailableError(msg) from error


def _recording_of(arrays: dict[str, FloatArray]) -> Recording:
    members = Members(
        gpus=tuple(str(name) for name in arrays["gpus"]),
        replicas=tuple(str(name) for name in arrays["replicas"]),
    )
    times_s = arrays["times_s"]
    values = {}
    for scope, signals in SIGNALS_BY_SCOPE.items():
        recorded = arrays[f"{scope}_values"]
        names = [str(name) for name in arrays[f"{scope}_signals"]]
        expected = (len(times_s), members.num_rows(scope), len(names))
        if recorded.shape != expected:
            msg = f"{scope}_values has shape {recorded.shape}, expected {expected}"
            raise ValueError(msg)
        values[scope] = np.full((*expected[:2], len(signals)), np.nan)
        for column, signal in enumerate(signals):
            if signal.name in names:
                values[scope][:, :, column] = recorded[:, :, names.index(signal.name)]
    return Recording(members=members, times_s=times_s, values=values)


class RecordedProbe:
    """Plays a recording in its own time, again and again."""

    def __init__(
        self,
        recording: Recording | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Play a recording, the bundled one if none is given."""
        self._recording = recording if recording is not None else load_recording(BUNDLED_RECORDING)
        self._clock = clock
        self._started_at_s: float | None = None

    @property
    def members(self) -> Members:
        """Those that were recorded."""
        return self._recording.members

    def sample(self) -> Readings:
        """Return the last recorded sample at or before this moment of the recording."""
        now_s = self._clock()
        if self._started_at_s is None:
            self._started_at_s = now_s
        times_s = self._recording.times_s
        # the last sample lasts as long as a sample does on average
        lap_s = times_s[-1] * len(times_s) / max(1, len(times_s) - 1)
        at_s = np.mod(now_s - self._started_at_s, lap_s) if lap_s > 0 else 0.0
        # half a microsecond, so that clocks that meet the recorded moments are not a sample behind
        index = int(np.searchsorted(times_s, at_s + 5e-7, side="right")) - 1
        return {scope: values[index].copy() for scope, values in self._recording.values.items()}

    def close(self) -> None:
        """Nothing is held."""


class Recorder:
    """A probe that hands on what another one reads, and keeps it."""

    def __init__(self, probe: Probe, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._times_s: list[float] = []
        self._samples: list[Readings] = []

    @property
    def members(self) -> Members:
        """Those of the probe."""
        return self._probe.members

    def sample(self) -> Readings:
        """Sample the probe, and keep a copy."""
        at_s = self._clock()
        readings = self._probe.sample()
        self._times_s.append(at_s)
        self._samples.append({scope: values.copy() for scope, values in readings.items()})
        return readings

    def close(self) -> None:
        """Close the probe; what was recorded stays."""
        self._probe.close()

    def recording(self) -> Recording:
        """Return what was read so far.

        Raises: ValueError if nothing was.
        """
        times_s = np.array(self._times_s)
        return Recording(
            members=self.members,
            times_s=times_s - times_s[0] if len(times_s) else times_s,
            values={scope: np.stack([sample[scope] for sample in self._samples]) for scope in Scope}
            if self._samples
            else {},
        )
