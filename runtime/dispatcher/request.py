"""One live request as the dispatcher sees it, from the moment it was understood to its end.

All moments are of the monotonic clock, which all processes of a machine share.

Does not know: HTTP, or who decides.
"""

from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

BlockHashes = NDArray[np.uint64]

NO_BLOCKS: BlockHashes = np.zeros(0, np.uint64)
"""A prompt too short for one block, or one whose prefix is nobody's business."""


class RequestFacts(msgspec.Struct, kw_only=True, gc=False):
    """What is known of a request before it is placed; never its prompt."""

    request_id: str
    model: str
    """As the client names it; a served model or one of its adapters."""
    model_index: int
    """Which of the fleet's models serves it."""
    tenant: str
    adapter: str | None = None
    priority: int = 0
    """0 interactive, 1 batch."""
    session_hash: int = 0
    """Of what binds requests together: session, user, or the prompt's beginning; below 2**63."""
    input_tokens: int
    """Estimated, or counted if there is a tokenizer."""
    max_output_tokens: int
    expected_output_tokens: float
    """Mean prediction; the kernel's `expected_output_tokens`."""
    output_tokens_p90: float
    """Upper quantile of the same prediction."""
    cluster: int = 0
    """Semantic cluster of the prompt."""
    ttft_slo_s: float
    tpot_slo_s: float
    weight: float = 1.0
    is_stream: bool = False
    is_chat: bool = False
    """Whether it was asked at the chat path; for spans."""
    blocks: BlockHashes = msgspec.field(default_factory=lambda: NO_BLOCKS)
    """Chained hash of each full block of the prompt; uint64 [blocks]."""
    block_tokens: int = 1
    """Prompt tokens that a block stands for."""
    arrived_at_s: float
    """When its last byte had come."""
    deadline_at_s: float = float("inf")
    """After this moment nobody waits for it."""
    trace_parent: str = ""
    """W3C trace context of the caller, for spans."""


class Placement(msgspec.Struct, kw_only=True, gc=False):
    """Where a request was sent. Kept by the gateway until the request ends."""

    facts: RequestFacts
    replica: int
    number: int
    """Of the decision, from 1; the decision log's key beside the request's own."""
    hit_tokens: int
    """Prompt tokens believed to be in the replica's prefix cache."""
    predicted_ttft_s: float
    nominal_ttft_s: float = 0.0
    """The same if the replica were not slow."""
    counted_output_tokens: float = 0.0
    """Expected answer that it is counted with at its replica."""
    priority: int = 0
    """In force: a group's rule or its empty budget may have changed the request's own."""
    placed_at_s: float
    num_attempts: int = 1
    tried: tuple[int, ...] = ()
    """Replicas that did not answer."""
    first_token_at_s: float = float("nan")
    is_prefilled: bool = False
    """Its prompt does not count as backlog any more."""
    is_ended: bool = False
    """It has left this replica."""
    end: "RequestEnd | None" = None
    """What came of it, once it has ended there for good."""
    group: int = 0
    """Of the rules that it is under."""


class Refusal(msgspec.Struct, kw_only=True, gc=False):
    """Why a request is not placed, as its sender is told."""

    status: int
    """HTTP: 404 unknown model, 429 shed or over budget, 503 nobody can take it."""
    code: str
    """`model_not_found`, `rejected-saturated`, `rejected-budget`, `rejected-no-endpoints`."""
    message: str
    retry_after_s: float | None = None


class Ending(StrEnum):
    """How a request that was placed ended."""

    FINISHED = "finished"
    ABORTED = "aborted"
    """Its client went away."""
    FAILED = "failed"
    """Its replica broke off, or answered with an error of its own (5xx)."""
    REFUSED = "refused"
    """Its replica would not have it (4xx)."""
    TIMED_OUT = "timed out"
    """Its deadline passed."""


class RequestEnd(msgspec.Struct, kw_only=True, gc=False):
    """What came of a request that was placed."""

    ending: Ending
    status: int
    """HTTP status that the client got, 0 if it got none."""
    ended_at_s: float
    output_tokens: int
    """As the engine counts them, else counted by stream events."""
    input_tokens: int | None = None
    """Prompt tokens as the engine counts them."""
    cached_tokens: int | None = None
    """Prompt tokens that it found in its prefix cache."""


def is_met(placement: Placement, end: RequestEnd) -> bool:
    """Whether a finished request met its limits.

    A stream's are those of TTFT and TPOT, from the moment that the request had come. Who does not
    stream sees nothing before the end, and has until both limits together are used up.
    """
    facts = placement.facts
    later_tokens = max(0, end.output_tokens - 1)
    if not facts.is_stream:
        limit_s = facts.ttft_slo_s + later_tokens * facts.tpot_slo_s
        return end.ended_at_s - facts.arrived_at_s <= limit_s
    first_s = placement.first_token_at_s - facts.arrived_at_s
    span_s = end.ended_at_s - placement.first_token_at_s
    return first_s <= facts.ttft_slo_s and span_s <= later_tokens * facts.tpot_slo_s + 1e-9
