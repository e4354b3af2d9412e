"""A small client of OpenAI-compatible servers, for `quire chat --url` and `quire complete --url`. Standard library only."""

import http.client
import json
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from quire import env
from quire.cli.args import names_of, refuse_given
from quire.config import EngineArgs
from quire.errors import ConfigError, EngineUnavailable, InvalidRequest

STREAM_TIMEOUT_S = 600
LOOKUP_TIMEOUT_S = 10
EVENT_PREFIX = "data: "
LAST_EVENT = "data: [DONE]"


@dataclass(frozen=True)
class Server:
    """A server's address, ending in /v1, and the key to send."""

    base_url: str
    api_key: str

    @classmethod
    def at(cls, url: str, api_key: str | None) -> "Server":
        """An address as people type it: without /v1, or with a slash at its end. Raises ConfigError for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url is {url!r}; an address such as http://127.0.0.1:8000/v1 is needed")
        return cls(url.rstrip("/") + ("" if parts.path.strip("/") else "/v1"), api_key or env.api_key() or "EMPTY")

    def first_model(self) -> str:
        """Name of the first model that the server lists. Raises as `stream`."""
        with self._open("/models", None, LOOKUP_TIMEOUT_S) as response:
            try:
                return str(json.load(response)["data"][0]["id"])
            except (ValueError, KeyError, IndexError, TypeError):
                raise EngineUnavailable(
                    f"what answers at {self.base_url} does not list models as OpenAI's API does"
                ) from None

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Posts `body` with stream true and yields each event.

        Raises InvalidRequest when the server refuses it, EngineUnavailable when there is no (whole) answer, with the server's words.
        """
        with self._open(path, json.dumps({**body, "stream": True}).encode(), STREAM_TIMEOUT_S) as response:
            try:
                yield from _events(response)
            except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
                raise EngineUnavailable(f"the answer from {self.base_url} broke off: {error}") from None

    def _open(self, path: str, data: bytes | None, timeout_s: float) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"}
        url = self.base_url + path
        try:
            return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise InvalidRequest(f"{url} answered {error.code}: {_message(error.read())}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise EngineUnavailable(f"no server answers at {url} ({reason}); start one with `quire serve`") from None


def check_given(given: Namespace) -> None:
    """Options of a model that is loaded here say nothing to a server, and the other way round. Raises ConfigError."""
    if getattr(given, "url", None) is None:
        refuse_given(given, ("model_name", "api_key"), "is for a server; say which with --url")
    else:
        why = "is for a model that is loaded here, and with --url none is; --model-name chooses one of the server's"
        refuse_given(given, names_of(EngineArgs), why)


def _events(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        text = line.decode("utf-8").strip()
        if text == LAST_EVENT:
            return
        if text.startswith(EVENT_PREFIX):
            event = json.loads(text[len(EVENT_PREFIX) :])
            if "error" in event:
                raise EngineUnavailable(event["error"]["message"])
            yield event
    raise EOFError("it has no last event")


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
