"""What requests say inside their fields: nothing of it is left out in silence."""

import pytest

from quire.errors import InvalidRequest
from quire.server.anthropic.schemas import read as read_message
from quire.server.openai.constraints import constraint
from quire.server.openai.endpoint import _check_options, _validated
from quire.server.openai.schemas import ChatCompletionRequest, CompletionRequest, either, parse
from quire.server.responses.schemas import read as read_response

MESSAGES = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object"}


class Serving:
    """As much of the server's state as checks need."""

    ready = None


def chat(**fields):
    return parse(ChatCompletionRequest, {"messages": MESSAGES, **fields})


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        ({"stream_options": {"include_usage": True, "include_obfuscation": True, "x": 1, "y": None}}, ["stream_options.x"]),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}}, []),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "loose": 1}}}, ["response_format.json_schema.loose"]),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, ["response_format.schema"]),
        ({"response_format": None, "stream_options": None}, []),
    ],
)  # fmt: skip
def test_parts_of_chats_and_completions_that_nobody_knows_are_named(fields, unknown):
    assert _validated(ChatCompletionRequest, {"messages": MESSAGES, **fields})[1] == unknown
    assert _validated(CompletionRequest, {"prompt": "hello", **fields})[1] == unknown


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        ({"stream_options": {"include_obfuscation": False, "include_usage": True}}, ["stream_options.include_usage"]),
        ({"text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}}, []),
        ({"text": {"form": {}, "format": {"type": "text", "x": 1}}}, ["text.form", "text.format.x"]),
        ({"reasoning": {"effort": "low", "summary": "auto", "max_tokens": 9}}, ["reasoning.max_tokens"]),
    ],
)  # fmt: skip
def test_parts_of_responses_that_nobody_knows_are_named(fields, unknown):
    assert read_response({"input": "hello", **fields})[1] == unknown


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 9, "display": "summarized"}}, []),
        ({"thinking": {"type": "adaptive", "depth": 2}}, ["thinking.depth"]),
        ({"output_config": {"effort": "low", "x": 1, "format": {"type": "json_schema", "schema": SCHEMA, "y": 1}}}, ["output_config.x", "output_config.format.y"]),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True, "z": 1}}, ["tool_choice.z"]),
    ],
)  # fmt: skip
def test_parts_of_messages_that_nobody_knows_are_named(fields, unknown):
    assert read_message({"messages": MESSAGES, "max_tokens": 9, **fields})[1] == unknown


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"response_format": None}, {"response_format": {"type": "text"}}, {"response_format": {"type": "text", "json_schema": None}},
        {"structured_outputs": {}}, {"structured_outputs": {"json": None}}, {"guided_regex": ""}, {"guided_choice": []}, {"guided_json": None},
    ],
)  # fmt: skip
def test_forms_that_ask_for_nothing(fields):
    assert constraint(chat(**fields)) is None


@pytest.mark.parametrize("fields", [{"guided_json": {}}, {"structured_outputs": {"json": {}}}])
def test_an_empty_schema_asks_for_json(fields):
    found = constraint(chat(**fields))
    assert found is not None and found.kind == "json" and found.json == {}


@pytest.mark.parametrize("value", [{}, {"type": None}, {"type": "xml"}, {"json_schema": {"schema": SCHEMA}}])
def test_a_response_format_without_a_type_is_refused(value):
    with pytest.raises(InvalidRequest) as caught:
        constraint(chat(response_format=value))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    ("name", "other"), [("max_completion_tokens", "max_tokens"), ("thinking_token_budget", "thinking_budget")]
)
def test_one_field_under_two_names_says_one_thing(name, other):
    assert either(chat(), name, other) is None
    assert [either(chat(**fields), name, other) for fields in ({name: 5}, {other: 5}, {name: 5, other: 5})] == [5, 5, 5]
    with pytest.raises(InvalidRequest) as caught:
        either(chat(**{name: 5, other: 6}), name, other)
    assert caught.value.param == other


def test_usage_in_every_event_needs_usage():
    with pytest.raises(InvalidRequest, match="include_usage"):
        _check_options(
            chat(stream=True, stream_options={"continuous_usage_stats": True, "include_usage": False}), Serving()
        )
    for more in ({}, {"include_usage": None}, {"include_usage": True}):
        request = chat(stream=True, stream_options={"continuous_usage_stats": True, **more})
        _check_options(request, Serving())
        assert request.include_usage and request.continuous_usage
    for options in (None, {}, {"include_usage": False}, {"include_usage": False, "continuous_usage_stats": False}):
        request = chat(stream=True, stream_options=options)
        assert not request.include_usage and not request.continuous_usage
