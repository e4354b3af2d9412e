"""Constrained output: StructuredOutputsParams -> a grammar in llguidance's own form, and matchers that follow an output along it.

A grammar comes from a stranger. Its size and depth are bounded here before any native code sees it, llguidance bounds the work of
compiling it and of every step, and whatever is refused reaches only the request that brought it.
"""

import functools
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from quire.core.structured import StructuredOutputsParams
from quire.errors import InvalidRequest
from quire.text.closing import Closer
from quire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_GRAMMAR_BYTES = 64 * 2**10
MAX_REGEX_BYTES = 8 * 2**10
MAX_DEPTH = 64
MAX_SCHEMA_DEPTH = 256
MAX_ERROR_CHARS = 500
NUM_CACHED = 32
MAX_CLOSING = 2048
# The compiler goes about 3 kB deep for each rule of a chain, and a grammar of MAX_GRAMMAR_BYTES can be a chain of 20,000.
STACK_BYTES = 256 * 2**20
# Legal JSON may hold any amount of whitespace; a model that once takes to it would fill its whole budget.
WHITESPACE = r"[ \n\r\t]{0,32}"
LIMITS = {"max_lexer_states": 50_000, "max_grammar_size": 100_000, "step_max_items": 20_000, "verbose_errors": False}
_PARAM = "structured_outputs"


@functools.cache
def _llguidance() -> ModuleType:
    # Imported with the first grammar: it takes 70 ms, which every start would pay for what few requests need.
    import llguidance

    return llguidance


@dataclass(frozen=True)
class CheckedGrammar:
    """A grammar that compiles.

    text         in llguidance's form
    num_closing  tokens of a short complete output; None if no way of MAX_CLOSING is found
    """

    text: str
    num_closing: int | None


class GrammarChecker(Protocol):
    """Makes grammars of constraints, in this process or in one that a hostile grammar may end."""

    def checked(self, params: StructuredOutputsParams) -> CheckedGrammar:
        """The grammar of a constraint. Raises InvalidRequest."""


def grammar_of(params: StructuredOutputsParams) -> str:
    """The constraint in llguidance's form, not yet compiled. Raises InvalidRequest."""
    value = getattr(params, params.kind)
    if params.kind in ("json", "json_object"):
        return _json_grammar({"type": "object"} if params.kind == "json_object" else _schema(value), params)
    if params.kind == "regex":
        return str(_llguidance().LLMatcher.grammar_from_regex(_bounded(value, "regex", max_bytes=MAX_REGEX_BYTES)))
    if params.kind == "choice":
        text = _bounded("start: " + " | ".join(json.dumps(item) for item in value), "choice", max_depth=None)
        return str(_llguidance().LLMatcher.grammar_from_lark(text))
    try:
        return str(_llguidance().grammar_from("grammar", _bounded(value, "grammar")))
    except (ValueError, RecursionError) as error:
        raise refused(str(error)) from None


