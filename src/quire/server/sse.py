"""Answers that stream, and answers that wait: both end at once when their client is gone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.errors import QuireError
from quire.server.errors import ClientGone, InternalError, error_bytes

log = logging.getLogger("quire.server")
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")
# What a route that streams may answer; in /openapi.json.
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or its stream.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def named_event(name: str, data: bytes) -> bytes:
    """One server-sent event of a named type."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


class EventStream(Response):
    """Sends events as they come. The transport's flow control holds the producer back, which then joins what piled up.

    events  whole events; an error on the way becomes a last event {"error": ...}, and [DONE] does not follow
    close   called at the end in any case: finished, failed, or client gone
    tell    the last event of an error, where the API has its own
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        headers: dict[str, str],
        tell: Callable[[QuireError], bytes] = lambda error: event(error_bytes(error)),
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone):
                # Layers between here and the connection look at the start of an answer; its events need not pass through them.
                await until_client_gone(receive, self._send_all(send, scope["state"].get("send", send)))
        finally:
            self._close()

    async def _send_all(self, send: Send, send_body: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await send_body({"type": "http.response.body", "body": data, "more_body": True})
        except QuireError as error:
            await send({"type": "http.response.body", "body": self._tell(error), "more_body": True})
        except Exception:
            log.exception("a stream failed")
            data = self._tell(InternalError("the server failed on this request"))
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_client_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientGone when the client leaves first. The body must have been read."""
    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientGone("the client closed the connection")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
