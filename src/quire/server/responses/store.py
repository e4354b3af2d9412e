"""Responses that clients may come back to, in memory: the latest, in number and in bytes, the oldest forgotten first."""

from dataclasses import dataclass
from typing import Any

import msgspec

from quire.errors import ClientError

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 2**20


class ResponseNotFound(ClientError):
    """No response of that id is stored."""

    status = 404
    type = "NotFoundError"
    code = "response_not_found"
    param = "response_id"


@dataclass(frozen=True)
class Stored:
    """One response.

    response  as it was answered
    inputs    input items of its own request, each with an id
    chat      items of the whole conversation, its output included: what a next response goes on from
    """

    response: dict[str, Any]
    inputs: list[dict[str, Any]]
    chat: list[dict[str, Any]]
    num_bytes: int


class ResponseStore:
    """The latest responses by id."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._stored: dict[str, Stored] = {}
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def add(self, response: dict[str, Any], inputs: list[dict[str, Any]], chat: list[dict[str, Any]]) -> None:
        """Keeps a response, unless it alone is larger than all that may be kept."""
        num_bytes = len(msgspec.json.encode((response, chat)))
        if num_bytes > self._max_bytes:
            return
        self._stored[response["id"]] = Stored(response, inputs, chat, num_bytes)
        self.num_bytes += num_bytes
        while len(self._stored) > self._max_responses or self.num_bytes > self._max_bytes:
            self.remove(next(iter(self._stored)))

    def find(self, response_id: str) -> Stored:
        """Raises ResponseNotFound."""
        if response_id not in self._stored:
            raise ResponseNotFound(
                f"no response {response_id[:80]!r} is stored; the latest {self._max_responses} are, unless store was false"
            )
        return self._stored[response_id]

    def remove(self, response_id: str) -> None:
        """Forgets it. Raises ResponseNotFound."""
        self.num_bytes -= self.find(response_id).num_bytes
        del self._stored[response_id]
