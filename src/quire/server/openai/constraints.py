"""What a request says its output must look like: OpenAI's response_format, structured_outputs, and the guided_* fields before it."""

from typing import Any

from quire.core.structured import StructuredOutputsParams, structured_outputs
from quire.errors import InvalidRequest
from quire.server.openai.schemas import GenerateRequest

GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def constraint(request: GenerateRequest) -> StructuredOutputsParams | None:
    """The one constraint of a request, or none. Raises InvalidRequest."""
    asked = {name: getattr(request, name) for name in ("response_format", "structured_outputs", *GUIDED)}
    found = {name: value for name, value in asked.items() if not _asks_for_nothing(name, value)}
    if not found:
        if request.guided_whitespace_pattern is not None:
            raise InvalidRequest("guided_whitespace_pattern needs guided_json", "guided_whitespace_pattern")
        return None
    if len(found) > 1:
        raise InvalidRequest(f"{' and '.join(found)} exclude each other: an output has one shape", list(found)[1])
    ((name, value),) = found.items()
    fields = _from_response_format(value) if name == "response_format" else value
    fields = {GUIDED[name]: value} if name in GUIDED else fields
    if request.guided_whitespace_pattern is not None:
        fields = {**fields, "whitespace_pattern": request.guided_whitespace_pattern}
    return structured_outputs(fields)


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Whether a field is left open. An empty schema, {}, asks for JSON; response_format without a type is an error."""
    if name == "response_format":
        return value is None or value.get("type") == "text"
    return value is None or value in ("", []) or (name == "structured_outputs" and not value)


def _from_response_format(value: dict[str, Any]) -> dict[str, Any]:
    kind = value.get("type")
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        raise InvalidRequest(
            f"response_format.type is {str(kind)[:40]!r}; it must be text, json_object or json_schema",
            "response_format",
        )
    inner = value.get("json_schema")
    schema = inner.get("schema", inner.get("json_schema")) if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequest("response_format needs json_schema.schema, an object", "response_format")
    return {"json": schema}
