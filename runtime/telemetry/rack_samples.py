"""The samples of a rack since its last tick, in arrays that are made once.

Putting a sample copies its blocks; everything else is done for all servers at once, at the tick.

Does not know: whose samples may be put (`probe_gate.py`), or what is derived from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from . import window_kernel
from .rack_layout import RackLayout
from .raw_window import RawArray, RawWindow
from .signals import SIGNALS_BY_SCOPE, Kind, Scope

MAX_SAMPLES: Final = 16
"""Samples of a server that a tick can hold; of more, the newest count."""
_VALUE_BYTES: Final = 4
_STATISTICS: Final = ("previous", "last", "minimum", "maximum", "mean")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """What a tick's samples come to.

    Shapes: S servers.
    """

    window: RawWindow
    """Its arrays are written over by the tick after the next."""
    num_samples: NDArray[np.int64]
    """[S]: samples in this tick."""
    num_not_finite: NDArray[np.int64]
    """[S]: infinite values."""
    num_out_of_range: NDArray[np.int64]
    """[S]: values outside their signal's range."""
    num_counters: NDArray[np.int64]
    """[S]: counters with a value in this tick's newest sample and the one before it."""
    num_moved: NDArray[np.int64]
    """[S]: of them, those that changed."""
    num_fell: NDArray[np.int64]
    """[S]: of them, those that went down."""


class _ScopeSamples:
    """Samples of one scope."""

    def __init__(self, scope: Scope, layout: RackLayout) -> None:
        signals = SIGNALS_BY_SCOPE[scope]
        shape = (len(layout.servers), layout.num_entities[scope], len(signals))
        self.samples = np.full((shape[0], MAX_SAMPLES, *shape[1:]), np.nan, dtype="<f4")
        self.bytes = self.samples.data.cast("B")
        self.row_bytes = shape[1] * shape[2] * _VALUE_BYTES
        self.arrays: dict[str, RawArray] = {
            name: np.full(shape, np.nan, np.float32) for name in _STATISTICS
        }
        self.low = np.array([signal.low for signal in signals], np.float32)
        self.high = np.array([signal.high for signal in signals], np.float32)
        self.is_counter = np.array([signal.kind is Kind.COUNTER for signal in signals])

    def swap(self, has_samples: NDArray[np.bool_]) -> None:
        """Make the newest sample the previous one."""
        arrays = self.arrays
        arrays["previous"], arrays["last"] = arrays["last"], arrays["previous"]
        quiet = ~has_samples
        arrays["last"][quiet] = arrays["previous"][quiet]


class RackSamples:
    """Takes samples one by one and sums them up at the tick."""

    def __init__(self, layout: RackLayout) -> None:
        num_servers = len(layout.servers)
        self._scopes = {scope: _ScopeSamples(scope, layout) for scope in Scope}
        self._num_samples = np.zeros(num_servers, np.int64)
        self._newest_at_s = np.full(num_servers, np.nan)
        self._last_at_s = np.full(num_servers, np.nan)
        self._block_bytes: list[dict[str, int]] = [
            {
                str(scope): number * len(SIGNALS_BY_SCOPE[scope]) * _VALUE_BYTES
                for scope, number in (
                    (Scope.SERVER, 1),
                    (Scope.GPU, place.num_gpus),
                    (Scope.REPLICA, place.num_replicas),
                )
            }
            for place in layout.servers
        ]

    def fits(self, server: int, blocks: Mapping[str, bytes]) -> bool:
        """Say whether blocks are of known scopes, and of the size that the layout promises."""
        expected = self._block_bytes[server]
        return all(len(block) == expected.get(scope, -1) for scope, block in blocks.items())

    def put(self, server: int, at_s: float, blocks: Mapping[str, bytes]) -> bool:
        """Take a sample; return False if another of this tick had to make room for it.

        A scope without a block is absent. Blocks must fit (`fits`), and `at_s`, in hub time, must
        not be before the server's newest sample.
        """
        slot = int(self._num_samples[server])
        has_room = slot < MAX_SAMPLES
        if has_room:
            self._num_samples[server] += 1
        else:
            slot = MAX_SAMPLES - 1
        for scope, one in self._scopes.items():
            block = blocks.get(scope)
            if block is None:
                one.samples[server, slot] = np.nan
            else:
                start = (server * MAX_SAMPLES + slot) * one.row_bytes
                one.bytes[start : start + len(block)] = block
        self._newest_at_s[server] = at_s
        return has_room

    def forget(self, server: int) -> None:
        """Forget a server's samples, as at a restart of its probe: its counters began anew."""
        self._num_samples[server] = 0
        self._newest_at_s[server] = self._last_at_s[server] = np.nan
        for one in self._scopes.values():
            one.arrays["last"][server] = np.nan

    def close_window(self) -> Summary:
        """Sum the samples up and begin a new window."""
        num_samples = self._num_samples.copy()
        has_samples = num_samples > 0
        previous_at_s = self._last_at_s.copy()
        self._last_at_s[has_samples] = self._newest_at_s[has_samples]
        faults = np.zeros((len(num_samples), 2), np.int64)
        counters = np.zeros((len(num_samples), 3), np.int64)
        for one in self._scopes.values():
            one.swap(has_samples)
            arrays = one.arrays
            window_kernel.summarise(
                one.samples, num_samples, one.low, one.high, one.is_counter,
                arrays["previous"], arrays["last"], arrays["minimum"], arrays["maximum"],
                arrays["mean"], faults, counters,
            )  # fmt: skip
        self._num_samples[:] = 0
        return Summary(
            window=self._window(previous_at_s),
            num_samples=num_samples,
            num_not_finite=faults[:, window_kernel.NOT_FINITE],
            num_out_of_range=faults[:, window_kernel.OUT_OF_RANGE],
            num_counters=counters[:, window_kernel.PRESENT],
            num_moved=counters[:, window_kernel.MOVED],
            num_fell=counters[:, window_kernel.FELL],
        )

    def _window(self, previous_at_s: NDArray[np.float64]) -> RawWindow:
        def of(name: str) -> dict[Scope, RawArray]:
            return {scope: one.arrays[name] for scope, one in self._scopes.items()}

        return RawWindow(
            last=of("last"),
            minimum=of("minimum"),
            maximum=of("maximum"),
            mean=of("mean"),
            previous_last=of("previous"),
            last_at_s=self._last_at_s.copy(),
            previous_at_s=previous_at_s,
        )
