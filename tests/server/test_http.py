"""The HTTP contract, with the engine of fake_engine.py: shapes, errors, limits, keys, disconnects."""

import asyncio
import contextlib
import json
import math
import socket
import time
from http.client import HTTPConnection

import httpx
import pytest
import uvicorn
from fake_engine import CONFIG, token_at
from servers import Server, fake_model, free_port
from starlette.responses import Response

from quire.server import protocol
from quire.server.gate import Gate
from quire.server.metrics import Metrics

MAX_LEN = CONFIG.max_model_len
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
VOCAB = 268  # of the test tokenizer; the fake engine's tokens are below 256


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    with Server(
        folder / "log", fake_model(folder / "model", VOCAB), fake=True, served_model_name=["m:1", "org/m"]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def chat(http, **fields) -> httpx.Response:
    return http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 4, **fields})


def text(http, **fields) -> httpx.Response:
    return http.post(TEXT, json={"prompt": [1, 2, 3], "max_tokens": 4, **fields})


def events(response: httpx.Response) -> list[dict]:
    """Parsed events of a stream that ended well."""
    *parts, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def error(response: httpx.Response, status: int) -> dict:
    """The error object, after checks that hold for all of them."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    found = response.json()
    assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}
    assert found["error"]["message"] and "Traceback" not in response.text
    return found["error"]


# ---- shapes ----


def test_chat(http):
    answer = chat(http).json()
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "m:1" and isinstance(answer["created"], int)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["total_tokens"] == 4 + answer["usage"]["prompt_tokens"]
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant" and isinstance(choice["message"]["content"], str)
    assert "tool_calls" not in choice["message"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)


def test_chat_stream(http):
    whole = chat(http, seed=1).json()["choices"][0]["message"]["content"]
    response = chat(http, seed=1, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = events(response)
    assert {(c["object"], len(c["choices"])) for c in chunks} == {("chat.completion.chunk", 1)}
    assert len({c["id"] for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert all(isinstance(d["content"], str) for d in deltas[:-1])
    assert "".join(d.get("content", "") for d in deltas) == whole
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert not any("usage" in c for c in chunks)


def test_usage_comes_last_and_only_when_asked(http):
    chunks = events(chat(http, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 4
    assert all(len(c["choices"]) == 1 and "usage" not in c for c in chunks[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    for answer in (chat, text):
        counts = [c["usage"]["completion_tokens"] for c in events(answer(http, stream=True, stream_options=options))]
        assert counts == sorted(counts) and counts[-1] == 4


def test_n_answers_stream_side_by_side(http):
    whole = chat(http, n=3, temperature=1, seed=2).json()
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 12
    chunks = events(chat(http, n=3, temperature=1, seed=2, stream=True))
    for index in range(3):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["delta"] == {}
        streamed = "".join(c["delta"].get("content", "") for c in mine)
        assert streamed == whole["choices"][index]["message"]["content"]


def test_completions_of_several_prompts(http):
    answer = text(http, prompt=[[1, 2], [3, 4]], n=2, temperature=1, seed=9, return_token_ids=True).json()
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    wanted = [[token_at(p, 9, i, k) for k in range(4)] for p in ([1, 2], [3, 4]) for i in range(2)]
    assert [c["token_ids"] for c in answer["choices"]] == wanted
    assert [c["prompt_token_ids"] for c in answer["choices"]] == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert answer["usage"] == {
        "prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    chunks = events(text(http, prompt=[[1, 2], [3, 4]], n=2, temperature=1, seed=9, stream=True, return_token_ids=True))
    for index, ids in enumerate(wanted):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert [i for c in mine for i in c["token_ids"]] == ids
        assert "".join(c["text"] for c in mine) == answer["choices"][index]["text"]
        assert [c["finish_reason"] for c in mine][-1] == "length"


@pytest.mark.parametrize("prompt", ["hello", ["hello"], [104, 101], [[104, 101]]])
def test_forms_of_a_prompt(http, prompt):
    assert len(text(http, prompt=prompt).json()["choices"]) == 1


def test_sixteen_tokens_by_default(http):
    assert http.post(TEXT, json={"prompt": "a"}).json()["usage"]["completion_tokens"] == 16


def test_echo(http):
    whole = text(http, prompt="hello", seed=1).json()["choices"][0]["text"]
    echoed = text(http, prompt="hello", seed=1, echo=True).json()["choices"][0]["text"]
    assert echoed == "hello" + whole
    streamed = events(text(http, prompt="hello", seed=1, echo=True, stream=True))
    assert "".join(c["choices"][0]["text"] for c in streamed) == echoed
    only = text(http, prompt="hello", echo=True, max_tokens=0).json()
    assert only["choices"][0]["text"] == "hello" and only["usage"]["completion_tokens"] == 0


def test_a_stop_string_ends_an_answer_and_the_engine_stops_too(http, server):
    whole = text(http, seed=4, max_tokens=64).json()["choices"][0]["text"]
    stop = next(c for c in whole[5:] if c != "\ufffd" and whole.index(c) >= 5)
    got = text(http, seed=4, max_tokens=4000, stop=stop).json()
    choice = got["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        whole[: whole.index(stop)],
        "stop",
        stop,
    )
    assert got["usage"]["completion_tokens"] < 64
    streamed = events(text(http, seed=4, max_tokens=4000, stop=[stop], stream=True))
    assert "".join(c["choices"][0]["text"] for c in streamed) == choice["text"]
    wait_until_idle(server)


def test_models(http):
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list" and [m["id"] for m in listed["data"]] == ["m:1", "org/m"]
    card = listed["data"][0]
    assert card["object"] == "model" and card["max_model_len"] == MAX_LEN and card["owned_by"]
    assert card["permission"][0]["object"] == "model_permission"
    assert http.get("/v1/models/org/m").json()["id"] == "org/m"
    assert error(http.get("/v1/models/other"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["m:1", "org/m", "anything", None])
def test_one_model_answers_to_any_name(http, name):
    assert chat(http, model=name).json()["model"] == (name if name in ("m:1", "org/m") else "m:1")


def test_operators_routes(http):
    for path in ("/health", "/ready", "/ping"):
        response = http.get(path)
        assert (response.status_code, response.content) == (200, b"")
    assert http.get("/version").json()["version"]
    assert http.get("/load").json() == {"server_load": 0}
    paths = http.get("/openapi.json").json()["paths"]
    assert {CHAT, TEXT, "/v1/models", "/health", "/metrics"} <= set(paths)


def test_metrics_have_the_names_that_dashboards_query(http):
    chat(http, max_tokens=8)
    lines = http.get("/metrics").text
    for name in (
        "num_requests_running num_requests_waiting kv_cache_usage_perc gpu_cache_usage_perc prefix_cache_queries_total "
        "prefix_cache_hits_total num_preemptions_total prompt_tokens_total generation_tokens_total "
        "time_to_first_token_seconds_bucket inter_token_latency_seconds_sum time_per_output_token_seconds_count "
        "e2e_request_latency_seconds_bucket request_queue_time_seconds_sum request_prefill_time_seconds_sum "
        "request_decode_time_seconds_sum request_inference_time_seconds_count request_prompt_tokens_bucket "
        "request_generation_tokens_bucket request_max_num_generation_tokens_sum request_params_n_bucket "
        "request_params_max_tokens_bucket iteration_tokens_total_bucket"
    ).split():
        assert f'vllm:{name}{{engine="0",' in lines, name
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="m:1"}' in lines
    assert 'vllm:cache_config_info{block_size="16"' in lines


# ---- what is refused, and how ----


def test_unknown_routes_and_methods(http):
    assert error(http.get("/v1/nothing"), 404)["code"] == "not_found"
    assert "GET" in error(http.get(CHAT), 405)["message"]
    assert error(http.delete("/health"), 405)["type"] == "invalid_request_error"
    assert http.post(f"{http.base_url}/v1//completions/", json={"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"1", b'"a"', b'{"prompt": NaN}', b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e400}', b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "a", "x": ' + b"[" * 64 + b"]" * 64 + b"}", b"[" * 100_000, b'{"a":' * 5000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": "a"} x',
    ],
)  # fmt: skip
def test_bodies_that_are_no_proper_json(http, body):
    response = http.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert error(response, 400)["type"] == "invalid_request_error"


def test_depth_is_counted_by_nesting_not_by_brackets(http):
    flat = [[1]] * 200
    assert text(http, prompt=flat, max_tokens=1).status_code == 200
    deep = {"prompt": "a", "max_tokens": 1, "x": json.loads("[" * 63 + "]" * 63)}
    assert http.post(TEXT, json=deep).status_code == 200


def test_bodies_over_the_limit(http, server):
    big = b'{"prompt": "' + b"a" * (33 * 2**20) + b'"}'
    headers = {"content-type": "application/json"}
    assert "33554432" in error(http.post(TEXT, content=big, headers=headers), 413)["message"]
    chunks = (big[i : i + 2**20] for i in range(0, len(big), 2**20))
    try:
        assert http.post(TEXT, content=chunks, headers=headers).status_code == 413
    except httpx.TransportError:
        pass  # it hung up on us while we still sent
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**40}\r\n\r\n".encode())
        assert b" 413 " in sock.recv(4096)


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}]
)
def test_bodies_of_another_kind(http, headers):
    error(http.post(TEXT, content=b'{"prompt": "a"}', headers=headers), 415)


HUGE = [2**31, 2**63, 2**64, 10**400]
ODD = ["1", "", [], {}, [1], "x" * 1000, True]
OPTIONAL_NUMBERS = {
    "n": (1, 64), "temperature": (0, 2), "top_p": (0, 1), "top_k": (-1, None), "min_p": (0, 1), "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2), "repetition_penalty": (0, 100), "seed": (None, None), "max_tokens": (1, None),
    "min_tokens": (0, None), "logprobs": (0, 20), "prompt_logprobs": (0, 20), "priority": (0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONAL_NUMBERS)
def test_numeric_fields_take_numbers_in_bounds_and_name_themselves_otherwise(http, name):
    low, high = OPTIONAL_NUMBERS[name]
    bad = list(ODD)
    if name not in ("seed", "top_k", "max_tokens", "min_tokens"):
        bad += HUGE
    if name != "temperature" and not name.endswith("_penalty") and name not in ("top_p", "min_p"):
        bad += [0.5, -0.5]
    bad += [low - 1] if low is not None else []
    bad += [high + 1] if high is not None else []
    for value in bad:
        found = error(text(http, **{name: value}), 400)
        assert found["param"] == name or "JSON" in found["message"], (value, found)
    for value in {low, high} - {None}:
        more = {"temperature": 1.0} if name == "n" else {}
        if (name, value) in (("top_p", 0), ("repetition_penalty", 0)):
            continue  # open ends
        assert text(http, **{name: value, **more}).status_code == 200, value
    assert text(http, **{name: None}).status_code == 200


@pytest.mark.parametrize("name", ["max_tokens", "min_tokens", "max_completion_tokens", "seed"])
@pytest.mark.parametrize("value", [2**31, 2**63, 2**64, 10**30])
def test_huge_integers(http, name, value):
    response = chat(http, **{name: value})
    if name == "seed" and value < 2**64:
        assert response.status_code == 200
    else:
        assert error(response, 400)["param"] in (name, "max_tokens")


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": 1}, {"stop": ["a", 1]}, {"stop": ["a"] * 17}, {"stop": [""]}, {"stop": "a" * 257},
        {"stop_token_ids": [-1]}, {"stop_token_ids": [VOCAB]}, {"stop_token_ids": ["1"]}, {"stop_token_ids": 3},
        {"logit_bias": {"a": 1}}, {"logit_bias": {"-1": 1}}, {"logit_bias": {str(VOCAB): 1}}, {"logit_bias": {"1": "a"}},
        {"logit_bias": {str(i): 0 for i in range(301)}}, {"logit_bias": [1]},
        {"allowed_token_ids": []}, {"allowed_token_ids": [VOCAB]}, {"allowed_token_ids": [True]},
        {"bad_words": [""]}, {"bad_words": ["a"] * 129}, {"bad_words": "a" * 3 and [1]}, {"cache_salt": "a" * 257}, {"cache_salt": 1},
        {"stream": "yes"}, {"stream_options": {"include_usage": True}}, {"stream_options": 1, "stream": True},
        {"ignore_eos": 1}, {"skip_special_tokens": "no"}, {"echo": 1}, {"prompt": 1}, {"prompt": None}, {"prompt": {}},
        {"prompt": []}, {"prompt": ""}, {"prompt": [[]]}, {"prompt": [1, "a"]}, {"prompt": [1, True]}, {"prompt": [-1]},
        {"prompt": [VOCAB]}, {"prompt": [2**70]}, {"prompt": ["a", [1]]}, {"prompt": [[1]] * 257}, {"prompt": [1.5]},
        {"model": 3}, {"prompt_logprobs": 1, "stream": True}, {"logprobs": -1}, {"n": 2, "temperature": 0},
        {"min_tokens": 5, "max_tokens": 4}, {"priority": 1},
    ],
)  # fmt: skip
def test_values_that_cannot_be_honoured(http, fields):
    found = error(text(http, **fields), 400)
    assert found["type"] == "invalid_request_error"
    assert found["param"] in fields, found


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": None}, {"messages": []}, {"messages": "hi"}, {"messages": [1]}, {"messages": [{}]}, {"messages": [{"role": 1}]},
        {"messages": [{"role": "user", "content": 1}]}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"top_logprobs": 2}, {"top_logprobs": 21, "logprobs": True}, {"top_logprobs": -1, "logprobs": True}, {"logprobs": 1},
        {"add_generation_prompt": True, "continue_final_message": True}, {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": 1}, {"echo": True},
        {"tools": [{"type": "function"}]}, {"tool_choice": "required"}, {"functions": [{}]},
        {"best_of": 2}, {"use_beam_search": True},
        {"chat_template": "{{ 1 }}"}, {"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -2}, {"truncation_side": "up"}, {"modalities": ["audio"]}, {"logits_processors": ["os.system"]},
        {"thinking_token_budget": -1}, {"thinking_budget": 0.5}, {"documents": [{}]}, {"reasoning_effort": "huge"}, {"best_of": 3, "n": 2},
        {"function_call": {"name": "f"}}, {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
        {"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "g"}}]},
        {"length_penalty": 2.0}, {"vllm_xargs": {"a": 1}},
    ],
)  # fmt: skip
def test_chat_fields_that_cannot_be_honoured(http, fields):
    assert error(chat(http, **fields), 400)["param"] in [*fields, "logprobs"]


def test_hostile_bodies_hold_nobody_up(http, server):
    """A stream goes on while bodies of megabytes are refused; none takes long."""
    user = {"role": "user", "content": ""}
    hostile = [
        {"messages": [user] * 100_000}, {"messages": [{}] * 200_000}, {"messages": MESSAGES, "stop_token_ids": ["a"] * 300_000},
        {"messages": [{"role": "user", "content": "a" * 5_000_000}]}, {"messages": [{"role": "user", "content": [0] * 1_000_000}]},
        {"messages": MESSAGES, "logit_bias": {str(i): "x" for i in range(200_000)}},
    ]  # fmt: skip

    async def main() -> float:
        longest = 0.0
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            fields = {"prompt": [1], "max_tokens": 4000, "stream": True}
            async with client.stream("POST", TEXT, json=fields) as response:
                lines = response.aiter_lines()
                for body in hostile:
                    content = json.dumps(body).encode()
                    headers = {"content-type": "application/json"}
                    task = asyncio.ensure_future(client.post(CHAT, content=content, headers=headers))
                    while not task.done():
                        before = time.monotonic()
                        await anext(lines)
                        longest = max(longest, time.monotonic() - before)
                    error(task.result(), 400)
        return longest

    assert asyncio.run(main()) < 20.0  # seconds; a fraction of one on a machine that has nothing else to do
    wait_until_idle(server)


def test_fields_that_ask_for_nothing_are_no_error(http):
    neutral = {
        "tools": None, "tool_choice": "auto", "response_format": {"type": "text"}, "best_of": 1, "use_beam_search": False,
        "guided_json": None, "length_penalty": 1, "documents": [], "modalities": ["text"], "store": True, "metadata": {"a": "b"},
        "service_tier": "auto", "user": "u", "reasoning_effort": "low", "parallel_tool_calls": True, "prompt_cache_key": "k",
    }  # fmt: skip
    response = chat(http, **neutral)
    assert response.status_code == 200 and "x-quire-ignored" not in response.headers


def test_prompts_are_cut_where_that_is_asked_for(http):
    def kept(**fields):
        answer = text(http, prompt=[1, 2, 3, 4, 5], return_token_ids=True, **fields).json()
        return answer["choices"][0]["prompt_token_ids"]

    assert kept(truncate_prompt_tokens=3) == [3, 4, 5] and kept(truncate_prompt_tokens=9) == [1, 2, 3, 4, 5]
    assert kept(truncate_prompt_tokens=2, truncation_side="right") == [1, 2]
    long = text(http, prompt=[1] * 5000, truncate_prompt_tokens=-1, max_tokens=6)
    assert long.json()["usage"] == {**long.json()["usage"], "prompt_tokens": MAX_LEN - 6, "completion_tokens": 6}


def test_an_answer_that_begins_with_what_it_goes_on_with(http):
    messages = [*MESSAGES, {"role": "assistant", "content": "Once upon"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, "seed": 1}
    plain = chat(http, **fields).json()["choices"][0]["message"]["content"]
    assert chat(http, **fields, echo=True).json()["choices"][0]["message"]["content"] == "Once upon" + plain
    deltas = [c["choices"][0]["delta"].get("content", "") for c in events(chat(http, **fields, echo=True, stream=True))]
    assert "".join(deltas) == "Once upon" + plain


def test_fields_that_nobody_knows_are_named_and_logged_once(http, server):
    for _ in range(2):
        response = chat(http, **{"wibble": 1, "wob\nble": 2, "temperature": 0})
        assert response.headers["x-quire-ignored"] == "wibble, wob?ble"
    assert server.text().count("'wibble'") == 1
    many = chat(http, **{f"f{i}": i for i in range(1000)})
    assert len(many.headers["x-quire-ignored"]) < 1000


def test_whole_numbers_may_be_written_with_a_point(http):
    assert chat(http, max_tokens=4.0, n=1.0, top_k=5.0).json()["usage"]["completion_tokens"] == 4


def test_prompts_that_do_not_fit(http):
    too_long = error(text(http, prompt=[1] * MAX_LEN), 400)
    assert too_long["code"] == "context_length_exceeded" and str(MAX_LEN) in too_long["message"]
    both = error(text(http, prompt=[1] * (MAX_LEN - 10), max_tokens=11), 400)
    assert both["code"] == "context_length_exceeded" and both["param"] == "max_tokens"
    assert text(http, prompt=[1] * (MAX_LEN - 10), max_tokens=10).status_code == 200
    open_end = http.post(CHAT, json={"messages": [{"role": "user", "content": "a" * (MAX_LEN - 100)}]}).json()
    assert open_end["usage"]["total_tokens"] == MAX_LEN
    assert error(text(http, prompt="a" * 10**7), 400)["type"] == "invalid_request_error"


# ---- labels, keys, origins ----


def test_request_ids(http):
    assert chat(http).headers["x-request-id"] != chat(http).headers["x-request-id"]
    given = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1}, headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    for bad in ("a" * 200, "a b", "\xe9"):
        response = http.get("/health", headers={"X-Request-Id": bad.encode("latin-1")})
        assert response.headers["x-request-id"] != bad


def test_api_keys(tmp_path, server):
    keys = ["sk-one", "schlüssel"]
    with Server(
        tmp_path / "log", fake_model(tmp_path / "model"), fake=True, api_key=keys, strict_model_name=True
    ) as locked:
        with httpx.Client(base_url=locked.url, timeout=60) as http:
            for key in keys:
                value = f"Bearer {key}".encode()
                assert http.get("/v1/models", headers={"Authorization": value}).status_code == 200
                assert (
                    http.get("/v1/models", headers={"Authorization": value.replace(b"Bearer", b"bearer")}).status_code
                    == 200
                )
            bad = [None, b"", b"Bearer", b"Bearer sk-on", b"Bearer sk-onee", b"Basic sk-one", b"sk-one",
                   b"Bearer schlussel", "Bearer \xe9".encode("latin-1"), b"Bearer " + b"a" * 10_000]  # fmt: skip
            for value in bad:
                for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", f"{locked.url}//v1/models"), ("GET", "/v1/nothing"),
                                     ("GET", f"{locked.url}/x/..//v1/models"), ("PUT", TEXT)):  # fmt: skip
                    response = http.request(method, path, headers={"Authorization": value} if value is not None else {})
                    assert error(response, 401)["code"] == "invalid_api_key"
            two = [("Authorization", "Bearer sk-one"), ("Authorization", "Bearer sk-two")]
            assert http.get("/v1/models", headers=two).status_code == 401
            assert (
                http.get(
                    "/v1/models", headers={"Authorization": "Bearer sk-two", "Host": "localhost/health"}
                ).status_code
                == 401
            )
            for path in ("/health", "/ping", "/metrics", "/version"):
                assert http.get(path).status_code == 200
            good = {"Authorization": "Bearer sk-one"}
            wrong = http.post(CHAT, json={"model": "other", "messages": MESSAGES}, headers=good)
            assert error(wrong, 404)["code"] == "model_not_found"


def test_no_web_page_of_a_stranger_may_read_answers_unless_told_so(tmp_path, http):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in http.options(CHAT, headers=asked).headers
    folder = fake_model(tmp_path / "model")
    options = {"allowed_origins": ["https://good.example"], "api_key": ["k"]}
    with Server(tmp_path / "log", folder, fake=True, **options) as server:
        refused = httpx.get(server.url + "/v1/models", headers={"Origin": "https://good.example"}, timeout=60)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://good.example"
        for origin, allowed in (("https://good.example", True), ("https://evil.example", False)):
            response = httpx.options(server.url + CHAT, headers={**asked, "Origin": origin})
            assert (response.headers.get("access-control-allow-origin") == origin) == allowed


def test_heads_that_are_too_large(server):
    for head in (b"X: " + b"a" * 2**20 + b"\r\n", b"".join(b"X%d: a\r\n" % i for i in range(200)), b"a" * 2**17):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.settimeout(60)
            with contextlib.suppress(OSError):  # it may hang up while we still send
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
                assert b" 431 " in sock.recv(4096)


def test_idle_connections_stay_longer_than_the_openai_sdk_keeps_them(server):
    """It sends its next request on a connection that was idle for up to 5 s: closed at that very moment, the request would be lost."""
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        for pause_s in (httpx.Limits().keepalive_expiry + 1, 0):
            connection.request("GET", "/version")
            assert connection.getresponse().read()
            time.sleep(pause_s)


def test_heads_that_do_not_come(tmp_path, monkeypatch):
    async def main() -> list[bytes]:
        monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        config = uvicorn.Config(app, http=protocol.BoundedProtocol, lifespan="off", log_config=None, port=free_port())
        running = uvicorn.Server(config)
        task = asyncio.ensure_future(running.serve())
        while not running.started:
            await asyncio.sleep(0.01)
        answers = []
        for first in (b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
            writer.write(first)
            answers.append(await asyncio.wait_for(reader.read(), 60))
            writer.close()
        running.should_exit = True
        await task
        return answers

    nothing, half, second = asyncio.run(main())
    assert b" 408 " in nothing and b" 408 " in half
    assert second.startswith(b"HTTP/1.1 200") and b" 408 " in second


def test_requests_at_once_have_a_limit():
    class Idle:
        api_keys, draining, num_active = [], False, 0
        metrics = Metrics("m")

    async def main() -> list[int]:
        inside, release = 0, asyncio.Event()

        async def app(scope, receive, send):
            nonlocal inside
            inside += 1
            await release.wait()
            await Response(b"ok")(scope, receive, send)

        transport = httpx.ASGITransport(Gate(app, Idle(), max_active=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            waiting = [asyncio.ensure_future(client.get("/v1/models")) for _ in range(2)]
            while inside < 2:
                await asyncio.sleep(0.01)
            refused = await client.get("/v1/models")
            assert refused.headers["retry-after"]
            release.set()
            return [refused.status_code, *[(await task).status_code for task in waiting]]

    assert asyncio.run(main()) == [503, 200, 200]


def test_a_fault_of_ours_is_a_500_that_tells_nothing():
    class Idle:
        api_keys, draining, num_active = [], False, 0
        metrics = Metrics("m")

    async def app(scope, receive, send):
        raise RuntimeError("secret detail")

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Gate(app, Idle(), 9)), base_url="http://x"
        ) as client:
            return await client.get("/v1/models")

    response = asyncio.run(main())
    assert error(response, 500)["code"] == "internal_error" and "secret" not in response.text


def test_odd_paths_and_methods_make_no_new_series(http):
    for i in range(3):
        http.get(f"/odd/{i}")
        http.request(f"ODD{i}", "/v1/models")
    names = {line.partition(" ")[0] for line in http.get("/metrics").text.splitlines()}
    for i in range(3, 50):
        http.get(f"/odd/{i}")
        http.request(f"ODD{i}", "/v1/models")
    after = {line.partition(" ")[0] for line in http.get("/metrics").text.splitlines()}
    assert after == names and 'http_requests_total{handler="none",method="GET",status="4xx"}' in names


def test_waiting_requests_beyond_the_limit_are_told_to_come_back(tmp_path):
    folder = fake_model(tmp_path / "model")
    with Server(tmp_path / "log", folder, fake=True, max_num_queued_reqs=0) as server:
        many = {"prompt": [[1]] * (CONFIG.max_num_seqs + 1), "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", server.url + TEXT, json=many, timeout=60) as response:
            lines = response.iter_lines()  # kept: when it is dropped, httpx closes the connection
            next(lines)
            refused = httpx.post(server.url + TEXT, json={"prompt": [1], "max_tokens": 1}, timeout=60)
            assert error(refused, 429)["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) > 0
        wait_until_idle(server)
        assert httpx.post(server.url + TEXT, json={"prompt": [1], "max_tokens": 1}, timeout=60).status_code == 200


# ---- clients that leave, or dawdle ----


def wait_until_idle(server, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    names = ("num_requests_running", "num_requests_waiting")
    while (
        any(server.metric(name) for name in names) or httpx.get(server.url + "/load", timeout=60).json()["server_load"]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_request_with_it(server, stream):
    for wait_s in (0.0, 0.05, 0.3):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            body = json.dumps({"prompt": [1], "max_tokens": 4000, "n": 2, "temperature": 1, "stream": stream}).encode()
            head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            time.sleep(wait_s)
        wait_until_idle(server)


def test_a_client_that_leaves_in_the_middle_of_its_body(server):
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
        time.sleep(0.05)
    wait_until_idle(server)
    assert "Traceback" not in server.text()


def test_a_slow_reader_gets_everything_and_holds_nobody_up(server):
    """It reads nothing while thousands of tokens are made for it; what piled up is sent in few, larger events."""
    n = 16
    fields = {"prompt": [1], "max_tokens": 1500, "n": n, "temperature": 1, "seed": 1, "return_token_ids": True}
    small = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)])
    with httpx.Client(base_url=server.url, transport=small, timeout=60) as client:
        with client.stream("POST", TEXT, json={**fields, "stream": True}) as response:
            assert httpx.post(server.url + TEXT, json={"prompt": [2], "max_tokens": 50}, timeout=60).status_code == 200
            wait_for_tokens(server)
            lines = response.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    lines = lines[:-1]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    for index in range(n):
        ids = [i for c in choices if c["index"] == index for i in c["token_ids"]]
        assert ids == [token_at([1], 1, index, k) for k in range(1500)]
    assert len(choices) < n * 1500 / 2


def wait_for_tokens(server) -> None:
    """Until the engine has finished, though nobody has read that much yet."""
    deadline = time.monotonic() + 120
    while server.metric("num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_many_clients_at_once_some_of_whom_leave(server):
    async def one(client: httpx.AsyncClient, i: int) -> str:
        fields = {"prompt": [1, i % 250], "max_tokens": 10 + i % 7, "seed": i, "return_token_ids": True}
        if i % 5 == 0:
            try:
                await client.post(TEXT, json={**fields, "max_tokens": 3000}, timeout=0.02 + 0.001 * (i % 50))
            except httpx.TimeoutException:
                return "left"
        answer = (await client.post(TEXT, json=fields)).json()
        wanted = [token_at([1, i % 250], i, 0, k) for k in range(10 + i % 7)]
        return "right" if answer["choices"][0]["token_ids"] == wanted else "wrong"

    async def main() -> list[str]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, i) for i in range(300)))

    results = asyncio.run(main())
    assert results.count("wrong") == 0 and results.count("left") == math.ceil(300 / 5)
    wait_until_idle(server)


def test_nothing_went_wrong_unseen(server):
    assert "Traceback" not in server.text()
