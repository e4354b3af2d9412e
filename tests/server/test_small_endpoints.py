"""/tokenize and /detokenize with the bundled model, the routes of pooling models, and what /openapi.json says of them all."""

import json

import httpx
import pytest
from servers import Server
from tokenizers import Tokenizer

from quire.hub import resolve_model

POOLING = ("/v1/embeddings", "/v1/score", "/score", "/rerank", "/v1/rerank", "/v2/rerank", "/classify", "/pooling")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 🎉"}]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("small") / "log", None, max_model_len=2048) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client


@pytest.fixture(scope="module")
def reference():
    return Tokenizer.from_file(str(resolve_model("builtin:tiny") / "tokenizer.json"))


@pytest.mark.parametrize("text", ["Hello, world!", "浙江的省会在哪里？", "a\n\n  b 🎉", "<|im_start|>user"])
def test_tokens_and_back(http, reference, text):
    answer = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    wanted = reference.encode(text)
    assert answer == {
        "count": len(wanted.ids),
        "max_model_len": 2048,
        "tokens": wanted.ids,
        "token_strs": wanted.tokens,
    }
    assert http.post("/detokenize", json={"tokens": wanted.ids}).json() == {"prompt": text}
    assert http.post("/tokenize", json={"prompt": text}).json()["token_strs"] is None


def test_messages_give_the_prompt_that_a_chat_has(http):
    tokens = http.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    chat = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True})
    assert tokens == chat.json()["prompt_token_ids"]
    shorter = http.post("/tokenize", json={"messages": MESSAGES, "add_generation_prompt": False}).json()["tokens"]
    assert len(shorter) < len(tokens) and shorter == tokens[: len(shorter)]


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
    ],
)
def test_bad_bodies(http, path, body, param):
    response = http.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


def test_unknown_fields_are_named(http):
    response = http.post("/tokenize", json={"prompt": "a", "nobody_knows": 1})
    assert response.status_code == 200 and response.headers["x-quire-ignored"] == "nobody_knows"


@pytest.mark.parametrize("path", POOLING)
def test_pooling_routes_say_why_not(http, path):
    response = http.post(path, json={"model": "builtin-tiny", "input": "hello"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "The model does not support Embeddings API"
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert http.get(path).status_code == 405


def test_the_document_of_routes_is_whole(http):
    document = http.get("/openapi.json").json()
    text = json.dumps(document)
    some = {"/tokenize", "/detokenize", "/ready", "/load", "/v1/requests/{request_id}/explain"}
    assert {*POOLING, *some, "/v1/responses", "/v1/responses/{response_id}", "/v1/messages"} <= set(document["paths"])
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        found = document
        for name in reference.split("/"):
            found = found[name]  # a KeyError here is a reference to nothing
    operations = [(path, op) for path, ops in document["paths"].items() for op in ops.values()]
    assert all({"200", "4XX", "5XX"} <= set(op["responses"]) for _, op in operations)
    assert len({op["operationId"] for _, op in operations}) == len(operations)
    bodies = [
        op
        for path, ops in document["paths"].items()
        for method, op in ops.items()
        if method == "post" and path != "/ping" and not path.endswith("/cancel")
    ]
    assert all(op["requestBody"]["content"]["application/json"]["schema"] for op in bodies)
