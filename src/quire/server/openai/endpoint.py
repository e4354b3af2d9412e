"""What the generating endpoints have in common: reading a request, and the head of its answer."""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.config import EngineConfig
from quire.core.bounds import Field
from quire.core.params import SamplingParams
from quire.engine.stream import RequestStream
from quire.errors import InvalidRequest
from quire.server.body import off_loop, read_object
from quire.server.generation import Generation
from quire.server.history import Trace
from quire.server.openai.fields import PARTS, check_unhonoured, unknown_parts
from quire.server.openai.schemas import B, Body, GenerateRequest, R, parse
from quire.server.serving import Serving

UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.\-]")
MAX_NAMED_FIELDS = 20
MAX_FIELD_NAME = 64
encoder = msgspec.json.Encoder()


@dataclass
class Call:
    """One call of an endpoint: what its answer begins with.

    num_bytes  of the request's body
    headers    of the response
    request_id  its X-Request-Id
    arrived_s  when its head was there, in seconds of the monotonic clock
    """

    serving: Serving
    id: str
    model: str
    num_bytes: int
    created: int = field(default_factory=lambda: int(time.time()))
    headers: dict[str, str] = field(default_factory=dict)
    request_id: str = ""
    arrived_s: float = field(default_factory=time.monotonic)

    @property
    def head(self) -> dict[str, Any]:
        """Fields that every object of the answer has."""
        return {"id": self.id, "created": self.created, "model": self.model}


async def read_request(http: Request, kind: type[R], prefix: str) -> tuple[R, Call]:
    """The validated request of an endpoint. Raises ClientError types, or EngineUnavailable while the server starts."""
    return await read_call(http, lambda fields: _validated(kind, fields), prefix + "-")


async def read_call(
    http: Request, read: Callable[[dict[str, Any]], tuple[B, list[str]]], prefix: str
) -> tuple[B, Call]:
    """The same for a request that is read in its own way.

    read    the request from the body's fields, and the names of those that nobody knows
    prefix  of the answer's id
    """
    serving: Serving = http.app.state.serving
    body = await read_object(http)
    request, unknown = await off_loop(body.num_bytes, lambda: read(body.fields))
    name = serving.name_for(getattr(request, "model", None))
    call = Call(serving, prefix + uuid.uuid4().hex, name, body.num_bytes)
    call.request_id, call.arrived_s = http.state.request_id, http.state.arrived_s
    call.headers |= ignored_headers(unknown, serving)
    return request, call


def ignored_headers(unknown: list[str], serving: Serving) -> dict[str, str]:
    """Counts fields that are ignored; the header that tells of them, if there are any."""
    if not unknown:
        return {}
    named = [name[:MAX_FIELD_NAME] for name in unknown[:MAX_NAMED_FIELDS]]
    serving.note_ignored(named)
    safe = [UNSAFE_IN_HEADER.sub("?", name) for name in named]
    return {"x-quire-ignored": ", ".join([*safe, "..."] if len(unknown) > MAX_NAMED_FIELDS else safe)}


async def start(
    call: Call, request: GenerateRequest, prompts: Sequence[Any], params: SamplingParams, **options: Any
) -> Generation:
    """Validates and tokenises prompts, and submits them. options: further ones of Frontend.open.

    A max_tokens that the caller asked for is refused, not cut, when it does not fit.
    Raises ClientError or EngineUnavailable.
    """
    frontend = call.serving.frontend
    _check_options(request, call.serving)
    options |= {
        "priority": request.priority or 0,
        "cache_salt": request.cache_salt or "",
        "truncate_prompt_tokens": request.truncate_prompt_tokens,
        "truncation_side": request.truncation_side or "left",
    }

    def prepare() -> list[RequestStream]:
        return [frontend.open(prompt, params, **options) for prompt in prompts]

    if params.structured_outputs is not None:  # a grammar may take long to compile, however short its text
        streams = await asyncio.get_running_loop().run_in_executor(call.serving.grammar_threads, prepare)
    else:
        streams = await off_loop(call.num_bytes, prepare)
    trace = Trace(call.id, call.request_id, call.model, call.created, call.arrived_s)
    return Generation(call.serving, streams, trace)


def json_response(answer: msgspec.Struct | dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """The whole answer."""
    return Response(encoder.encode(answer), 200, headers, "application/json")


def request_body(kind: type[Body], also: type[Body] | None = None, names: Iterable[str] = ()) -> dict[str, Any]:
    """The part of /openapi.json that describes the request. names: further fields, which it takes as `also` does."""
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    bounds = dict(kind.bounds)
    if also is not None:
        schema["properties"] |= {name: also.model_json_schema()["properties"][name] for name in names}
        bounds |= {name: also.bounds[name] for name in names}
    for name, bound in bounds.items():
        schema["properties"][name] = _bounded(schema["properties"][name], bound)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _bounded(schema: dict[str, Any], bound: Field) -> dict[str, Any]:
    """A field's schema with its meaning, and its range in the arm of the type that it is for."""
    limits = bound.json_schema()
    if schema.get("type") == bound.json_type:
        schema = {**schema, **limits}
    if "anyOf" in schema:
        arms = [{**arm, **limits} if arm.get("type") == bound.json_type else arm for arm in schema["anyOf"]]
        schema = {**schema, "anyOf": arms}
    default = f"; default: {bound.default}" if bound.default else ""
    return {**schema, "description": bound.meaning + default}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with what it refers to in place: FastAPI would not put definitions of ours into the document."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}


def _validated(kind: type[R], fields: dict[str, Any]) -> tuple[R, list[str]]:
    """The request, and the names of fields that nobody knows."""
    request = parse(kind, fields)
    return request, check_unhonoured(request.model_extra or {}, request.n) + unknown_parts(fields, PARTS)


def _check_options(request: GenerateRequest, serving: Serving) -> None:
    config: EngineConfig | None = serving.ready.config if serving.ready else None
    if request.priority and config is not None and config.scheduling_policy != "priority":
        raise InvalidRequest("priority needs a server started with --scheduling-policy priority", "priority")
    if request.truncation_side not in (None, "left", "right"):
        raise InvalidRequest("truncation_side must be left or right", "truncation_side")
    if request.truncate_prompt_tokens == 0:
        raise InvalidRequest("truncate_prompt_tokens must be -1 or at least 1, not 0", "truncate_prompt_tokens")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs are not available in a stream", "prompt_logprobs")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options need stream to be true", "stream_options")
    options = request.stream_options
    if options is not None and options.continuous_usage_stats and options.include_usage is False:
        raise InvalidRequest("continuous_usage_stats and include_usage false exclude each other", "stream_options")
