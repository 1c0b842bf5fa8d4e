"""Why the gateway placed a request where it did: its candidates and what each would have cost.

Goes over the very view, prefix hits, cursor and random state that the gateway had at that moment.

Does not know: what happened to the request afterwards (`request_life.py`).
"""

from dataclasses import dataclass

import numpy as np

from .dispatch import (
    QUERY_DTYPE,
    cache_aware_costs,
    can_take,
    explain,
    next_uniform,
    predicted_ttft_s,
)
from .lookahead.decide import WORTH_TERM_NAMES, worth_terms
from .lookahead.settings import is_by_worth
from .simulator.layout import SimulationArrays

# Rules of the cache-aware gate, by `dispatch.cache_aware_costs`, and the term that each goes by.
GATE_RULES = (
    ("shortest queue, since the load is out of balance", "outstanding_requests"),
    ("best match in a prefix cache", "prefix_miss"),
    ("emptiest prefix cache, since no match is good enough", "cached_tokens"),
)
COST_RULE = "lowest cost"
LOOKAHEAD_RULE = "largest expected gain in goodput"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that could have taken the request."""

    replica: int
    """Row in the cluster's replicas."""
    name: str
    cost: float
    """Sum of the terms."""
    terms: dict[str, float]
    """Parts of the cost by name; those that are 0 are left out."""
    cached_tokens: int
    """Prompt tokens in its prefix cache."""
    predicted_ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One decision of the gateway about one request."""

    at_s: float
    rule: str
    """By what the cheapest was told."""
    chosen: str | None
    """Name of the replica, None if the request was refused."""
    num_unable: int
    """Replicas that were down, did not fit the request, or were not drawn."""
    candidates: tuple[Candidate, ...]
    """The cheapest first; of equal ones, the one that the gateway prefers."""

    @property
    def winner(self) -> Candidate | None:
        """The candidate that was chosen."""
        return next((c for c in self.candidates if c.name == self.chosen), None)

    @property
    def runner_up(self) -> Candidate | None:
        """The cheapest of those that were not chosen."""
        return next((c for c in self.candidates if c.name != self.chosen), None)

    @property
    def advantages(self) -> dict[str, float]:
        """How much less the winner costs than the runner-up, by term, the largest first."""
        winner, other = self.winner, self.runner_up
        if winner is None or other is None:
            return {}
        names = dict.fromkeys((*winner.terms, *other.terms))
        gains = {n: other.terms.get(n, 0.0) - winner.terms.get(n, 0.0) for n in names}
        return {n: g for n, g in sorted(gains.items(), key=lambda item: -abs(item[1])) if g}


def _drawn(
    view: np.ndarray,
    query: np.ndarray,
    knobs: np.ndarray,
    bias: np.ndarray,
    random_state: np.ndarray,
) -> list[int]:
    """Return the replicas that the gateway looks at, in its order; moves the random state on."""
    num_replicas, num_draws = view.size, int(knobs["num_choices"][0])
    order = list(range(num_replicas))
    if num_draws > 0:
        first = int(next_uniform(random_state) * num_replicas)
        offsets = [0]
        for _ in range(num_draws - 1):
            offsets.append(1 + int(next_uniform(random_state) * (num_replicas - 1)))
        order = list(dict.fromkeys((first + offset) % num_replicas for offset in offsets))
    return [r for r in order if can_take(view, query[0], bias, r)]


def _looked_at(
    arrays: SimulationArrays, place: int, num_replicas: int
) -> tuple[list[int], list[dict[str, float]]]:
    """Return the replicas that were looked at, and what speaks against each."""
    terms: list[dict[str, float]] = [{} for _ in range(num_replicas)]
    seen = arrays.seen_choices[place]
    seen = seen[seen["replica"] >= 0]
    cost_weight = float(arrays.knobs["cost_weight"][0])
    for choice, values in zip(seen, worth_terms(seen, cost_weight), strict=True):
        parts = zip(WORTH_TERM_NAMES, values, strict=True)
        terms[int(choice["replica"])] = {name: float(value) for name, value in parts if value}
    return [int(choice["replica"]) for choice in seen], terms


def _costs(
    arrays: SimulationArrays, place: int, query: np.ndarray, random_state: np.ndarray
) -> tuple[str, list[int], list[dict[str, float]]]:
    """Return the rule, the candidates in the gateway's order, and the terms of all replicas."""
    view, hits = arrays.seen_views[place], arrays.seen_hits[place]
    knobs, row = arrays.knobs, arrays.placements[place]
    bias = arrays.bias[int(query["group"][0])]
    records = (array.view(np.recarray)[0] for array in (arrays.lookahead, knobs))
    if is_by_worth.py_func(*records):  # type: ignore[no-untyped-call]
        return LOOKAHEAD_RULE, *_looked_at(arrays, place, view.size)
    order = _drawn(view, query, knobs, bias, random_state)
    if knobs["hit_threshold_frac"][0] > 0.0:
        stage, costs = cache_aware_costs(view, query, hits, knobs, bias)
        rule, term = GATE_RULES[stage]
        return rule, order, [{term: float(cost)} for cost in costs]
    terms = explain(view, arrays.nominal, query, hits, knobs, bias, float(row["at_s"]))
    for r in order:
        distance = float((r - int(row["cursor"])) % view.size) / view.size
        turn = float(knobs["round_robin_weight"][0]) * distance
        if turn:
            terms[r]["round_robin"] = turn
        if knobs["random_weight"][0]:
            terms[r]["random"] = float(knobs["random_weight"][0] * next_uniform(random_state))
    return COST_RULE, order, terms


def read_placement(
    arrays: SimulationArrays, place: int, names: list[str], chosen: int | None
) -> Placement:
    """Return a kept placement of the watched request with the candidates' costs.

    The knobs must be those in force at the placement.
    """
    row, view, hits = arrays.placements[place], arrays.seen_views[place], arrays.seen_hits[place]
    query = np.zeros(1, dtype=QUERY_DTYPE)
    query[0] = arrays.requests["query"][int(arrays.fleet["watched_request"][0])]
    query["expected_output_tokens"] = row["expected_output_tokens"]
    random_state = np.array([row["random_state"]], dtype=np.uint64)
    with np.errstate(over="ignore"):
        rule, order, terms = _costs(arrays, place, query, random_state)
    candidates = [
        Candidate(
            replica=r,
            name=names[r],
            cost=sum(terms[r].values()),
            terms=terms[r],
            cached_tokens=int(hits[r]),
            predicted_ttft_s=float(
                predicted_ttft_s(
                    view[r],
                    arrays.nominal[r],
                    arrays.knobs[0],
                    int(query["input_tokens"][0]) - int(hits[r]),
                    float(row["at_s"]),
                )
            ),
        )
        for r in order
    ]
    return Placement(
        at_s=float(row["at_s"]),
        rule=rule,
        chosen=None if chosen is None else names[chosen],
        num_unable=len(names) - len(candidates),
        candidates=tuple(sorted(candidates, key=lambda candidate: candidate.cost)),
    )
