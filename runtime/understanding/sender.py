"""Who sends a request, and what it is worth: its tenant, what its headers say, what its body says.

Does not know: prompts, models or lengths.
"""

from collections.abc import Mapping

import msgspec

from .call_headers import Objective, read_headers
from .openai_body import OpenAiBody
from .reader import Call
from .stable_hashes import StableHashes, stable_hash


class Sender(msgspec.Struct, gc=False):
    """What holds for a request because of who sent it and how."""

    tenant: str
    """Its tenant, or the flow that it named."""
    tenant_hash: int
    application_hash: int
    session_hash: int
    """Of the session that it names, 0 for none."""
    priority: int
    weight: float
    ttft_slo_s: float
    tpot_slo_s: float
    deadline_at_s: float
    trace_parent: str


def _session_hash(session: bytes, body: OpenAiBody) -> int:
    """Return the hash of the session that a header or a body names, 0 for none."""
    named = session or body.session_id or body.prompt_cache_key or body.user
    if not named:
        return 0
    return stable_hash(named if isinstance(named, bytes) else str(named))


def sender_of(
    call: Call, body: OpenAiBody, objectives: Mapping[str, Objective], hashes: StableHashes
) -> Sender:
    """Return what holds for a request because of who sent it.

    Raises: RequestFault for a header that cannot be used.
    """
    tenant, headers = call.tenant, read_headers(call.headers)
    name = tenant.name
    if headers.flow is not None and tenant.may_name_flow:
        name = headers.flow
    priority, weight = tenant.priority, tenant.weight
    objective = objectives.get(headers.objective) if headers.objective else None
    if objective is not None:
        priority, weight = int(objective.priority < 0), weight * objective.weight
    elif body.priority is not None and body.priority > 0:  # vLLM's: more is less urgent
        priority = 1
    return Sender(
        name,
        hashes(name),
        hashes(headers.application or call.headers.get(b"user-agent", b"")),
        _session_hash(headers.session, body),
        priority,
        weight,
        headers.ttft_slo_s or tenant.ttft_slo_s,
        headers.tpot_slo_s or tenant.tpot_slo_s,
        call.arrived_at_s + headers.timeout_s,
        headers.trace_parent,
    )
