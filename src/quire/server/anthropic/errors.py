"""Errors as Anthropic's clients read them: {"type": "error", "error": {"type", "message"}, "request_id"}."""

from typing import Any

from quire.errors import QuireError

PREFIX = "/v1/messages"
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}


def speaks(path: str) -> bool:
    """Whether clients of this path read errors in this form."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def body(status: int, message: str, request_id: str = "") -> dict[str, Any]:
    """The error object."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def message_of(error: QuireError) -> str:
    """The message, which names the field at fault: there is no other place for it."""
    text = str(error) or type(error).__name__
    return f"{error.param}: {text}" if error.param and error.param not in text else text
