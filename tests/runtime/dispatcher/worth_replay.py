"""A simulated fleet that places by worth, and a live dispatcher that is told what it sees."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from live_requests import make_facts

from trimtab.agents.heuristics import MARGINAL_VALUE
from trimtab.env.cluster import ClusterSpec
from trimtab.env.knobs import Knobs
from trimtab.env.masks import Mask
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import SHED
from trimtab.env.simulator.lookahead import candidates
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.request import (
    Ending,
    Placement,
    Refusal,
    RequestEnd,
    RequestFacts,
)

WORTH = MARGINAL_VALUE.knobs
CALM = FleetConfig(faults=FaultConfig(), scrape_drop_frac=0.0)
# What a metrics page says, and what follows from it.
PAGE = (
    *("running_requests", "waiting_requests", "kv_usage_frac", "cached_frac"),
    *("iteration_log_ratio", "prefill_frac", "scraped_at_s"),
    *("prefill_stretch", "decode_base_s", "slow_factor"),
)


def make_dispatcher(
    cluster: ClusterSpec, knobs: Knobs = WORTH, **options: object
) -> LiveDispatcher:
    dispatcher = LiveDispatcher(cluster, knobs=knobs, **options)  # type: ignore[arg-type]
    for replica in range(len(cluster.replicas)):
        dispatcher.set_available(replica, True, 0.0)
    return dispatcher


def end(at_s: float, tokens: int, ending: Ending = Ending.FINISHED) -> RequestEnd:
    return RequestEnd(ending=ending, status=200, ended_at_s=at_s, output_tokens=tokens)


@dataclass
class Decision:
    """One request as both gateways decided it."""

    simulated: int | None
    live: int | None
    simulated_candidates: dict[int, dict[str, float]]
    live_candidates: dict[int, dict[str, float]]
    tokens: np.ndarray
    """True and believed tokens of those that streamed at the replicas looked at, [n, 2]."""


class Replay:
    """A simulated fleet and a live dispatcher that is told all that its gateway sees."""

    def __init__(self, cluster: ClusterSpec, workload: Workload, *, tells_tokens: bool) -> None:
        self.fleet = SimulatedFleet(cluster, workload, CALM)
        self.fleet.reset(seed=0, knobs=WORTH)
        self.live = make_dispatcher(cluster, keep_every=1, num_kept=2)
        self.tells_tokens = tells_tokens
        self.placements: dict[int, Placement] = {}
        self.indices: dict[int, int] = {}
        self.heard: set[tuple[int, str]] = set()

    def decisions(self) -> Iterator[Decision]:
        for index, request in enumerate(self.fleet.workload.requests):
            at_s = float(request["arrival_s"])
            self.fleet.run_until(at_s)
            self._tell_events(at_s)
            for name in PAGE:
                self.live.views[name] = self.fleet.arrays.views[name]
            self.fleet.run_until(at_s + 1e-9)
            yield self._decide(index, at_s)

    def _tell_events(self, until_s: float) -> None:
        """Tell of first tokens and ends that came, in their order."""
        requests, events = self.fleet.requests, []
        for index, placement in list(self.placements.items()):
            for order, what in enumerate(("first_token_s", "finish_s")):
                at_s = float(requests[index][what])
                if 0.0 < at_s <= until_s and (index, what) not in self.heard:
                    events.append((at_s, order, index, placement))
                    self.heard.add((index, what))
        for at_s, order, index, placement in sorted(events, key=lambda event: event[:3]):
            if order == 0:
                self.live.first_token(placement, at_s)
            else:
                self.live.finish(placement, end(at_s, int(requests[index]["generated_tokens"])))
                del self.placements[index]

    def _rows(self, arrays: object, replica: int) -> np.ndarray:
        rows: np.ndarray = arrays.mirror_rows[replica]  # type: ignore[attr-defined]
        return rows[: int(arrays.mirrors["num_rows"][replica])]  # type: ignore[attr-defined]

    def _decide(self, index: int, at_s: float) -> Decision:
        arrays, live = self.fleet.arrays, self.live._arrays
        seen = {int(c["replica"]): c for c in candidates(arrays)}
        if self.tells_tokens:
            for replica in seen:
                true = {int(row["key"]): row for row in self._rows(arrays, replica)}
                for row in self._rows(live, replica):
                    row["generated_tokens"] = true[self.indices[int(row["key"])]][
                        "generated_tokens"
                    ]
                stepped_at_s = arrays.mirrors["stepped_at_s"][replica]
                live.mirrors["stepped_at_s"][replica] = stepped_at_s
                self.live.token_at_s[replica] = stepped_at_s
        request = self.fleet.requests[index]
        query = request["query"]
        facts = make_facts(
            index, at_s, input_tokens=int(query["input_tokens"]), priority=int(query["priority"]),
            expected_output_tokens=float(query["expected_output_tokens"]),
            ttft_slo_s=float(query["ttft_slo_s"]), tpot_slo_s=float(query["tpot_slo_s"]),
            weight=float(request["weight"]), blocks=np.zeros(0, np.uint64), session_hash=0,
        )  # fmt: skip
        simulated = None if request["status"] == SHED else int(request["replica"])
        chosen = self.live.dispatch(facts, at_s)
        (record,) = self.live.decisions.take()
        tokens = self._tokens(seen)
        live = chosen.replica if isinstance(chosen, Placement) else None
        if live != simulated:
            chosen = self._follow(chosen, facts, simulated, at_s)
        if isinstance(chosen, Placement):
            self.placements[index] = chosen
            self.indices[chosen.number] = index
        names = record.choices.dtype.names
        return Decision(
            simulated=simulated,
            live=live,
            simulated_candidates=seen,
            live_candidates={
                int(c["replica"]): {name: float(c[name]) for name in names} for c in record.choices
            },
            tokens=tokens,
        )

    def _follow(
        self, chosen: Placement | Refusal, facts: RequestFacts, replica: int | None, at_s: float
    ) -> Placement | Refusal | None:
        """Count a request where the simulated gateway sent it, and not where it was chosen."""
        if isinstance(chosen, Placement):
            self.live.finish(chosen, end(at_s, 0, Ending.ABORTED))
        if replica is None:
            return None
        self.live.views["mask"] = int(Mask.PLAN)
        self.live.views["mask"][replica] = 0
        self.live.set_knobs(WORTH.replace({"shed_enabled": 0.0}))
        counted = self.live.dispatch(facts, at_s)
        self.live.decisions.take()
        self.live.views["mask"] = 0
        self.live.set_knobs(WORTH)
        assert isinstance(counted, Placement)
        return counted

    def _tokens(self, replicas: Iterable[int]) -> np.ndarray:
        """Return true and believed tokens of what streams at some replicas."""
        found = []
        for replica in replicas:
            true = {int(row["key"]): row for row in self._rows(self.fleet.arrays, replica)}
            for row in self._rows(self.live._arrays, replica):
                index = self.indices.get(int(row["key"]))
                if index in true and not np.isnan(row["first_token_s"]):
                    found.append((true[index]["generated_tokens"], row["generated_tokens"]))
        return np.array(found, float).reshape(-1, 2)
