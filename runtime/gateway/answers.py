"""Answers that the gateway gives by itself, as OpenAI writes them.

Does not know: when they are given.
"""

import json
from http import HTTPStatus

from ..dispatcher.request import Refusal

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    417: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
"""First lines of answers by status."""


def error_body(status: int, code: str, message: str, param: str | None = None) -> bytes:
    """Return an error object as OpenAI writes it."""
    error = {
        "message": message,
        "type": _TYPES.get(status, "server_error"),
        "param": param,
        "code": code,
    }
    return json.dumps({"error": error}).encode()


def wrong_key() -> bytes:
    """Return what OpenAI says to a key that is nobody's."""
    return error_body(401, "invalid_api_key", "Incorrect API key provided.")


def answer(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: bytes = b"",
    is_last: bool = False,
) -> bytes:
    """Return a whole answer; `headers` are lines with their line ends, `is_last` closes."""
    connection = b"connection: close\r\n" if is_last else b""
    return b"%scontent-type: %s\r\ncontent-length: %d\r\n%s%s\r\n%s" % (
        STATUS_LINES[status], content_type, len(body), headers, connection, body,
    )  # fmt: skip


def refusal_headers(refusal: Refusal) -> bytes:
    """Return the headers that tell why a request was dropped, and when to ask again."""
    lines = b"x-llm-d-request-dropped-reason: %s\r\n" % refusal.code.encode()
    if refusal.retry_after_s is not None:
        # Whole seconds, as HTTP has them, at least one.
        lines += b"retry-after: %d\r\n" % max(1, round(refusal.retry_after_s))
    return lines


def error_event(code: str, message: str) -> bytes:
    """Return the event that ends a stream which cannot go on."""
    body = error_body(500, code, message)
    return b"data: " + body + b"\n\n"
