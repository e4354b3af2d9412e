"""Anthropic's messages API, driven by its official client against the bundled model and a tiny one that thinks."""

import json

import anthropic
import httpx
import jsonschema
import pytest
from servers import Server
from tiny_checkpoints import VOCAB_SIZE, thinking_qwen2

from quire.errors import EngineUnavailable
from quire.server.anthropic.inputs import chat_request, messages_of
from quire.server.anthropic.routes import Answer
from quire.server.anthropic.schemas import MessagesRequest, read
from quire.server.openai.answers import Manner
from quire.server.openai.endpoint import Call

END = VOCAB_SIZE + 1
KEY = "sk-secret"
SCHEMA = {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "北京"]}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
WEATHER = {"name": "weather", "description": "Forecast.", "input_schema": SCHEMA}
HELLO = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("anthropic") / "log"
    with Server(log, None, dtype="float32", max_model_len=1024, api_key=[KEY]) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker")
    with Server(folder / "log", thinking_qwen2(folder / "m"), dtype="float32") as made:
        with anthropic.Anthropic(base_url=made.url, api_key="any", max_retries=0) as client:
            yield client


def arguments(fields):
    """With temperature 0, which this client no longer has a name for."""
    extra = {"temperature": 0, **fields.pop("extra_body", {})}
    return {"model": "m", "max_tokens": 60, "messages": HELLO, "extra_body": extra, **fields}


def create(client, **fields):
    return client.messages.create(**arguments(fields))


def stream(client, **fields):
    """The events of a stream, and the message that the client makes of them."""
    with client.messages.stream(**arguments(fields)) as events:
        kinds = [event.type for event in events]
        return kinds, events.get_final_message()


def same(streamed, whole):
    blocks = [[{**block.model_dump(), "id": None} for block in message.content] for message in (streamed, whole)]
    assert blocks[0] == blocks[1]
    assert (streamed.stop_reason, streamed.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    usages = [m.usage for m in (streamed, whole)]
    totals = [(u.input_tokens + u.cache_read_input_tokens, u.output_tokens, u.output_tokens_details) for u in usages]
    assert totals[0] == totals[1]
    return True


def test_a_message(client):
    message = create(client)
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    (block,) = message.content
    assert block.type == "text" and "Paris" in block.text and message.id.startswith("msg_") and message._request_id
    cut = create(client, max_tokens=2)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 2
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": HELLO[0]["content"], "cache_control": {"type": "ephemeral"}}],
        }
    ]
    assert create(client, messages=parts, metadata={"user_id": "u"}).content[0].text == block.text


def test_a_stream_makes_the_same_message(client):
    kinds, streamed = stream(client)
    assert same(streamed, create(client))
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "content_block_stop" in kinds
    raw = [event.type for event in create(client, stream=True)]
    assert raw[:2] == ["message_start", "content_block_start"] and raw[-3:] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert set(raw[2:-3]) == {"content_block_delta"}


def test_stop_sequences_and_system(client):
    whole = create(client)
    word = whole.content[0].text.split()[1]
    stopped = create(client, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word) and word not in stopped.content[
        0
    ].text
    assert same(stream(client, stop_sequences=[word])[1], stopped)
    texts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    counts = [
        client.messages.count_tokens(model="m", messages=HELLO, **f).input_tokens
        for f in ({}, {"system": "Be brief.\nBe kind."}, {"system": texts})
    ]
    assert counts[0] < counts[1] == counts[2]
    usage = create(client, system=texts).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counts[1]


