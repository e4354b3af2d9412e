"""A lean HTTP/1.1 client: the load generator must cost little, and must stamp bytes with the time at which they came.

Connections are kept and used again. httptools parses; body pieces carry the time of the read that brought them.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_S = 30.0
Piece = tuple[float, bytes]


class HttpError(Exception):
    """The exchange failed: no connection, or it broke off, or what came is not HTTP."""


class _Exchange(asyncio.Protocol):
    """One connection; at most one request on it at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._closing: Exception | None = None
        self._arrived = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        """Before a new request."""
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.keep = False
        self.ended = False
        self.pieces: list[Piece] = []
        self._now = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.transport = transport

    def write(self, data: bytes) -> None:
        """Sends a request."""
        self.transport.write(data)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._now = time.perf_counter()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(HttpError(f"the answer is not HTTP: {error}"))
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio. Where neither length nor chunks were announced, the end of the connection is the answer's."""
        if exc is None and self.status and not self.keep:
            self.ended = True
        self._end(exc or HttpError("the server closed the connection"))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status = self.parser.get_status_code()
        self.keep = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self.pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.ended = True

    async def more(self) -> None:
        """Waits until something has come. Raises HttpError once the connection is gone before the answer is whole."""
        if self._closing is not None and not self.ended:
            raise HttpError(str(self._closing))
        self._arrived.clear()
        await self._arrived.wait()

    def _end(self, why: Exception) -> None:
        self.closed = True
        self._closing = self._closing or why
        self._arrived.set()


class Client:
    """Posts to one server. headers: sent with every request."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Content-Type": "application/json", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
        self._idle: list[_Exchange] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and whole body. Raises HttpError."""
        response = Response(self, method, path, body)
        parts = [piece async for _, piece in response.pieces()]
        return response.status, b"".join(parts)

    def stream(self, path: str, body: bytes) -> "Response":
        """The answer to a POST, piece by piece."""
        return Response(self, "POST", path, body)

    def close(self) -> None:
        """Closes idle connections."""
        for exchange in self._idle:
            exchange.transport.close()
        self._idle.clear()

    def head(self, method: str, path: str, num_bytes: int) -> bytes:
        """Request line and headers."""
        line = f"{method} {self._base}{path} HTTP/1.1\r\n".encode("latin-1")
        return line + self._head + b"Content-Length: %d\r\n\r\n" % num_bytes

    def take(self) -> _Exchange | None:
        """An idle connection that is still there."""
        while self._idle:
            exchange = self._idle.pop()
            if not exchange.closed:
                exchange.reset()
                return exchange
        return None

    def give_back(self, exchange: _Exchange) -> None:
        """A connection whose answer is whole, or that is of no use any more."""
        if exchange.ended and exchange.keep and not exchange.closed:
            self._idle.append(exchange)
        else:
            exchange.transport.close()

    async def connect(self) -> _Exchange:
        """A new connection. Raises HttpError."""
        loop = asyncio.get_running_loop()
        try:
            opening = loop.create_connection(_Exchange, self._host, self._port, ssl=self._tls)
            return (await asyncio.wait_for(opening, CONNECT_TIMEOUT_S))[1]
        except (OSError, asyncio.TimeoutError) as error:
            raise HttpError(f"no connection to {self._host}:{self._port}: {error or 'timed out'}") from None


class Response:
    """An answer under way. began_s: when it was asked for, before a connection was there, in seconds of time.perf_counter; status: 0
    until it is known."""

    def __init__(self, client: Client, method: str, path: str, body: bytes) -> None:
        self._client = client
        self._data = client.head(method, path, len(body)) + body
        self.began_s = 0.0
        self.status = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        """(time of arrival, bytes) of the body. Raises HttpError."""
        exchange = await self._begin()
        try:
            while True:
                pieces, exchange.pieces = exchange.pieces, []
                self.status = exchange.status
                for piece in pieces:
                    yield piece
                if exchange.ended and not exchange.pieces:
                    return
                if not exchange.pieces:
                    await exchange.more()
        finally:
            self._client.give_back(exchange)

    async def _begin(self) -> _Exchange:
        """Sends the request; once more on a new connection when the server had just closed the kept one."""
        self.began_s = time.perf_counter()
        kept = self._client.take()
        if kept is not None:
            kept.write(self._data)
            try:
                while not kept.status:
                    await kept.more()
                return kept
            except HttpError:
                kept.transport.close()
        fresh = await self._client.connect()
        fresh.write(self._data)
        return fresh
