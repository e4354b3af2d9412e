"""A server with a script: it streams pieces at told times, and writes down when it did."""

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """gaps_s: before each piece of text; status and body: of a refusal; cut: the connection breaks off before the end."""

    gaps_s: tuple[float, ...] = (0.0,)
    text: str = "x"
    status: int = 200
    body: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    error: str = ""
    usage: bool = True


@dataclass
class Seen:
    """One request as this side saw it; times of time.perf_counter."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    arrived_s: float
    written_s: list[float] = field(default_factory=list)
    connection: int = 0


class ScriptedServer:
    """Use as a context manager. answers: one a request, in order of arrival; the last one is repeated."""

    def __init__(self, *answers: Answer, tokens_per_word: float = 1.0, keep_alive: bool = True) -> None:
        self.answers = list(answers) or [Answer()]
        self.seen: list[Seen] = []
        self.tokens_per_word = tokens_per_word
        self.keep_alive = keep_alive
        self.active = self.peak = 0
        self._num_connections = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "ScriptedServer":
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def measured(self) -> list[Seen]:
        """Requests of the run itself: the two that measure words and the warm-ups ask for little, or come first."""
        return [seen for seen in self.seen if seen.path.startswith("/v1/c")]

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        number = self._num_connections
        try:
            while await self._request(reader, writer, number):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        arrived_s = time.perf_counter()
        line, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (entry.partition(": ") for entry in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = line.split(" ")
        if method == "GET":
            return await self._plain(writer, 200, {"data": [{"id": "stub"}]})
        seen = Seen(path, headers, json.loads(body), arrived_s, connection=number)
        answer = self.answers[min(len(self.seen), len(self.answers) - 1)]
        self.seen.append(seen)
        if answer.status != 200:
            return await self._plain(writer, answer.status, answer.body)
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            return await self._stream(writer, answer, seen)
        finally:
            self.active -= 1

    async def _plain(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> bool:
        data = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data))
        await writer.drain()
        return True

    async def _stream(self, writer: asyncio.StreamWriter, answer: Answer, seen: Seen) -> bool:
        end = b"" if self.keep_alive else b"connection: close\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + end)
        writer.write(b"transfer-encoding: chunked\r\n\r\n" if self.keep_alive else b"\r\n")
        if seen.path == CHAT:
            self._event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for gap_s in answer.gaps_s:
            await asyncio.sleep(gap_s)
            piece = {"delta": {"content": answer.text}} if seen.path == CHAT else {"text": answer.text}
            seen.written_s.append(time.perf_counter())
            self._event(writer, {"choices": [{"index": 0, **piece}]})
        if answer.cut:
            return False
        if answer.error:
            self._event(writer, {"error": {"message": answer.error}})
        if answer.usage:
            self._event(writer, {"choices": [], "usage": self._usage(seen, answer)})
        self._write(writer, b"data: [DONE]\n\n")
        if self.keep_alive:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return self.keep_alive

    def _usage(self, seen: Seen, answer: Answer) -> dict[str, int]:
        text = seen.body["messages"][0]["content"] if seen.path == CHAT else seen.body["prompt"]
        num_in = 7 + round(len(text.split()) * self.tokens_per_word)  # 7: of a chat template
        return {"prompt_tokens": num_in, "completion_tokens": 2 * len(answer.gaps_s)}

    def _event(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        self._write(writer, b"data: " + json.dumps(event).encode() + b"\n\n")

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self.keep_alive else data)