def test_tools(client):
    fields = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}, "max_tokens": 200}
    message = create(client, **fields)
    (call,) = message.content
    assert (call.type, call.name, message.stop_reason) == ("tool_use", "weather", "tool_use")
    jsonschema.validate(call.input, SCHEMA)
    assert same(stream(client, **fields)[1], message)
    asked = create(
        client, tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True}, max_tokens=200
    )
    assert [block.type for block in asked.content] == ["tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    messages = [
        *HELLO,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    answer = create(client, messages=messages, tools=[WEATHER], max_tokens=5)
    assert answer.usage.output_tokens <= 5
    assert create(
        client, messages=messages[:2] + [{"role": "user", "content": [{**result, "is_error": True}]}], max_tokens=2
    )


def test_an_answer_that_was_begun(client):
    begun = [*HELLO, {"role": "assistant", "content": "The capital of"}]
    assert not create(client, messages=begun).content[0].text.startswith("The capital of")


def test_structured_output(client):
    shape = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    message = create(client, output_config={"format": {"type": "json_schema", "schema": shape}})
    jsonschema.validate(json.loads(message.content[0].text), shape)


def test_thinking(thinker):
    fields = {"max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 12}}
    fields["extra_body"] = {"ignore_eos": True, "seed": 1, "temperature": 1, "logit_bias": {str(END): -100}}
    message = create(thinker, **fields)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.usage.output_tokens_details.thinking_tokens == 13 and message.usage.output_tokens == 40
    kinds, streamed = stream(thinker, **fields)
    assert same(streamed, message) and "thinking" in kinds
    again = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": "more"}]
    assert create(thinker, messages=again, max_tokens=3, thinking={"type": "adaptive"}).usage.output_tokens <= 3
    hidden = create(thinker, **{**fields, "thinking": {"type": "disabled"}})
    assert all(block.type == "text" for block in hidden.content)


def post(server, body, **headers):
    return httpx.post(server.url + "/v1/messages", json=body, headers={"x-api-key": KEY, **headers}, timeout=60)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 10**6}, "max_tokens"), ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"), ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"), ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"), ({"system": 5}, "system"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]}, "input"), ({"system": [{"type": "image"}]}, "system"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"), ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools"),
        ({"tool_choice": {"type": "all"}}, "tool_choice"), ({"tool_choice": {"type": "any"}}, "tool_choice"), ({"thinking": {"type": "x"}}, "thinking"),
        ({"thinking": {"type": "enabled"}}, "budget"), ({"temperature": 3}, "temperature"), ({"top_k": -7}, "top_k"), ({"stop_sequences": [""]}, "stop"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"), ({"container": "c"}, "container"), ({"mcp_servers": [{}]}, "mcp_servers"), ({"n": 2}, "n "),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"), ({"output_config": {"effort": "x"}}, "effort"), ({"stop": ["x"]}, "stop_sequences"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(server, fields, word):
    body = {"model": "m", "max_tokens": 5, "messages": HELLO, **fields}
    response = post(server, body)
    found = response.json()
    assert response.status_code == 400 and (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert word in found["error"]["message"] and found["request_id"] == response.headers["x-request-id"]


def test_errors_have_the_types_that_the_client_knows(server, client):
    wrong = anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        create(wrong)
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(client, messages=[{"role": "user", "content": "word " * 4000}])
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert (
        httpx.post(server.url + "/v1/messages/x", headers={"x-api-key": KEY}, timeout=60).json()["error"]["type"]
        == "not_found_error"
    )
    assert httpx.get(server.url + "/v1/messages", headers={"x-api-key": KEY}, timeout=60).status_code == 405
    assert (
        httpx.get(server.url + "/v1/models", headers={"authorization": f"Bearer {KEY}"}, timeout=60).status_code == 200
    )
    both = {"authorization": "Bearer wrong", "x-api-key": KEY}
    assert httpx.get(server.url + "/v1/models", headers=both, timeout=60).status_code == 401


def test_fields_without_effect_and_unknown_ones(server):
    body = {"max_tokens": 2, "messages": HELLO, "service_tier": "auto", "metadata": {}, "wibble": 1, "min_p": 0.1}
    response = post(server, body, **{"anthropic-version": "2023-06-01", "anthropic-beta": "x"})
    assert response.status_code == 200 and response.headers["x-quire-ignored"] == "wibble"


def request(**fields) -> MessagesRequest:
    return read({"max_tokens": 5, "messages": HELLO, **fields})[0]


def test_blocks_become_messages():
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "A"},
        use,
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "1", "is_error": True},
        {"type": "text", "text": "So?"},
    ]
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": results},
        {"role": "user", "content": [document]},
    ]
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert messages_of(request(messages=messages, system="S")) == [
        {"role": "system", "content": "S"}, *HELLO,
        {"role": "assistant", "content": "A", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: 1"}, {"role": "user", "content": [{"type": "text", "text": "So?"}]},
        {"role": "user", "content": [{"type": "text", "text": "D"}]},
    ]  # fmt: skip


def test_thinking_and_effort_reach_the_chat():
    chat = chat_request(request(thinking={"type": "enabled", "budget_tokens": 99}, output_config={"effort": "max"}))
    assert chat.thinking_token_budget == 99 and chat.chat_template_kwargs == {"enable_thinking": True}
    assert chat.reasoning_effort == "xhigh" and chat.max_completion_tokens == 5
    off = chat_request(request(thinking={"type": "disabled"}, chat_template_kwargs={"enable_thinking": True, "x": 1}))
    assert off.include_reasoning is False and off.chat_template_kwargs == {"enable_thinking": True, "x": 1}
    begun = chat_request(request(messages=[*HELLO, {"role": "assistant", "content": "A"}]))
    assert begun.continue_final_message and begun.add_generation_prompt is False


def test_a_failure_on_the_way_is_told_in_the_apis_own_event():
    answer = Answer(Call(None, "msg_1", "m", 1, request_id="r"), None, Manner())
    name, _, data = answer.failed(EngineUnavailable("the server is stopping")).decode().strip().partition("\ndata: ")
    assert name == "event: error"
    assert json.loads(data) == {"type": "error", "error": {"type": "overloaded_error", "message": "the server is stopping"}, "request_id": "r"}  # fmt: skip
