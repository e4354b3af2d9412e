"""The gate: what every HTTP request passes before a route sees it. Plain ASGI, so that streams pass through untouched.

In order: a tidy path, a request id, the number of requests at once, the API key, draining; and after it, errors nobody expected.
"""

import contextlib
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.errors import EngineUnavailable, QuireError, Unauthenticated
from quire.server.errors import InternalError, error_response
from quire.server.serving import Serving
from quire.server.tracing import traceparent

log = logging.getLogger("quire.server")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
SLASHES = re.compile(r"//+")
GUARDED = "/v1/"


class Gate:
    """Wraps the application. max_active: HTTP requests at once; beyond it 503, so that file descriptors never run out."""

    def __init__(self, app: ASGIApp, serving: Serving, max_active: int) -> None:
        self._app = app
        self._serving = serving
        self._max_active = max_active
        self._key_digests = [_digest(key.encode()) for key in serving.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # there are no WebSockets here; uvicorn refuses the handshake
        scope = {**scope, "path": tidy(scope["path"])}
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        scope.setdefault("state", {}).update(request_id=request_id, arrived_s=time.monotonic(), send=send)
        traceparent.set(headers.get("traceparent", ""))
        reply = _Reply(send, request_id)
        self._serving.num_active += 1
        try:
            self._admit(scope, headers)
            await self._app(scope, receive, reply)
        except QuireError as error:
            await reply.fail(error, scope, receive, closing=self._serving.draining)
        except Exception:
            log.exception("request %s failed", request_id)
            await reply.fail(InternalError("the server failed on this request"), scope, receive)
        finally:
            self._serving.num_active -= 1
            self._serving.metrics.http(scope["path"], scope["method"], reply.status)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        if not scope["path"].startswith(GUARDED) or scope["method"] == "OPTIONS":
            return
        if self._key_digests:
            self._check_key(headers)
        if self._serving.draining:
            raise EngineUnavailable("the server is stopping")
        if self._serving.num_active > self._max_active:
            raise EngineUnavailable(f"the server is at its limit of {self._max_active} requests at once")

    def _check_key(self, headers: Headers) -> None:
        # Anthropic's clients send x-api-key.
        authorization = headers.getlist("authorization")
        token = _bearer(authorization) if authorization else headers.get("x-api-key", "").encode("latin-1", "replace")
        given = _digest(token)
        # Every key is compared, in the same time: what differs is a digest, not how far the key is right.
        if not sum(hmac.compare_digest(given, known) for known in self._key_digests):
            raise Unauthenticated("no API key, or one that this server does not know; send Authorization: Bearer KEY")


class _Reply:
    """The send function with the request id in the response's headers, which also knows what has begun.

    status  of the response; 499 while there is none
    whole   all of it has been sent
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 499
        self.whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)
        self.whole = message["type"] == "http.response.body" and not message.get("more_body")

    async def fail(self, error: QuireError, scope: Scope, receive: Receive, closing: bool = False) -> None:
        """Answers with an error, unless an answer has begun already: then the connection is broken off."""
        if self.whole:
            return
        if self.status != 499:
            raise error
        response = error_response(error, scope["path"], self._request_id)
        if closing:
            response.headers["connection"] = "close"
        await response(scope, receive, self)


def tidy(path: str) -> str:
    """The path without doubled or trailing slashes, which clients produce by joining; before any check, so that none is passed by."""
    return SLASHES.sub("/", path).rstrip("/") or "/"


def request_id_of(headers: Headers) -> str:
    """The client's X-Request-Id when it is harmless, else a new one. A label only: nothing inside is keyed by it."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def _bearer(values: Iterable[str]) -> bytes:
    """The token of the only Authorization header; empty when there is none, or more than one."""
    with contextlib.suppress(ValueError):
        (value,) = values
        scheme, _, token = value.partition(" ")
        return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
    return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
