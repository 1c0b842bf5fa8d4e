"""What a gateway asks of whoever understands requests.

Does not know: HTTP connections, or how a body is read (`openai_reader.py`).
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from ...traces.errors import TrimtabError
from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts


class CallTenant(Protocol):
    """What must be known of the tenant whose key came with a call; the gateway's `Tenant` is one.

    A limit of infinity is none.
    """

    @property
    def name(self) -> str:
        """Its name in telemetry, budgets and traces."""
        ...

    @property
    def priority(self) -> int:
        """0 interactive, 1 batch; of its requests that name no objective."""
        ...

    @property
    def ttft_slo_s(self) -> float:
        """Limit on time to first token, of its requests that name none."""
        ...

    @property
    def tpot_slo_s(self) -> float:
        """Limit on time per output token, of its requests that name none."""
        ...

    @property
    def weight(self) -> float:
        """What one of its requests counts for."""
        ...

    @property
    def models(self) -> frozenset[str] | None:
        """Model names that it may ask for; None for all."""
        ...

    @property
    def may_name_flow(self) -> bool:
        """Whether a header may name the flow that counts as tenant in place of its name."""
        ...


class Call(msgspec.Struct, gc=False):
    """One request as it came, headers and whole body."""

    path: str
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    body: bytes
    tenant: CallTenant
    request_id: str
    arrived_at_s: float
    """When its last byte had come."""


class Reading(msgspec.Struct, gc=False):
    """A request that was understood."""

    facts: RequestFacts
    body: bytes | None = None
    """What is to be sent in place of the body that came; None sends that."""


class RequestFault(TrimtabError):
    """A request that cannot be served as it is, in the words in which its sender is told.

    `status` is the HTTP status (400, 404, 413, 422); `code` and `param` are those of an OpenAI
    error object, `param` None where the fault is in no single parameter.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class RequestReader(Protocol):
    """Understands requests, and learns from how they end. No call waits for anything."""

    def read(self, call: Call) -> Reading:
        """Return what a request asks for.

        Raises: RequestFault for one that cannot be served as it is.
        """
        ...

    def on_placed(self, placement: Placement) -> None:
        """As of a `DispatchListener`."""
        ...

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """As of a `DispatchListener`."""
        ...

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """As of a `DispatchListener`: learns lengths and token ratios."""
        ...
