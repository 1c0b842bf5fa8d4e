"""What a span says of a request: GenAI semantic conventions, and our own of the decision.

Prompts and answers are never part of it.

Does not know: OpenTelemetry's classes, clocks, or who exports.
Source: open-telemetry/semantic-conventions-genai (status Development); names of decisions follow
llm-d's `llm_d.epp.picker.*`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..decision_log.confidence import confidence
from ..decision_log.decision_log import Circumstances
from ..dispatcher.decision_ring import DecisionRecord
from ..dispatcher.request import Ending, Placement, Refusal, RequestEnd, RequestFacts
from ..engines.live_replica import LiveReplica

Value = str | int | float | bool | Sequence[str] | Sequence[float]
Attributes = dict[str, Value]

_BROKEN = (Ending.FAILED, Ending.TIMED_OUT, Ending.REFUSED)
# Replicas of a decision that are named, cheapest first.
_NUM_TOP = 3


def operation(facts: RequestFacts) -> str:
    """Return the convention's name of what was asked."""
    return "chat" if facts.is_chat else "text_completion"


def request_attributes(facts: RequestFacts) -> Attributes:
    """Return what was known before the request was placed."""
    found: Attributes = {
        "gen_ai.operation.name": operation(facts),
        "gen_ai.request.model": facts.model,
        "gen_ai.request.max_tokens": facts.max_output_tokens,
        "gen_ai.request.stream": facts.is_stream,
        "trimtab.request.id": facts.request_id,
        "trimtab.request.tenant": facts.tenant,
        "trimtab.request.priority": facts.priority,
        "trimtab.request.cluster": facts.cluster,
        "trimtab.request.ttft_slo_s": facts.ttft_slo_s,
        "trimtab.request.tpot_slo_s": facts.tpot_slo_s,
        "trimtab.request.estimated_input_tokens": facts.input_tokens,
        "trimtab.request.expected_output_tokens": facts.expected_output_tokens,
    }
    if facts.adapter is not None:
        found["trimtab.request.adapter"] = facts.adapter
    return found


def placement_attributes(placement: Placement, replicas: Sequence[LiveReplica]) -> Attributes:
    """Return where a request went, and what was expected there."""
    replica = replicas[placement.replica]
    found: Attributes = {
        "gen_ai.provider.name": str(replica.engine),
        "gen_ai.response.model": replica.model,
        "server.address": replica.host,
        "server.port": replica.port,
        "trimtab.decision.id": placement.number,
        "trimtab.decision.replica": replica.name,
        "trimtab.decision.hit_tokens": placement.hit_tokens,
        "trimtab.decision.predicted_ttft_s": placement.predicted_ttft_s,
        "trimtab.decision.num_attempts": placement.num_attempts,
    }
    if placement.tried:
        found["trimtab.decision.tried"] = [replicas[each].name for each in placement.tried]
    return found


def end_attributes(placement: Placement, end: RequestEnd) -> Attributes:
    """Return what came of a request; tokens only as its engine counts them."""
    found: Attributes = {
        "trimtab.request.ending": str(end.ending),
        "gen_ai.usage.output_tokens": end.output_tokens,
    }
    if end.status:
        found["http.response.status_code"] = end.status
    if end.input_tokens is not None:
        found["gen_ai.usage.input_tokens"] = end.input_tokens
    if end.cached_tokens is not None:
        found["gen_ai.usage.cache_read.input_tokens"] = end.cached_tokens
    first_at_s = placement.first_token_at_s
    if first_at_s == first_at_s:
        found["gen_ai.response.time_to_first_chunk"] = first_at_s - placement.facts.arrived_at_s
    if end.ending in _BROKEN:
        found["error.type"] = str(end.status) if end.status >= 400 else str(end.ending)
    return found


def refusal_attributes(refusal: Refusal) -> Attributes:
    """Return why a request was not placed."""
    return {
        "gen_ai.provider.name": "trimtab",
        "http.response.status_code": refusal.status,
        "error.type": refusal.code,
        "trimtab.request.ending": "shed",
    }


def is_error(ending: Ending | None, status: int) -> bool:
    """Whether the one who serves is at fault: a client's own errors (4xx) are none of it."""
    return status >= 500 or ending in (Ending.FAILED, Ending.TIMED_OUT)


def ruling_attributes(ruling: Circumstances) -> Attributes:
    """Return who ruled when a request ended."""
    found: Attributes = {"trimtab.decision.ruler": ruling.ruler}
    if ruling.doubt:
        found["trimtab.decision.doubt"] = ruling.doubt
    return found


def decision_attributes(record: DecisionRecord, names: Sequence[str]) -> Attributes:
    """Return what a decision that was kept in full adds: the cheapest replicas and the lead."""
    usable = record.is_usable
    costs = np.where(usable, record.costs, np.inf)
    top = np.argsort(costs, kind="stable")[: min(_NUM_TOP, int(usable.sum()))]
    return {
        "trimtab.decision.policy": record.policy_version,
        "trimtab.decision.knob_version": record.knob_version,
        "trimtab.decision.confidence": confidence(record),
        "trimtab.decision.top_replicas": [names[replica] for replica in top],
        "trimtab.decision.top_costs": [float(costs[replica]) for replica in top],
    }


def without_unknowns(attributes: Mapping[str, Value]) -> Attributes:
    """Return the attributes without those that are not numbers: absent is not NaN."""
    return {name: value for name, value in attributes.items() if value == value}
