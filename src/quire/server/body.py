"""Reading a JSON body that may be hostile: bounded while it streams in, strict JSON, bounded depth; big ones off the event loop."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from quire.errors import InvalidRequest, RequestTooLarge
from quire.server.errors import ClientGone, UnsupportedMediaType

MAX_BODY_BYTES = 32 * 2**20
MAX_DEPTH = 64
BODY_TIMEOUT_S = 60.0
OFF_LOOP_BYTES = 32 * 2**10
T = TypeVar("T")


@dataclass(frozen=True)
class Body:
    """A JSON object, and how many bytes it took."""

    fields: dict[str, Any]
    num_bytes: int


async def off_loop(num_bytes: int, work: Callable[[], T]) -> T:
    """The result of work on a body of that size: of a large one in a thread, so that streams go on meanwhile."""
    return await asyncio.to_thread(work) if num_bytes > OFF_LOOP_BYTES else work()


async def read_object(request: Request) -> Body:
    """The body as a JSON object. Raises InvalidRequest, RequestTooLarge, UnsupportedMediaType or ClientGone."""
    _check_headers(request.headers)
    try:
        body = await asyncio.wait_for(_read(request), BODY_TIMEOUT_S)
    except ClientDisconnect:
        raise ClientGone("the client left while it sent the body") from None
    except asyncio.TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    return Body(await off_loop(len(body), lambda: parse_object(body)), len(body))


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object from bytes. msgspec refuses NaN, infinities, 1e400, lone surrogates and bad UTF-8. Raises InvalidRequest."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
    return value


def _check_headers(headers: Mapping[str, str]) -> None:
    # A web page of a stranger can send text/plain here without being asked for permission, but not JSON.
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"the body must be application/json, not {kind[:80]!r}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("compressed bodies are not accepted")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> RequestTooLarge:
    return RequestTooLarge(f"the body is over the limit of {MAX_BODY_BYTES} bytes")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [child for items in inner for child in items if isinstance(child, dict | list)]
        if not level:
            return False
    return True
