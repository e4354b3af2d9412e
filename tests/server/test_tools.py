"""Tool calls and reasoning over HTTP: forced calls with the bundled model, and answers read alike whole and streamed."""

import json
import random

import httpx
import jsonschema
import msgspec
import openai
import pytest
from servers import Server

from quire.errors import InvalidRequest
from quire.server.openai.answers import AnswerReader, Manner
from quire.server.openai.schemas import ChatCompletionRequest, parse
from quire.server.openai.tools import plan, tools_of
from quire.text.tools.formats import HERMES, LLAMA3, MISTRAL, PLAIN_JSON

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Oslo", "北京"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Forecast.", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
MESSAGES = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("tools") / "log", None, dtype="float32", max_model_len=1024) as made:
        yield made


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def chat(http, **fields):
    body = {"messages": MESSAGES, "max_tokens": 300, "seed": 1, "tools": [WEATHER, CLOCK], **fields}
    return http.post("/v1/chat/completions", json=body)


def choice(http, **fields):
    response = chat(http, **fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def check(call):
    assert set(call) == {"id", "type", "function"} and call["type"] == "function" and len(call["id"]) == 9
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        jsonschema.validate(arguments, PARAMETERS)
    else:
        assert call["function"]["name"] == "clock" and isinstance(arguments, dict)


def test_required_calls_something(http):
    for seed in range(3):
        found = choice(http, tool_choice="required", seed=seed)
        if found["finish_reason"] == "tool_calls":
            assert found["message"]["content"] is None
            for call in found["message"]["tool_calls"]:
                check(call)
        else:  # cut off before its end: shown as text, and no call is claimed
            assert found["finish_reason"] == "length" and "tool_calls" not in found["message"]


def test_a_named_function_is_called_once(http):
    named = {"type": "function", "function": {"name": "weather"}}
    for fields in (
        {"tool_choice": named},
        {"tool_choice": "required", "parallel_tool_calls": False, "tools": [WEATHER]},
    ):
        found = choice(http, **fields)
        assert found["finish_reason"] == "tool_calls"
        (call,) = found["message"]["tool_calls"]
        check(call)
        assert call["function"]["name"] == "weather"


@pytest.mark.parametrize("fields", [{"tool_choice": "auto"}, {"tool_choice": "none"}, {}])
def test_a_model_that_calls_nothing_answers(http, fields):
    found = choice(http, max_tokens=10, **fields)
    assert "tool_calls" not in found["message"] and found["finish_reason"] in ("stop", "length")
    assert isinstance(found["message"]["content"], str) and "reasoning" not in found["message"]


def test_a_stream_of_calls_as_the_sdk_reads_it(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY")
    fields = {"model": "m", "messages": MESSAGES, "tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "seed": 4}  # fmt: skip
    (whole,) = client.chat.completions.create(**fields).choices[0].message.tool_calls
    chunks = [c.choices[0] for c in client.chat.completions.create(**fields, stream=True) if c.choices]
    deltas = [call for c in chunks for call in c.delta.tool_calls or []]
    assert (deltas[0].function.name, deltas[0].type, len(deltas[0].id)) == ("weather", "function", 9)
    assert all(d.index == 0 and d.id is None and d.function.name is None for d in deltas[1:])
    assert "".join(d.function.arguments for d in deltas) == whole.function.arguments
    assert chunks[-1].finish_reason == "tool_calls" and not any(c.delta.content for c in chunks)


def test_the_answers_of_tools_go_back_in(http):
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "rain"}]  # fmt: skip
    assert choice(http, messages=messages, max_tokens=5)["message"]["content"] is not None


def legacy(http, **fields):
    body = {
        "messages": MESSAGES,
        "max_tokens": 300,
        "seed": 1,
        "functions": [WEATHER["function"], {"name": "clock"}],
        **fields,
    }
    return http.post("/v1/chat/completions", json=body)


def test_functions_of_long_ago(http):
    found = legacy(http, function_call={"name": "weather"}).json()["choices"][0]
    call = found["message"]["function_call"]
    assert found["finish_reason"] == "function_call" and found["message"]["content"] is None
    assert "tool_calls" not in found["message"] and call["name"] == "weather"
    jsonschema.validate(json.loads(call["arguments"]), PARAMETERS)
    text = legacy(http, function_call={"name": "weather"}, stream=True).text
    chunks = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
    deltas = [c["delta"]["function_call"] for c in chunks if "function_call" in c["delta"]]
    assert (
        deltas[0] == {"name": "weather", "arguments": ""}
        and "".join(d["arguments"] for d in deltas) == call["arguments"]
    )
    assert chunks[-1]["finish_reason"] == "function_call"
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "rain"},
    ]
    for choice in ("none", "auto", None):
        answer = legacy(http, messages=messages, function_call=choice, max_tokens=5)
        assert answer.status_code == 200 and "function_call" not in answer.json()["choices"][0]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]}, {"tools": [{"type": "x", "function": {"name": "f"}}]}, {"tools": [1]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]}, {"tools": [WEATHER, WEATHER]}, {"tools": [CLOCK] * 200},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, {"tools": None, "tool_choice": "required"},
        {"tool_choice": "always"}, {"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, {"tool_choice": {}},
        {"response_format": {"type": "json_object"}}, {"functions": [{"name": "f"}]}, {"function_call": {"name": "f"}}, {"functions": [1]},
        {"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "bogus"}}}]},
    ],
)  # fmt: skip
def test_bad_tools_are_a_400(http, fields):
    response = chat(http, **fields)
    assert response.status_code == 400 and response.json()["error"]["message"]


