"""The HTTP calls that Open WebUI makes, replayed: python open_webui.py URL. Needs httpx.

Taken from its backend/open_webui/routers/openai.py and its task prompts: the administrator's connection goes through its own server;
a "direct connection" of a user is made by the browser, and so asks by CORS first.
"""

import concurrent.futures
import json

import httpx
from report import MESSAGES, MODEL, QUESTION, URL, run

ORIGIN = "http://localhost:3000"
client = httpx.Client(base_url=URL + "/v1", headers={"Authorization": "Bearer EMPTY"}, timeout=60)
TITLE = f"### Task:\nGenerate a concise title of 3-5 words for the chat.\n### Chat History:\nUSER: {QUESTION}"


def events(response: httpx.Response) -> list[dict]:
    """The objects of a stream, as its parser takes them: lines that begin with data:."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def models() -> None:
    """Verifying a connection, and filling the list of models."""
    found = client.get("/models").json()
    assert found["object"] == "list"
    (card,) = found["data"]
    assert card["id"] == MODEL and card["owned_by"] and card["max_model_len"] > 0


def stream() -> None:
    fields = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/chat/completions", json=fields) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        found = events(response)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in found if event["choices"])
    assert "Paris" in text and found[-1]["usage"]["completion_tokens"] > 0


def chat() -> None:
    """Titles, tags and follow-up questions are asked for behind an answer, all at once and unstreamed."""
    fields = {"model": MODEL, "messages": [{"role": "user", "content": TITLE}], "stream": False, "max_tokens": 100}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/chat/completions", json=fields), range(4)))
    assert all(isinstance(answer.json()["choices"][0]["message"]["content"], str) for answer in answers)


def embeddings() -> None:
    """For documents, if this server is set as the embedding engine: refused in words that it shows."""
    answer = client.post("/embeddings", json={"input": ["hello"], "model": MODEL})
    assert answer.status_code == 400 and "does not support Embeddings API" in answer.json()["error"]["message"]


def preflight() -> None:
    """A direct connection: the browser asks whether this origin may call."""
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    answer = httpx.options(URL + "/v1/chat/completions", headers=asked)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    answer = client.get("/models", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN


run(models, stream, chat, embeddings, preflight)
