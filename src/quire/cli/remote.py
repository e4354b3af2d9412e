"""A small client of OpenAI-compatible servers, for `quire chat --url` and `quire complete --url`. Standard library only."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from quire.errors import EngineUnavailable, InvalidRequest

TIMEOUT_S = 600


def post(url: str, body: dict[str, Any], api_key: str | None) -> Iterator[dict[str, Any]]:
    """Posts `body` with stream true and yields each event; raises InvalidRequest or EngineUnavailable with the server's words."""
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {api_key or os.environ.get('VLLM_API_KEY', 'EMPTY')}",
    }
    request = urllib.request.Request(url, json.dumps({**body, "stream": True}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            for line in response:
                text = line.decode("utf-8").strip()
                if text.startswith("data: ") and text != "data: [DONE]":
                    event = json.loads(text[len("data: ") :])
                    if "error" in event:
                        raise EngineUnavailable(event["error"]["message"])
                    yield event
    except urllib.error.HTTPError as error:
        raise InvalidRequest(f"{url} answered {error.code}: {_message(error.read())}") from None
    except urllib.error.URLError as error:
        raise EngineUnavailable(f"no server answers at {url} ({error.reason}); start one with `quire serve`") from None


def first_model(base_url: str, api_key: str | None) -> str:
    """Name of the first model that the server lists."""
    headers = {"Authorization": f"Bearer {api_key or os.environ.get('VLLM_API_KEY', 'EMPTY')}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(base_url + "/models", headers=headers), timeout=10
        ) as response:
            return str(json.load(response)["data"][0]["id"])
    except (urllib.error.URLError, KeyError, IndexError, ValueError) as error:
        raise EngineUnavailable(f"no server answers at {base_url} ({error}); start one with `quire serve`") from None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
