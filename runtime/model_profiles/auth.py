"""Who may use the routes: whoever knows the token.

Does not know: routes.
"""

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .answers import fault_answer

# characters; a token is a secret of a machine, not a word
MIN_TOKEN_LENGTH = 16


def checked_token(token: str) -> str:
    """The token itself.

    Raises: `ValueError` when it is short enough to be guessed, or cannot stand in a header.
    """
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
        msg = (
            f"the token must have at least {MIN_TOKEN_LENGTH} printable ASCII characters, "
            f"got {len(token)} characters; make one with: openssl rand -hex 24"
        )
        raise ValueError(msg)
    return token


def is_allowed(header: str | None, token: str) -> bool:
    """Whether an `Authorization` header bears the token; takes the same time for any other."""
    given = (header or "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, f"Bearer {token}".encode())


def token_check(token: str) -> Middleware:
    """A middleware that answers 401 to requests without the token.

    Raises: `ValueError` for a token that can be guessed.
    """
    checked_token(token)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_allowed(request.headers.get("Authorization"), token):
            return await handler(request)
        text = "the token is missing or wrong; send the header `Authorization: Bearer TOKEN`"
        answer = fault_answer(401, "Authorization", text)
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    return check