class GrammarCompiler:
    """Compiles grammars for one tokenizer.

    vocab_size     width of the logits, and of the masks
    eos_token_ids  what a finished output ends with
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self.vocab_size = max(vocab_size, tokenizer.vocab_size)
        self._tokenizer = _llguidance().LLTokenizer(
            tokenizer.to_json(), n_vocab=self.vocab_size, eos_token=list(eos_token_ids)
        )
        self._compiled = functools.lru_cache(maxsize=NUM_CACHED)(self._compile)
        self._thread = ThreadPoolExecutor(1, "grammar")
        self.closer = Closer(tokenizer, eos_token_ids)
        self._closing = functools.lru_cache(maxsize=NUM_CACHED)(self._num_closing)

    def checked(self, params: StructuredOutputsParams) -> CheckedGrammar:
        """The grammar of a constraint. Raises InvalidRequest."""
        text = grammar_of(params)
        self.check(text)
        return CheckedGrammar(text, self.num_closing(text))

    def check(self, grammar: str) -> None:
        """Raises InvalidRequest unless the grammar compiles and has a first token."""
        matcher = self.matcher(grammar)
        allowed = any(matcher.compute_bitmask()) if not matcher.is_error() else False
        error = matcher.get_error() or ("" if allowed else "nothing matches it")
        if error:
            raise refused(error)

    def matcher(self, grammar: str) -> "LLMatcher":
        """A matcher at the beginning of an output; in an error state if the grammar does not compile."""
        return self._compiled(grammar).deep_copy()

    def num_closing(self, grammar: str) -> int | None:
        """Tokens of a short complete output; None if no way of MAX_CLOSING is found."""
        return self._closing(grammar)

    def _num_closing(self, grammar: str) -> int | None:
        way = self.closer.way(self.matcher(grammar), MAX_CLOSING)
        return None if way is None else len(way)

    def _compile(self, grammar: str) -> "LLMatcher":
        library = _llguidance()
        limits = library.LLParserLimits(**LIMITS)
        make = functools.partial(library.LLMatcher, self._tokenizer, grammar, log_level=0, limits=limits)
        return _with_deep_stack(self._thread, make).result()


def _with_deep_stack(thread: ThreadPoolExecutor, work: "Callable[[], LLMatcher]") -> "Future[LLMatcher]":
    """Work in the executor's thread, which is made with a deep stack at the first call."""
    before = threading.stack_size(STACK_BYTES)
    try:
        return thread.submit(work)
    finally:
        threading.stack_size(before)


def after_reasoning(grammar: str, begin: int, end: int) -> str:
    """The same grammar for the answer alone: before it may stand reasoning, of any text without the end mark, between two tokens, and
    a line break or two after them. A matcher then follows the reasoning too, so where the answer begins is known wherever a sequence
    is gone on with.

    begin  token that begins the reasoning, which may be left out as a whole; -1 = the prompt has begun it, so it must be ended
    """
    (answer,) = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    first = "think" if begin < 0 else f"(<[{begin}]> think)?"
    # Who reads the output splits it at the mark's text: spelled with other tokens it would end the reasoning for them alone.
    thought = "THOUGHT: /(?s:.*)/ & ~/(?s:.*)<\\/think>(?s:.*)/"
    main = f"start: {first} @answer\nthink: THOUGHT <[{end}]> /\\n{{0,2}}/\n{thought}\n"
    return json.dumps({"grammars": [{"lark_grammar": main}, {**answer, "name": "answer"}]})


def refused(why: str) -> InvalidRequest:
    """The error of a grammar that cannot be used."""
    return InvalidRequest(f"the output cannot be constrained so: {why[:MAX_ERROR_CHARS]}", _PARAM)


def _json_grammar(schema: Any, params: StructuredOutputsParams) -> str:
    if params.disable_additional_properties:
        schema = _closed(schema)
    options: dict[str, Any] = {"whitespace_pattern": params.whitespace_pattern or WHITESPACE}
    if params.disable_any_whitespace:
        options = {"whitespace_flexible": False}
    return str(_llguidance().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))


def _schema(value: str | dict[str, Any]) -> Any:
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise refused(f"the schema is not plain JSON: {error}") from None
    text = _bounded(text, "the schema", max_depth=MAX_SCHEMA_DEPTH)
    try:
        schema = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise refused(f"the schema is not valid JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise refused("a schema is a JSON object")
    return schema if isinstance(schema, dict) else {} if schema else {"not": {}}


def _closed(schema: Any) -> Any:
    """The schema with additionalProperties false in every object that does not say otherwise."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(item) for name, item in schema.items()}
    if schema.get("type") == "object" or isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _bounded(text: str, what: str, max_depth: int | None = MAX_DEPTH, max_bytes: int = MAX_GRAMMAR_BYTES) -> str:
    """Raises InvalidRequest for a text that is too long, or has brackets nested too deep for native code that recurses."""
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise refused(f"{what} is longer than {max_bytes} bytes")
    depth = 0
    for char in text:
        if char in "([{":
            depth += 1
            if max_depth is not None and depth > max_depth:
                raise refused(f"{what} is nested deeper than {max_depth} levels")
        elif char in ")]}":
            depth = max(0, depth - 1)
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise refused(f"{what} holds characters that are no text")
    return text
