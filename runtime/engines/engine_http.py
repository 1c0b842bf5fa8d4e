"""Asks one engine over HTTP: JSON in and out, a time-out, and errors that say what went wrong.

Does not know: what is asked, or what an answer means.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from .engine_error import EngineError
from .live_replica import LiveReplica

_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_MAX_QUOTED: Final = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    text: str


class EngineHttp:
    """The HTTP interface of one replica; the session is someone else's to close."""

    def __init__(
        self, replica: LiveReplica, session: aiohttp.ClientSession, *, timeout_s: float = 5.0
    ) -> None:
        """`timeout_s` is for a whole answer.

        Raises: ValueError if the time-out is not above 0.
        """
        if not timeout_s > 0:
            msg = f"timeout_s must be above 0, got {timeout_s}"
            raise ValueError(msg)
        self.replica = replica
        self._session = session
        self._timeout_s = timeout_s

    async def ask(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None = None
    ) -> Answer:
        """Return the answer, of whatever status.

        Raises: EngineError if none came in time.
        """
        seconds = timeout_s or self._timeout_s
        key = self.replica.api_key
        try:
            async with self._session.request(
                method,
                f"{self.replica.url}{path}",
                json=body,
                headers={"Authorization": f"Bearer {key}"} if key else None,
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            ) as response:
                content = await response.content.read(_MAX_ANSWER_BYTES + 1)
                while len(content) <= _MAX_ANSWER_BYTES and not response.content.at_eof():
                    content += await response.content.read(_MAX_ANSWER_BYTES + 1)
        except TimeoutError as error:
            raise self.error(
                what=f"{method} {path}",
                fault=f"was not answered in {seconds:g} s",
                advice="look whether it hangs, or raise timeout_s",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self.error(
                what=f"{method} {path}",
                fault=f"failed: {error or type(error).__name__}",
                advice="look whether it runs, and whether its address is right",
            ) from error
        if len(content) > _MAX_ANSWER_BYTES:
            raise self.error(
                what=f"{method} {path}",
                fault=f"was answered with over {_MAX_ANSWER_BYTES} bytes",
                advice="that is no engine: check its address",
            )
        return Answer(response.status, content.decode(errors="replace"))

    async def get(self, path: str) -> object:
        """Return the JSON at a path.

        Raises: EngineError unless it came with status 200.
        """
        answer = self.good("GET", path, await self.ask("GET", path))
        return self._json("GET", path, answer)

    async def find(self, path: str) -> object | None:
        """Return the JSON at a path; None if the engine has no such path.

        Raises: EngineError if it does not answer, or with another error.
        """
        answer = await self.ask("GET", path)
        if answer.status in (404, 405, 501):
            return None
        return self._json("GET", path, self.good("GET", path, answer))

    async def post(
        self, path: str, body: object = None, *, advice: str = "", timeout_s: float | None = None
    ) -> Answer:
        """Return what a POST was answered with.

        Raises: EngineError unless it came with status 200; `advice` says what to do then.
        """
        return self.good(
            "POST", path, await self.ask("POST", path, body, timeout_s=timeout_s), advice
        )

    async def post_json(
        self, path: str, body: object = None, *, advice: str = ""
    ) -> Mapping[str, object]:
        """Return the JSON object that a POST was answered with.

        Raises: EngineError unless it came with status 200.
        """
        answer = await self.post(path, body, advice=advice)
        return mapping(self._json("POST", path, answer))

    def good(self, method: str, path: str, answer: Answer, advice: str = "") -> Answer:
        """Return an answer of status 200.

        Raises: EngineError if it has another.
        """
        if answer.status != 200:
            said = " ".join(answer.text.split())[:_MAX_QUOTED] or "nothing"
            raise self.error(
                what=f"{method} {path}",
                fault=f"answered {answer.status}, expected 200; it said: {said}",
                advice=advice or "see the engine's log",
                status=answer.status,
            )
        return answer

    def error(
        self, *, what: str, fault: str, advice: str, status: int | None = None
    ) -> EngineError:
        """Return an error that names this replica."""
        r = self.replica
        return EngineError(
            f"replica '{r.name}' ({r.engine} at {r.url}): {what} {fault}; {advice}", status=status
        )

    def _json(self, method: str, path: str, answer: Answer) -> object:
        try:
            value: object = json.loads(answer.text)
        except (ValueError, RecursionError) as error:
            raise self.error(
                what=f"{method} {path}",
                fault=f"answered what is no JSON: {answer.text[:_MAX_QUOTED]!r}",
                advice="check that the address is an engine's",
                status=answer.status,
            ) from error
        return value


def mapping(value: object) -> Mapping[str, object]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Mapping[str, object]]:
    """Return the objects of a JSON list; none for anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def count(value: object) -> int | None:
    """Return a whole number of at least 0; None for anything else."""
    return value if type(value) is int and value >= 0 else None


def text(value: object) -> str | None:
    """Return a text that is not empty; None for anything else."""
    return value if isinstance(value, str) and value else None


def served_models(answer: object) -> list[Mapping[str, object]]:
    """Return the entries of `/v1/models` that have an id."""
    return [one for one in items(mapping(answer).get("data")) if text(one.get("id"))]


def token_ids(answer: Mapping[str, object]) -> list[int] | None:
    """Return the token ids of an answer to `/tokenize`; None if it holds none."""
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        return None
    return tokens
