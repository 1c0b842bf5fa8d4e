"""Asks a gateway's admin port; waits for each answer. What a policy's process and tools use.

Does not know: what is made of the answers.
"""

import http.client
import json
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from ...agents.shield.fallback import Proposal
from ...env.cluster import ClusterSpec
from ...env.fleet import WindowOutcome
from ...env.knobs import Knobs
from ...env.state.cluster_state import ClusterState
from ...traces.errors import TrimtabError
from ..launcher.live_fleet_file import read_live_fleet
from ..live_fleet.state_codec import decode_state
from .bodies import MSGPACK, OrderBody, ProposalBody, decode_window


class AdminError(TrimtabError):
    """An admin port cannot be reached, or refuses; `status` is HTTP's, None if none came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class AdminClient:
    """One connection to an admin port; made anew when it breaks. For one thread. A `FleetLink`."""

    def __init__(
        self, url: str, token: str, *, timeout_s: float = 10.0, lease_s: float | None = None
    ) -> None:
        """`lease_s` is how long knobs that `apply` sets rule; None: until they are withdrawn.

        Raises:
            ValueError: the URL is not `http://HOST:PORT`.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.port is None:
            msg = f"admin URL must be http://HOST:PORT, got {url!r}"
            raise ValueError(msg)
        self.url, self.lease_s = url.rstrip("/"), lease_s
        self.clock: dict[str, float] = {}
        """`now_s`, `window_at_s`, `window_s` of the gateway, as of the last state."""
        self._host, self._port, self._timeout_s = parts.hostname, parts.port, timeout_s
        self._headers = {"authorization": f"Bearer {token}"}
        self._connection: http.client.HTTPConnection | None = None

    # A live fleet, as who controls it from outside sees it.

    def state(self) -> ClusterState:
        """Return what can be seen at this moment.

        Raises: `AdminError`; `StateError` for a state that is not of this code.
        """
        content, headers = self._ask("GET", "/admin/state")
        prefix = "x-trimtab-"
        self.clock = {
            name.lower()[len(prefix) :].replace("-", "_"): float(value)
            for name, value in headers.items()
            if name.lower().startswith(prefix)
        }
        return decode_state(content)

    def apply(self, knobs: Knobs) -> Knobs:
        """Let these knobs rule from here on; return those in force.

        Raises: `AdminError`.
        """
        body = OrderBody(
            knobs=knobs.as_dict(), bias=knobs.replica_bias.tolist(), lease_s=self.lease_s
        )
        answer = self._json("PUT", "/admin/order", msgspec.msgpack.encode(body))
        return Knobs.of(**answer["knobs"]).with_bias(np.array(answer["bias"], np.float64))

    def withdraw(self) -> None:
        """Let the knobs that `apply` set rule no more.

        Raises: `AdminError`.
        """
        self._ask("DELETE", "/admin/order")

    def advance(self, span_s: float) -> WindowOutcome:
        """Wait some time and return what happened in it.

        Raises: `AdminError`.
        """
        path = f"/admin/window?span_s={span_s!r}"
        content, _ = self._ask("GET", path, timeout_s=self._timeout_s + span_s)
        return decode_window(content)

    def cluster(self) -> ClusterSpec:
        """Return what the fleet is made of, read from its file on this machine.

        Raises: `AdminError`; `ConfigError` if the file cannot be read.
        """
        return read_live_fleet(Path(self.status()["fleet_file"])).cluster

    # What a policy's process says.

    def propose(self, proposal: Proposal, *, source: str = "") -> dict[str, Any]:
        """Propose knobs for this window; return what came of it.

        Raises: `AdminError`.
        """
        body = ProposalBody(
            values=np.asarray(proposal.values, np.float64).ravel().tolist(),
            bias=np.asarray(proposal.bias, np.float64).ravel().tolist(),
            state_at_s=proposal.state_at_s,
            novelty=proposal.novelty,
            source=source,
        )
        return self._json("PUT", "/admin/knobs", msgspec.msgpack.encode(body))

    def confess(self, error: str, *, state_at_s: float, source: str = "") -> dict[str, Any]:
        """Say that the policy raised.

        Raises: `AdminError`.
        """
        body = ProposalBody(state_at_s=state_at_s, error=error[:4096], source=source)
        return self._json("PUT", "/admin/knobs", msgspec.msgpack.encode(body))

    # What operators ask.

    def status(self) -> dict[str, Any]:
        """Return who rules, why, and how each replica is. Raises: `AdminError`."""
        return self._json("GET", "/admin/status")

    def swap(self, bundle: Path, *, deadline_s: float = 60.0) -> dict[str, Any]:
        """Let a bundle take the seat, and wait for it. Raises: `AdminError`."""
        body = json.dumps({"path": str(bundle.absolute()), "deadline_s": deadline_s}).encode()
        return self._json(
            "POST", "/admin/bundle", body, "application/json", self._timeout_s + deadline_s
        )

    def drain(self, *, deadline_s: float = 60.0) -> bool:
        """Let it take nothing new; return whether all answers got whole. Raises: `AdminError`."""
        body = json.dumps({"deadline_s": deadline_s}).encode()
        answer = self._json(
            "POST", "/admin/drain", body, "application/json", self._timeout_s + deadline_s
        )
        return bool(answer["is_drained"])

    def decision(self, request_id: str) -> dict[str, Any]:
        """Return what is known of a request's placement. Raises: `AdminError`."""
        return self._json("GET", f"/admin/decisions/{quote(request_id, safe='')}")

    def order_replica(self, name: str, deed: str) -> dict[str, Any]:
        """Do a deed to a replica: drain, undrain, sleep, wake. Raises: `AdminError`."""
        return self._json("POST", f"/admin/replicas/{quote(name)}/{deed}")

    # Its own.

    def _json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = MSGPACK,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        content, _ = self._ask(method, path, body, content_type, timeout_s=timeout_s)
        answer: dict[str, Any] = msgspec.json.decode(content, type=dict)
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = MSGPACK,
        *,
        timeout_s: float | None = None,
    ) -> tuple[bytes, dict[str, str]]:
        """Return content and headers of a good answer."""
        headers = self._headers | ({"content-type": content_type} if body is not None else {})
        is_kept = self._connection is not None
        for is_last in (False, True):
            connection = self._connect(timeout_s or self._timeout_s)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A kept connection may have been closed since; a new one tells for certain.
                if is_last or not is_kept or isinstance(error, TimeoutError):
                    msg = f"admin port {self.url}{path}: {type(error).__name__}: {error}"
                    raise AdminError(msg) from error
                continue
            if answer.status >= 400:
                text = content.decode(errors="replace")
                msg = f"admin port {self.url}{path} answered {answer.status}: {text}"
                raise AdminError(msg, answer.status)
            return content, dict(answer.getheaders())
        msg = f"admin port {self.url}{path} was asked twice without an answer"
        raise AdminError(msg)

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port)
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> "AdminClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        AdminError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"admin token file '{path}' cannot be read: {error}"
        raise AdminError(msg) from error
