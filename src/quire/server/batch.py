"""A file of requests, answered one after another into another file: OpenAI's batch format, through a server's own HTTP routes.

Each line of the input is {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}; each line of the output, in the same
order, {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}. A line that is wrong has its error in its place.
"""

import collections
import http.client
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from quire.errors import EngineUnavailable

URLS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/score", "/score",
    "/v1/rerank", "/v2/rerank", "/rerank",
)  # fmt: skip
WINDOW = 4  # lines read ahead of the oldest unanswered one, in units of threads
RETRIED = (429, 503)
NUM_TRIES = 30
TIMEOUT_S = 3600.0
POLL_S = 0.05
Row = dict[str, Any]


@dataclass
class Counts:
    """How the lines fared."""

    answered: int = 0
    refused: int = 0


class Poster:
    """Posts bodies to a server, on a connection for each thread."""

    def __init__(self, url: str, api_key: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {api_key}"}
        self._local = threading.local()

    def wait_ready(self, is_gone: Callable[[], bool]) -> None:
        """Until the server can compute. Raises EngineUnavailable when it is gone."""
        while not is_gone():
            try:
                if self._request("GET", "/health", None)[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(POLL_S)
        raise EngineUnavailable("the server ended before it was ready")

    def post(self, path: str, body: Row) -> Row:
        """The response of a batch line. A full queue and an engine that is being replaced are waited for. Raises EngineUnavailable."""
        data = json.dumps(body).encode()
        status, request_id, answer = 0, "", b""
        for _ in range(NUM_TRIES):
            try:
                status, request_id, answer = self._request("POST", path, data)
            except (OSError, http.client.HTTPException) as error:
                raise EngineUnavailable(f"the server is gone: {error}") from None
            if status not in RETRIED:
                break
            time.sleep(1.0)
        return {"status_code": status, "request_id": request_id, "body": json.loads(answer)}

    def _request(self, method: str, path: str, data: bytes | None) -> tuple[int, str, bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, data, self._headers)
            response = connection.getresponse()
            return response.status, response.headers.get("x-request-id", ""), response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise


def answer_all(
    lines: Iterable[str], post: Callable[[str, Row], Row], num_threads: int, counts: Counts
) -> Iterator[Row]:
    """The output row of each line that is not blank, in order; so many are under way at once. Raises EngineUnavailable."""
    pending: collections.deque[Future[Row]] = collections.deque()
    with ThreadPoolExecutor(num_threads, "batch") as pool:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    pending.append(pool.submit(answer, line, number, post))
                if len(pending) >= WINDOW * num_threads:
                    yield _counted(pending.popleft().result(), counts)
            while pending:
                yield _counted(pending.popleft().result(), counts)
        finally:
            for future in pending:
                future.cancel()


def answer(line: str, number: int, post: Callable[[str, Row], Row]) -> Row:
    """The output row of one line of the input."""
    row: Row = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": None, "response": None, "error": None}
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return row | {"error": {"code": "invalid_json_line", "message": f"line {number} is not valid JSON: {error}"}}
    if isinstance(request, dict) and isinstance(request.get("custom_id"), str):
        row["custom_id"] = request["custom_id"]
    fault = _fault_of(request)
    if fault is not None:
        return row | {"error": {"code": "invalid_request", "message": f"line {number}: {fault}"}}
    response = post(request["url"], request["body"])
    row["response"] = response
    if response["status_code"] != 200:
        said = response["body"].get("error") or {}
        row["error"] = {"code": said.get("code") or said.get("type"), "message": said.get("message")}
    return row


def _fault_of(request: Any) -> str | None:
    if not isinstance(request, dict):
        return "a line is a JSON object"
    if not isinstance(request.get("custom_id"), str):
        return "custom_id must be a string"
    if request.get("method", "POST") != "POST":
        return f"method is {str(request['method'])[:20]!r}; only POST is possible"
    if request.get("url") not in URLS:
        return f"url is {str(request.get('url'))[:80]!r}; there are {', '.join(URLS)}"
    if not isinstance(request.get("body"), dict):
        return "body must be an object"
    return "stream has no place in a batch" if request["body"].get("stream") else None


def _counted(row: Row, counts: Counts) -> Row:
    if row["error"] is None:
        counts.answered += 1
    else:
        counts.refused += 1
    return row
