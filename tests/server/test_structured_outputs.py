"""Constrained output over HTTP, in both dialects; a bad constraint is one client's 400."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema
import pytest
from servers import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("structured") / "log"
    with Server(log, None, dtype="float32", max_model_len=512) as made:
        yield made


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def chat(http, **fields):
    body = {"messages": [{"role": "user", "content": "Give me JSON."}], "max_tokens": 200, "seed": 1, **fields}
    return http.post("/v1/chat/completions", json=body)


def contents(response):
    assert response.status_code == 200, response.text
    return [choice["message"]["content"] for choice in response.json()["choices"]]


def is_person(text):
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": SCHEMA}}}, is_person),
        ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
        ({"structured_outputs": {"json": SCHEMA}, "n": 3}, is_person),
        ({"structured_outputs": {"regex": "[xyz]{5}"}}, lambda text: re.fullmatch("[xyz]{5}", text)),
        ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, is_person),
        ({"guided_json": json.dumps(SCHEMA), "guided_whitespace_pattern": " ?"}, is_person),
        ({"guided_regex": r"\d{4}"}, lambda text: re.fullmatch(r"\d{4}", text)),
        ({"guided_choice": ["yes", "no"], "logprobs": True, "top_logprobs": 2}, lambda text: text in ("yes", "no")),
        ({"guided_grammar": 'start: "a" | "b"'}, lambda text: text in ("a", "b")),
    ],
)  # fmt: skip
def test_both_dialects(http, fields, fits):
    for text in contents(chat(http, **fields)):
        assert fits(text)
    completion = http.post("/v1/completions", json={"prompt": "JSON:", "max_tokens": 200, "seed": 1, **fields, "logprobs": None,
                                                    "top_logprobs": None})  # fmt: skip
    for choice in completion.json()["choices"]:
        assert fits(choice["text"])


def test_a_stream_is_the_same_text(http):
    fields = {"guided_json": SCHEMA, "seed": 5, "n": 2}
    whole = contents(chat(http, **fields))
    parts = ["", ""]
    for line in chat(http, **fields, stream=True).text.split("\n\n"):
        if line.startswith("data: {"):
            choice = json.loads(line[6:])["choices"][0]
            parts[choice["index"]] += choice["delta"].get("content") or ""
    assert parts == whole


def test_a_compiler_that_dies_is_replaced(http, server):
    fields = {"guided_regex": "[ab]{3}", "max_tokens": 9}
    assert contents(chat(http, **fields))
    workers = [p for p in server.family() if "quire.text.grammar_worker" in p.cmdline()]
    assert len(workers) == 1
    workers[0].kill()
    assert contents(chat(http, **fields)) and contents(chat(http, guided_regex="[cd]{3}", max_tokens=9))


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "(a"}, {"guided_json": {"type": "bogus"}}, {"guided_grammar": "start: nobody"}, {"guided_choice": [1]},
        {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}}, {"response_format": {"x": 1}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}}, {"structured_outputs": {"rex": "a"}},
        {"response_format": {"type": "structural_tag"}}, {"structured_outputs": {"json": {}, "regex": "a"}},
        {"guided_json": {"type": "null"}, "guided_regex": "a"}, {"guided_whitespace_pattern": " "}, {"guided_json": 5},
        {"guided_regex": "a", "ignore_eos": True}, {"guided_choice": ["a"], "min_tokens": 50},
        {"guided_json": {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(2000)}}},
    ],
)  # fmt: skip
def test_a_bad_constraint_is_a_400_and_harms_nobody(http, fields):
    neighbour = {"prompt": "Hello", "max_tokens": 40, "seed": 3}
    alone = http.post("/v1/completions", json=neighbour).json()["choices"][0]["text"]
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(http.post, "/v1/completions", json=neighbour)
        response = chat(http, **fields)
    assert response.status_code == 400 and set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert beside.result().json()["choices"][0]["text"] == alone
