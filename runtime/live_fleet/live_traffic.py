"""The requests of a live evaluation, and what came of them: a load of its own, or what others send.

With a load, each policy of a round meets the same arrivals, and latencies are those of the load's
clients. With traffic that comes anyhow, there are only the gateway's counts.

Does not know: policies.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...env.fleet import WindowOutcome
from ...env.kpis import Kpis
from ...env.scenario import Part, Scenario
from ...env.state.feature import FloatArray
from ...traces.schema import RequestTrace
from ...traces.transform import separate_copies, with_default_limits
from ..load.load_process import LoadProcess
from ..load.player import LoadConfig
from ..load.results import is_met, tpot_s

_SHED_STATUS = 429


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """What came of the requests of one policy's turn."""

    kpis: Kpis
    ttft_s: FloatArray
    """Of every request that got a token; empty where nobody measured it."""


class Turn(Protocol):
    """The requests of one policy's turn."""

    @property
    def is_over(self) -> bool:
        """Whether all of them have come to their end."""
        ...

    def outcome(self, windows: Sequence[WindowOutcome]) -> TurnOutcome:
        """Return what came of them, and of the gateway's windows meanwhile."""
        ...

    def close(self) -> None:
        """Send nothing more."""
        ...


class Traffic(Protocol):
    """Where the requests of an evaluation come from."""

    @property
    def name(self) -> str:
        """What is played, for the report."""
        ...

    def begin(self, round_index: int, turn_index: int) -> Turn:
        """Let the requests of a turn come; those of one round are alike."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedTraffic:
    """A scenario's workloads, sent through the gateway's own port by a process of their own."""

    scenario: Scenario
    rate_rps: float
    load: LoadConfig
    part: Part = Part.TEST

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.scenario.name

    def trace(self, round_index: int, turn_index: int) -> RequestTrace:
        """Return the requests of a turn.

        Those of one round arrive alike; their prompts share nothing with those of other turns, so
        no policy finds what another has cached.
        """
        scenario, levels = self.scenario, self.scenario.levels
        trace = scenario.requests(self.part, round_index, rate_rps=self.rate_rps)
        limited = with_default_limits(trace, levels.ttft_slo_s, levels.tpot_slo_s)
        number = (time.time_ns() >> 20) + (round_index << 8) + turn_index
        return separate_copies(limited, np.full(len(limited), number, np.int64))

    def begin(self, round_index: int, turn_index: int) -> "PlayedTurn":
        """Make the requests and begin to send them."""
        return PlayedTurn(self.trace(round_index, turn_index), self.load)


class PlayedTurn:
    """One load."""

    def __init__(self, trace: RequestTrace, load: LoadConfig) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="trimtab-load-")
        try:
            self._process = LoadProcess(trace, load, Path(self._directory.name))
        except BaseException:
            self._directory.cleanup()
            raise
        self._process.begin()

    @property
    def is_over(self) -> bool:
        """See `Turn`."""
        return self._process.is_over

    def outcome(self, windows: Sequence[WindowOutcome]) -> TurnOutcome:
        """See `Turn`."""
        results = self._process.results()
        ttft = results["first_s"] - results["due_s"]
        is_answered = (results["status"] == 200) & np.isfinite(ttft)
        return TurnOutcome(client_kpis(results), ttft[is_answered])

    def close(self) -> None:
        """See `Turn`."""
        self._process.close()
        self._directory.cleanup()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComingTraffic:
    """Whatever others send."""

    span_s: float
    """Length of a turn."""
    clock: Callable[[], float] = time.monotonic
    name: str = "traffic that came"

    def begin(self, round_index: int, turn_index: int) -> "ComingTurn":
        """Begin to count."""
        return ComingTurn(self.clock() + self.span_s, self.clock)


@dataclass(frozen=True, slots=True)
class ComingTurn:
    """Whatever comes until a moment."""

    end_s: float
    clock: Callable[[], float]

    @property
    def is_over(self) -> bool:
        """See `Turn`."""
        return self.clock() >= self.end_s

    def outcome(self, windows: Sequence[WindowOutcome]) -> TurnOutcome:
        """See `Turn`."""
        return TurnOutcome(gateway_kpis(windows), np.zeros(0))

    def close(self) -> None:
        """See `Turn`."""


def client_kpis(results: np.ndarray) -> Kpis:
    """Return the indicators of what a load's clients saw; RESULT_DTYPE [N].

    Raises:
        ValueError: there is no request.
    """
    if results.size == 0:
        msg = "cannot compute indicators of a load without requests; got 0 requests"
        raise ValueError(msg)
    met, weight = is_met(results), results["weight"]
    is_shed, is_whole = results["status"] == _SHED_STATUS, results["is_whole"] != 0
    ttft = np.where(results["status"] == 200, results["first_s"] - results["due_s"], np.nan)
    tpot = tpot_s(results)[results["output_tokens"] > 1]
    span_s = max(float(results["due_s"][-1]), 1e-9)
    return _kpis(
        num_requests=results.size,
        goodput_frac=float(weight[met].sum() / weight.sum()),
        goodput_rps=float(met.sum() / span_s),
        slo_violation_frac=float(1.0 - met.mean()),
        shed_frac=float(is_shed.mean()),
        failed_frac=float((~is_whole & ~is_shed).mean()),
        ttft_p50_s=_percentile(ttft, 50),
        ttft_p99_s=_percentile(ttft, 99),
        tpot_p50_s=_percentile(tpot, 50),
        tpot_p99_s=_percentile(tpot, 99),
        e2e_p99_s=_percentile((results["end_s"] - results["due_s"])[is_whole], 99),
    )


def gateway_kpis(windows: Sequence[WindowOutcome]) -> Kpis:
    """Return the indicators that a gateway's counts allow: no latencies, no unweighted goodput.

    Requests are counted where they ended, so some came before the turn, and as many are left open.

    Raises:
        ValueError: no request arrived.
    """
    num_arrived = sum(window.num_arrived for window in windows)
    weight = sum(window.arrived_weight for window in windows)
    if num_arrived == 0:
        msg = "no request arrived in a turn; send some, or let the evaluation play a load"
        raise ValueError(msg)
    credit = sum(window.credit for window in windows)
    return _kpis(
        num_requests=num_arrived,
        goodput_frac=credit / weight,
        shed_frac=sum(window.num_shed for window in windows) / num_arrived,
        failed_frac=sum(window.num_failed for window in windows) / num_arrived,
    )


def _kpis(*, num_requests: int, goodput_frac: float, **known: float) -> Kpis:
    """Return indicators; what is not known is NaN."""
    names = (
        *("goodput_rps", "slo_violation_frac", "shed_frac", "failed_frac", "ttft_p50_s"),
        *("ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p99_s", "output_tokens_per_kwh"),
        *("prefix_hit_frac", "num_preemptions", "energy_kwh", "idle_kwh", "prefill_kwh"),
        *("decode_kwh", "cost_usd", "carbon_kg"),
    )
    values = dict.fromkeys(names, float("nan")) | known
    return Kpis(num_requests=num_requests, goodput_frac=goodput_frac, **values)


def _percentile(values: np.ndarray, percent: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, percent)) if known.size else float("nan")