# ---- reading answers ----

TEXTS = {
    "hermes": "Sure.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>",
    "mistral": 'Hm. [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
    "llama3": '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
    "json": '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
}  # fmt: skip
FORMATS = {"hermes": HERMES, "mistral": MISTRAL, "llama3": LLAMA3, "json": PLAIN_JSON}


def merged(deltas):
    """What a client makes of the deltas of a stream."""
    message = {"content": "", "reasoning": "", "calls": []}
    for delta in (msgspec.to_builtins(d) for d in deltas):
        message["content"] += delta.get("content", "")
        message["reasoning"] += delta.get("reasoning", "")
        assert delta.get("reasoning") == delta.get("reasoning_content")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["calls"]):
                assert call["id"] and call["type"] == "function"
                message["calls"].append([call["function"]["name"], ""])
            else:
                assert set(call) == {"index", "function"}
            message["calls"][call["index"]][1] += call["function"]["arguments"]
    return message


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("thinks", [False, True])
def test_a_stream_says_what_the_whole_answer_says(name, thinks):
    rng = random.Random(name)
    manner = Manner("", thinks, True, FORMATS[name])
    for _ in range(300):
        text = ("<think>\nI wonder\n</think>\n\n" if thinks else "") + TEXTS[name]
        if rng.random() < 0.5:
            text = text[: rng.randrange(len(text))] + text[rng.randrange(len(text)) :]
        reader = AnswerReader(manner)
        message = msgspec.to_builtins(reader.message(text))
        calls = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", ())]
        expected = {"content": message["content"] or "", "reasoning": message.get("reasoning", ""), "calls": calls}
        streamed = AnswerReader(manner)
        bounds = sorted({0, len(text), *(rng.randrange(len(text) + 1) for _ in range(8))})
        pieces = [text[a:b] for a, b in zip(bounds, bounds[1:])] or [""]
        deltas = [d for i, piece in enumerate(pieces) for d in streamed.deltas(piece, i == len(pieces) - 1)]
        assert merged(deltas) == expected
        assert streamed.finish_reason("stop") == ("tool_calls" if calls else "stop") == reader.finish_reason("stop")
        assert reader.finish_reason("length") == "length"


def test_reasoning_may_be_left_out_and_calls_be_one():
    text = "<think>hm</think>" + TEXTS["hermes"]
    reader = AnswerReader(Manner("", True, False, HERMES, one_call=True))
    message = msgspec.to_builtins(reader.message(text))
    assert "reasoning" not in message and len(message["tool_calls"]) == 1 and message["content"] == "Sure."
    plain = msgspec.to_builtins(AnswerReader(Manner()).message(text))
    assert plain == {"content": text, "role": "assistant"}


def test_plans():
    def planned(template="{{ tools }}<tool_call>", **fields):
        request = parse(ChatCompletionRequest, {"messages": MESSAGES, "tools": [CLOCK], **fields})
        return plan(request, tools_of(request), template)

    assert planned().format is HERMES and planned().forced is None
    assert planned(tool_choice="none").offered is None and planned(tools=[]).offered is None
    assert planned(tool_choice="required").format.name == "json"
    assert (
        planned(tool_choice="required").format.in_template
        and not planned("no", tool_choice="required").format.in_template
    )
    with pytest.raises(InvalidRequest):
        planned(tool_choice="sometimes")


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% if enable_thinking is not defined %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


def test_reasoning_over_http(tmp_path):
    """The prompt opens the reasoning, so all that comes before its end is reasoning; a template's option leaves it out."""
    with Server(tmp_path / "log", None, dtype="float32", max_model_len=512, chat_template=TEMPLATE) as server:
        fields = {"messages": MESSAGES, "max_tokens": 12, "seed": 2}

        def post(**more):
            return httpx.post(server.url + "/v1/chat/completions", json={**fields, **more}, timeout=60)

        message = post().json()["choices"][0]["message"]
        assert (
            message["content"] == "" and message["reasoning"] and message["reasoning"] == message["reasoning_content"]
        )
        events = [json.loads(e[6:]) for e in post(stream=True).text.split("\n\n") if e.startswith("data: {")]
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning"]
        assert not any(d.get("content") for d in deltas)
        assert post(include_reasoning=False).json()["choices"][0]["message"] == {"role": "assistant", "content": ""}
        for more in ({"chat_template_kwargs": {"enable_thinking": False}}, {"guided_choice": ["yes"]}):
            message = post(**more).json()["choices"][0]["message"]
            assert message["content"] and "reasoning" not in message
