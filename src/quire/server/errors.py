"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}, the status from the error's type."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from quire.errors import ClientError, QuireError, RequestPoisoned, ServerError
from quire.server.anthropic import errors as anthropic

RETRY_AFTER_S = 1
STATUS_TYPES = {401: "authentication_error", 404: "NotFoundError", 429: "rate_limit_error"}


class UnsupportedMediaType(ClientError):
    """The body is not JSON, or is compressed."""

    status = 415


class ClientGone(ClientError):
    """The client closed the connection; nobody reads the answer."""

    status = 499


class RequestTimedOut(ServerError):
    """The request took longer than the operator allows."""

    status = 504
    type = "timeout_error"
    code = "request_timeout"


class InternalError(ServerError):
    """A fault of ours; its text stays in the log."""

    code = "internal_error"


@contextlib.contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name the field that the caller wrote, where it was brought to another one first."""
    try:
        yield
    except ClientError as error:
        error.param = names.get(error.param or "", error.param)
        raise


def error_body(error: QuireError) -> dict[str, Any]:
    """The error object."""
    return {
        "error": {
            "message": str(error) or type(error).__name__,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_bytes(error: QuireError) -> bytes:
    """The error object as JSON."""
    return msgspec.json.encode(error_body(error))


def error_headers(error: QuireError) -> dict[str, str]:
    """Headers that tell clients whether and when to try again."""
    if isinstance(error, RequestPoisoned):
        return {"x-should-retry": "false"}  # the official SDKs obey it; otherwise they repeat every 5xx
    return {"retry-after": str(RETRY_AFTER_S)} if error.status in (429, 503) else {}


def error_response(error: QuireError, path: str = "", request_id: str = "") -> Response:
    """The HTTP response for an error, in the form that clients of the path read."""
    if anthropic.speaks(path):
        body = msgspec.json.encode(anthropic.body(error.status, anthropic.message_of(error), request_id))
    else:
        body = error_bytes(error)
    return Response(body, error.status, error_headers(error), "application/json")


def http_error(status: int, message: str, headers: dict[str, str] | None = None, path: str = "") -> Response:
    """The same for what the router finds: 404, 405 and so on."""
    if anthropic.speaks(path):
        return Response(msgspec.json.encode(anthropic.body(status, message)), status, headers, "application/json")
    kind = STATUS_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = "not_found" if status == 404 else None
    body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return Response(body, status, headers, "application/json")
