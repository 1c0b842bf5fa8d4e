"""Who sends a request: tenants by API key.

Does not know: HTTP, or what a tenant may use of the fleet (`agents/constraints`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A customer of the fleet; an infinite limit is none."""

    name: str
    priority: int = 0
    """0 interactive, 1 batch; of its requests that name no objective."""
    ttft_slo_s: float = float("inf")
    tpot_slo_s: float = float("inf")
    weight: float = 1.0
    """What one of its requests counts for."""
    models: frozenset[str] | None = None
    """Model names that it may ask for; None for all."""
    may_name_flow: bool = False
    """Whether a header may name the flow that counts as tenant in place of its name."""


class Tenants(Protocol):
    """Finds the tenant of an `authorization` header."""

    def find(self, authorization: bytes | None) -> Tenant | None:
        """Return who sends this header; None if nobody may."""
        ...


class OpenAccess:
    """Everybody is one tenant, whatever key is sent."""

    def __init__(self, tenant: Tenant | None = None) -> None:
        self._tenant = tenant or Tenant(name="default", may_name_flow=True)

    def find(self, authorization: bytes | None) -> Tenant:
        """Return the tenant."""
        return self._tenant


class KeyedTenants:
    """Tenants by the SHA-256 of their keys.

    A look-up by hash tells nobody anything of other keys by its time.
    """

    def __init__(self, keys: Sequence[tuple[str, Tenant]]) -> None:
        """`keys` are pairs of a key's SHA-256 in hexadecimal, and who has it."""
        self._by_hash = {bytes.fromhex(digest): tenant for digest, tenant in keys}
        self._known: dict[bytes, Tenant] = {}

    def find(self, authorization: bytes | None) -> Tenant | None:
        """Return whose key is in a bearer header."""
        if authorization is None:
            return None
        tenant = self._known.get(authorization)
        if tenant is None and authorization[:7].lower() == b"bearer ":
            key = authorization[7:].strip()
            tenant = self._by_hash.get(hashlib.sha256(key).digest())
            # Only keys that exist are remembered, in one way of writing, so there are no more.
            if tenant is not None and authorization == b"Bearer " + key:
                self._known[authorization] = tenant
        return tenant
