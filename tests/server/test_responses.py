"""The Responses API, driven by the official client against the bundled model and a tiny one that thinks."""

import json

import httpx
import jsonschema
import openai
import pydantic
import pytest
from servers import Server
from tiny_checkpoints import VOCAB_SIZE, thinking_qwen2

from quire.errors import InvalidRequest, RequestPoisoned
from quire.server.openai.answers import Manner
from quire.server.openai.endpoint import Call
from quire.server.responses.inputs import messages_of
from quire.server.responses.outputs import OutputBuilder
from quire.server.responses.routes import Answer
from quire.server.responses.store import ResponseNotFound, ResponseStore

END = VOCAB_SIZE + 1
PARAMETERS = {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "北京"]}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
NAMED = {"type": "function", "name": "weather"}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=99)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("responses") / "log", None, dtype="float32", max_model_len=1024) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker")
    with Server(folder / "log", thinking_qwen2(folder / "m"), dtype="float32") as made:
        with openai.OpenAI(base_url=made.url + "/v1", api_key="EMPTY", max_retries=0) as client:
            yield client


def create(client, **fields):
    if "seed" in fields:
        fields["extra_body"] = {"seed": fields.pop("seed"), **fields.get("extra_body", {})}
    return client.responses.create(
        **{"model": "m", "input": "What is the capital of France?", "temperature": 0, **fields}
    )


def counts(response):
    usage = response.usage
    return usage.input_tokens, usage.output_tokens, usage.output_tokens_details.reasoning_tokens


def check_order(events):
    """The typed events come in OpenAI's order: numbered, each item and part begun, told, done."""
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    begun, done = [], []
    for event in events[2:-1]:
        if event.type == "response.output_item.added":
            assert len(begun) == len(done) == event.output_index
            begun.append(event.item.id)
        elif event.type == "response.output_item.done":
            assert event.item.id == begun[-1]
            done.append(event.item)
        else:
            assert event.item_id == begun[-1] and len(begun) == len(done) + 1
    assert [i.id for i in events[-1].response.output] == [i.id for i in done]
    return done


def test_a_text_gets_a_text(client):
    response = create(client)
    assert response.object == "response" and response.id.startswith("resp_") and response.status == "completed"
    assert "Paris" in response.output_text and response.error is None
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = response.usage
    assert (
        usage.total_tokens == usage.input_tokens + usage.output_tokens
        and usage.output_tokens_details.reasoning_tokens == 0
    )
    cut = create(client, max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    assert cut.output[0].status == "incomplete" and cut.usage.output_tokens == 2


def test_a_stream_says_what_the_answer_says(client):
    whole = create(client, seed=3, temperature=1.0, max_output_tokens=40)
    events = list(create(client, seed=3, temperature=1.0, max_output_tokens=40, stream=True))
    check_order(events)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    final = events[-1].response
    assert final.output_text == whole.output_text and counts(final) == counts(whole) and final.status == whole.status
    with client.responses.stream(model="m", input="What is the capital of France?", temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text


def test_parse_gives_typed_output(client):
    parsed = client.responses.parse(model="m", input="A person, please.", text_format=Person, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Person)
    with client.responses.stream(model="m", input="A person.", text_format=Person, max_output_tokens=100) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)
    free = create(client, text={"format": {"type": "json_object"}}, max_output_tokens=60)
    assert isinstance(json.loads(free.output_text), dict)


def test_a_function_is_called_and_its_answer_goes_back(client):
    first = create(client, input="Weather in Oslo?", tools=[WEATHER], tool_choice=NAMED, max_output_tokens=200)
    (call,) = first.output
    assert (call.type, call.name, call.status, len(call.call_id)) == ("function_call", "weather", "completed", 9)
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    items = [
        {"role": "user", "content": "Weather in Oslo?"}, call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]  # fmt: skip
    assert create(client, input=items, tools=[WEATHER], max_output_tokens=8).status in ("completed", "incomplete")
    after = {"previous_response_id": first.id, "input": items[2:], "max_output_tokens": 8}
    assert counts(create(client, **after)) == counts(create(client, input=items, max_output_tokens=8))


def test_a_stream_of_a_call(client):
    fields = {
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 200,
        "seed": 4,
    }
    events = list(create(client, stream=True, **fields))
    (call,) = check_order(events)
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
    assert call.arguments == create(client, **fields).output[0].arguments
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}
    clock = {"type": "function", "name": "clock", "parameters": {"type": "object"}}
    for item in create(
        client, tools=[clock, WEATHER], tool_choice=allowed, max_output_tokens=300, parallel_tool_calls=False
    ).output:
        assert item.name == "weather"


