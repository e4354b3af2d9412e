"""The table of request fields: it is complete, values at each bound pass and values past it do not, and /openapi.json says the same."""

import dataclasses
import math

import pytest

from quire.core.bounds import BOOLEAN, INTEGER, LISTS, NUMBER, OBJECT, OFFLINE_ONLY, SAMPLING, Field
from quire.core.params import SamplingParams
from quire.errors import InvalidRequest
from quire.server.anthropic import routes as messages_routes
from quire.server.anthropic.schemas import MessagesRequest
from quire.server.openai import chat, completions, tokenize
from quire.server.openai.fields import NO_EFFECT, REFUSED
from quire.server.openai.schemas import ChatCompletionRequest, CompletionRequest, parse, sampling_params
from quire.server.responses import routes as responses_routes
from quire.server.responses import schemas as responses_schemas
from quire.server.responses.schemas import ResponsesRequest

MESSAGES = [{"role": "user", "content": "a"}]
LEAST = {
    ChatCompletionRequest: {"messages": MESSAGES}, CompletionRequest: {"prompt": "a"}, ResponsesRequest: {"input": "a"},
    MessagesRequest: {"messages": MESSAGES, "max_tokens": 5}, tokenize.TokenizeRequest: {"prompt": "a"},
    tokenize.DetokenizeRequest: {"tokens": [1]},
}  # fmt: skip
NUMBERS = [(k, n, f) for k in LEAST for n, f in k.bounds.items() if f.kind in (INTEGER, NUMBER)]
SIZES = [(k, n, f) for k in LEAST for n, f in k.bounds.items() if f.kind in (*LISTS, OBJECT) and f.high is not None]
ODD = ["1", [], {}, True, "x"]


def names(cases):
    return [f"{kind.__name__}-{name}" for kind, name, _ in cases]


def refused(kind, name, value):
    with pytest.raises(InvalidRequest) as caught:
        parse(kind, {**LEAST[kind], name: value})
    assert caught.value.param == name and len(str(caught.value)) < 500
    return True


@pytest.mark.parametrize("kind", LEAST)
def test_every_field_of_a_body_is_in_the_table(kind):
    assert set(kind.model_fields) == set(kind.bounds)
    assert not (set(REFUSED) | set(NO_EFFECT)) & set(kind.bounds) - {"store"}
    assert all(field.meaning for field in kind.bounds.values())


def test_the_table_of_sampling_params_is_that_class():
    fields = {f.name: f for f in dataclasses.fields(SamplingParams)}
    assert set(SAMPLING) == set(fields) - {"output_kind"} and set(OFFLINE_ONLY) < set(SAMPLING)
    defaults = {name: field.default for name, field in fields.items() if field.default is not dataclasses.MISSING}
    for name, field in SAMPLING.items():
        if field.default in ("true", "false"):
            assert defaults[name] is (field.default == "true")
        elif field.default.isdigit():
            assert defaults[name] == int(field.default)


@pytest.mark.parametrize(("kind", "name", "field"), NUMBERS, ids=names(NUMBERS))
def test_numbers_at_and_past_their_bounds(kind, name, field):
    step = 1 if field.kind == INTEGER else 1e-6
    for end, past in ((field.low, -step), (field.high, step)):
        if end is None:
            continue
        if not (field.above and end == field.low):
            assert getattr(parse(kind, {**LEAST[kind], name: end}), name) == end
        assert refused(kind, name, end if field.above and end == field.low else end + past)
    odd = [*ODD, *([0.5] if field.kind == INTEGER else [math.nan, math.inf, -math.inf])]
    assert all(refused(kind, name, value) for value in odd)
    assert getattr(parse(kind, {**LEAST[kind], name: None}), name) is None


@pytest.mark.parametrize(("kind", "name", "field"), SIZES, ids=names(SIZES))
def test_lists_and_objects_past_their_size(kind, name, field: Field):
    count = int(field.high) + 1
    value = {str(i): 0 for i in range(count)} if field.kind == OBJECT else [{"role": "user"}] * count
    assert refused(kind, name, value)


@pytest.mark.parametrize(
    "name", [n for n, f in SAMPLING.items() if f.kind in (INTEGER, NUMBER) and n in CompletionRequest.model_fields]
)
def test_what_the_body_allows_the_params_allow(name):
    for value in (SAMPLING[name].low, SAMPLING[name].high):
        if value is None or (SAMPLING[name].above and value == SAMPLING[name].low):
            continue
        value = max(value, 0) if name in ("logprobs", "prompt_logprobs") else value
        value = min(value, 20) if name in ("logprobs", "prompt_logprobs") else value
        request = parse(CompletionRequest, {"prompt": "a", "max_tokens": None, name: value})
        params = sampling_params(
            request, {"max_tokens": None}, max_logprobs=20, max_tokens=request.max_tokens, logprobs=request.logprobs
        )
        assert getattr(params, name) in (value, 0, 2**63)


BODIES = {
    ChatCompletionRequest: (chat.router, "/v1/chat/completions"), CompletionRequest: (completions.router, "/v1/completions"),
    ResponsesRequest: (responses_routes.router, "/v1/responses"), MessagesRequest: (messages_routes.router, "/v1/messages"),
    tokenize.TokenizeRequest: (tokenize.router, "/tokenize"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BODIES)
def test_the_document_has_the_bounds_and_meanings(kind):
    router, path = BODIES[kind]
    (route,) = [route for route in router.routes if route.path == path]
    properties = route.openapi_extra["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(kind.bounds) <= set(properties)
    for name, field in kind.bounds.items():
        said = properties[name]
        assert said["description"].startswith(field.meaning)
        arms = [said, *said.get("anyOf", [])]
        wanted = field.json_schema()
        assert not wanted or any(wanted.items() <= arm.items() for arm in arms), name


def test_every_refused_field_says_why_and_neutral_values_pass():
    for table in (REFUSED, responses_schemas.REFUSED):
        for name, row in table.items():
            assert row.why.split()[0] in ("is", "has", "above", "bounds", "auto"), (name, row.why)


@pytest.mark.parametrize("field", SAMPLING.values())
def test_every_range_can_be_said(field):
    assert field.kind == BOOLEAN or field.allowed()
