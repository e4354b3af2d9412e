"""StructuredOutputsParams: what an output must look like. Plain data; text.grammar makes a grammar of it."""

from dataclasses import dataclass, fields
from typing import Any

from quire.errors import InvalidRequest

MAX_CHOICES = 1024
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_PARAM = "structured_outputs"


@dataclass
class StructuredOutputsParams:
    """One constraint on an output; exactly one of the first five is given.

    json         JSON schema, as an object or as its text
    regex        regular expression that the whole output matches (syntax of Rust's regex crate: no look-around)
    choice       the output is one of these strings
    grammar      context-free grammar, in Lark or GBNF (EBNF) notation
    json_object  True: any JSON object
    structural_tag  not supported, refused
    disable_any_whitespace         JSON without whitespace outside of strings
    disable_additional_properties  objects of the schema have no properties but those that it names
    whitespace_pattern             regular expression of the whitespace in JSON
    Raises InvalidRequest.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.structural_tag is not None:
            raise InvalidRequest("structural_tag is not supported; use json or grammar", _PARAM)
        if self.json_object is not None and not isinstance(self.json_object, bool):
            raise InvalidRequest("json_object must be true or false", _PARAM)
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InvalidRequest(f"structured_outputs takes one of {', '.join(KINDS[:5])}; it has {found}", _PARAM)
        self._check_types()

    @property
    def kind(self) -> str:
        """Which of the constraints is given."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))

    def _check_types(self) -> None:
        for name in ("regex", "grammar", "whitespace_pattern"):
            if not isinstance(getattr(self, name), str | None):
                raise InvalidRequest(f"{name} must be a string", _PARAM)
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} must be true or false", _PARAM)
        if not isinstance(self.json, str | dict | None):
            raise InvalidRequest("json must be a schema: an object, or its text", _PARAM)
        if self.choice is not None and not _is_choice(self.choice):
            raise InvalidRequest(f"choice must be a list of 1 to {MAX_CHOICES} strings that are not empty", _PARAM)


def structured_outputs(value: Any) -> StructuredOutputsParams | None:
    """The params from an object of their fields; themselves, and None, as they are. Raises InvalidRequest."""
    if value is None or isinstance(value, StructuredOutputsParams):
        return value
    if not isinstance(value, dict):
        raise InvalidRequest(f"structured_outputs must be an object, not {type(value).__name__}", _PARAM)
    known = {field.name for field in fields(StructuredOutputsParams)}
    unknown = sorted(str(name) for name in value if name not in known)
    if unknown:
        raise InvalidRequest(f"structured_outputs has no field {unknown[0][:80]!r}", _PARAM)
    given = {name: item for name, item in value.items() if item is not None}
    return StructuredOutputsParams(**given) if given else None


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, list | tuple) or not 1 <= len(choice) <= MAX_CHOICES:
        return False
    return all(isinstance(item, str) and item for item in choice)