def test_a_conversation_goes_on(client):
    first = create(client, input="My name is Ada.", instructions="Be brief.", max_output_tokens=8)
    second = create(client, input="What is my name?", previous_response_id=first.id, max_output_tokens=8)
    assert second.previous_response_id == first.id
    said = [
        {"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]  # fmt: skip
    assert second.usage.input_tokens == create(client, input=said, max_output_tokens=8).usage.input_tokens
    third = create(client, input="And mine?", previous_response_id=second.id, max_output_tokens=8)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_what_is_stored(client):
    response = create(client, metadata={"a": "b"})
    assert client.responses.retrieve(response.id).model_dump() == response.model_dump()
    (item,) = client.responses.input_items.list(response.id).data
    assert item.role == "user" and item.id.startswith("msg_")
    many = create(client, input=[{"role": "user", "content": str(i)} for i in range(5)], max_output_tokens=1)
    assert [i.content for i in client.responses.input_items.list(many.id, limit=2, order="asc")] == list("01234")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(response.id)
    client.responses.delete(response.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="stored"):
            gone(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(create(client, store=False).id)
    stream = list(create(client, stream=True, max_output_tokens=3))
    assert client.responses.retrieve(stream[-1].response.id).output_text == stream[-1].response.output_text
    assert (
        client.responses.input_tokens.count(model="m", input="Hello").input_tokens
        == create(client, input="Hello").usage.input_tokens
    )


def test_log_probabilities(client):
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 4}
    whole = create(client, **fields)
    positions = whole.output[0].content[0].logprobs
    assert len(positions) == whole.usage.output_tokens and all(len(p.top_logprobs) == 2 for p in positions)
    events = list(create(client, stream=True, **fields))
    assert [p.logprob for p in events[-1].response.output[0].content[0].logprobs] == [p.logprob for p in positions]


def test_reasoning_is_an_item_of_its_own(thinker):
    fields = {
        "max_output_tokens": 40,
        "extra_body": {"ignore_eos": True, "thinking_token_budget": 12, "logit_bias": {str(END): -100}},
    }
    whole = create(thinker, input="hello", **fields)
    reasoning, message = whole.output
    assert (reasoning.type, reasoning.content[0].type, message.type) == ("reasoning", "reasoning_text", "message")
    assert whole.usage.output_tokens_details.reasoning_tokens == 13 and whole.output_text
    events = list(create(thinker, input="hello", stream=True, **fields))
    check_order(events)
    told = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
    assert told == reasoning.content[0].text
    assert events[-1].response.output_text == whole.output_text and counts(events[-1].response) == counts(whole)
    again = [{"role": "user", "content": "hello"}, *[item.model_dump(exclude_none=True) for item in whole.output]]
    assert (
        create(thinker, input=[*again, {"role": "user", "content": "more"}], max_output_tokens=2).usage.output_tokens
        == 2
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"), ({"conversation": "c"}, "conversation"), ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"max_output_tokens": 10**6}, "max_output_tokens"), ({"temperature": 3}, "temperature"),
        ({"input": None}, "input"), ({"input": []}, "input"), ({"input": [1]}, "input"), ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input"), ({"input": [{"role": "user"}]}, "input"), ({"input": 5}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input"), ({"input": [{"type": "function_call_output", "output": "x"}]}, "input"),
        ({"input": [{"type": "reasoning", "content": ["x"]}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"), ({"tools": [{"type": "function", "name": "a b"}]}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "mcp"}, "tools": [WEATHER]}, "tool_choice"), ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "bogus"}}}}, "text"), ({"include": ["all"]}, "include"),
        ({"reasoning": {"effort": "huge"}}, "reasoning"), ({"top_logprobs": 50}, "top_logprobs"), ({"n": 2}, "n"), ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"), ({"top_k": -5}, "top_k"), ({"seed": "x"}, "seed"), ({"stream": "yes"}, "stream"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(server, fields, param):
    response = httpx.post(
        server.url + "/v1/responses", json={"input": "hello", "max_output_tokens": 4, **fields}, timeout=60
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param and response.json()["error"]["message"]


def test_fields_without_effect_and_unknown_ones(server):
    body = {
        "input": "hello", "max_output_tokens": 2, "metadata": {"a": "b"}, "service_tier": "auto", "user": "u", "store": False, "wibble": 1,
        "stream_options": {"include_obfuscation": True, "x": 1}, "truncation": "disabled", "background": False, "seed": 1, "top_k": 5,
    }  # fmt: skip
    response = httpx.post(server.url + "/v1/responses", json=body, timeout=60)
    assert response.status_code == 200 and response.headers["x-quire-ignored"] == "wibble, stream_options.x"
    for query in ("limit=0", "limit=x", "order=up", "after=nobody"):
        kept = httpx.post(
            server.url + "/v1/responses", json={"input": "hello", "max_output_tokens": 1}, timeout=60
        ).json()["id"]
        assert httpx.get(f"{server.url}/v1/responses/{kept}/input_items?{query}", timeout=60).status_code == 400


def test_a_failure_on_the_way_is_told_in_the_apis_own_events():
    class Request:
        stream, store, instructions, model, input = True, False, None, None, "x"
        max_output_tokens = previous_response_id = reasoning = text = tools = tool_choice = top_logprobs = None
        parallel_tool_calls = temperature = top_p = model_extra = None

    answer = Answer(Request(), Call(None, "resp_1", "m", 1))
    answer._builder = OutputBuilder(Manner())
    lines = answer.failed(RequestPoisoned("it ended the engine twice")).decode().strip().split("\n\n")
    events = [json.loads(line.partition("data: ")[2]) for line in lines]
    assert [e["type"] for e in events] == ["error", "response.failed"] and [e["sequence_number"] for e in events] == [
        0,
        1,
    ]
    assert (events[0]["code"], events[0]["message"]) == ("request_poisoned", "it ended the engine twice")
    assert events[1]["response"]["status"] == "failed" and events[1]["response"]["error"]["message"]


def test_items_become_messages():
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": "a"}, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}, call, {**call, "call_id": "d"},
        {"type": "function_call_output", "call_id": "c", "output": "1"}, {"type": "message", "role": "assistant", "content": "b"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}, {"role": "assistant", "content": "c"},
    ]  # fmt: skip
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ("c", "d")]
    assert messages_of(items, "Be brief.") == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": calls, "content": None},
        {"role": "tool", "tool_call_id": "c", "content": "1"}, {"role": "assistant", "content": "b"},
        {"role": "assistant", "reasoning_content": "s", "content": "c"},
    ]  # fmt: skip
    with pytest.raises(InvalidRequest):
        messages_of([{"type": "computer_call"}], None)


def test_the_store_is_bounded():
    store = ResponseStore(max_responses=3, max_bytes=10_000)
    for number in range(5):
        store.add({"id": str(number)}, [], [])
    assert len(store) == 3
    with pytest.raises(ResponseNotFound):
        store.find("1")
    store.add({"id": "big"}, [], [{"x": "a" * 9_950}])
    assert store.find("big") and len(store) < 3 and store.num_bytes <= 10_000
    store.add({"id": "too big"}, [], [{"x": "a" * 20_000}])
    with pytest.raises(ResponseNotFound):
        store.find("too big")
    for number in list(store._stored):
        store.remove(number)
    assert store.num_bytes == 0
