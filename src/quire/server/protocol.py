"""HTTP/1.1 as uvicorn speaks it, with a limit on the size of a request's head and on the time that it takes to come."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 100
HEAD_TIMEOUT_S = 10.0
TOO_LARGE = b"the request's head is too large"
TOO_SLOW = b"the request's head did not come in time"


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A head is the request line with all headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._num_head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; its first head is awaited."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, 408, TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        super().data_received(data)
        if self._in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, TOO_LARGE)

    def on_message_begin(self) -> None:
        """The first byte of a head came."""
        super().on_message_begin()
        if not self._in_head:  # not the first one of the connection
            self._in_head, self._num_head_bytes = True, 0
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, 408, TOO_SLOW)

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._in_head = False
        self._stop_timer()
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, TOO_LARGE)
        else:
            super().on_headers_complete()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: bytes) -> None:
        """Answers with an error object, and closes. While an earlier answer is under way there is no place for one: it just closes."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}' % message
        if self.cycle is None or self.cycle.response_complete:
            head = "HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write((head % (status, len(body))).encode() + body)
        self.transport.close()
