"""Chat templates: messages -> prompt text, with the results of transformers' apply_chat_template, without transformers.

A template is a Jinja program that comes with the checkpoint or from the operator. It runs in Jinja's immutable sandbox and sees
plain JSON data only. A template sent with a request is a program from a stranger: refused unless the operator allows it.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire.errors import CheckpointError, ConfigError, InvalidRequest
from quire.text.messages import Message, plain, read_messages, read_tools
from quire.text.special_tokens import read_json

# Variables that a request's chat_template_kwargs must not replace.
RESERVED = frozenset(
    "messages tools documents add_generation_prompt continue_final_message chat_template tokenize "
    "raise_exception strftime_now bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split()
)
_DEFAULT = "default"
_PROBE = "quire-probe-7f3a"
# Marks where a message to be continued ends. The space tells whether the template trims contents.
_END_MARK = "quire-continue-9c41 "


class ChatTemplate:
    """One compiled template.

    source          Jinja text
    special_tokens  bos_token, eos_token, ... of the tokenizer
    Raises ConfigError when it is no valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template is not valid: {error}") from None
        self.reads_parts = self._shows([{"type": "text", "text": _PROBE}])
        self._wrap_strings = self.reads_parts and not self._shows(_PROBE)

    def render(
        self,
        messages: Any,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Any = None,
        documents: Any = None,
        template_kwargs: Mapping[str, Any] | None = None,
        max_chars: int | None = None,
    ) -> str:
        """The prompt text.

        messages                [{"role": ..., "content": ...}, ...]
        add_generation_prompt   end with the opening of the assistant's turn
        continue_final_message  leave the last message open, for the model to go on with
        template_kwargs         further variables of the template, such as enable_thinking
        max_chars               longer texts are refused as soon as they are
        Raises InvalidRequest: bad messages, or the template refuses them.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        read = read_messages(
            messages,
            parts=self.reads_parts,
            wrap_strings=self._wrap_strings,
            knows_developer="developer" in self.source,
            knows_tool_calls="tool_calls" in self.source,
        )
        final = _mark_end(read[-1]) if continue_final_message else ""
        variables = {
            **self._special_tokens,
            **_checked_kwargs(template_kwargs),
            "messages": read,
            "tools": read_tools(tools),
            "documents": plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(variables, max_chars)
        return _cut_at_mark(text, final) if continue_final_message else text

    def _run(self, variables: dict[str, Any], max_chars: int | None) -> str:
        pieces = []
        num_chars = 0
        try:
            for piece in self._template.generate(**variables):
                pieces.append(piece)
                num_chars += len(piece)
                if max_chars is not None and num_chars > max_chars:
                    break
        except Exception as error:  # a template can fail in any way on what a caller sends
            raise InvalidRequest(f"the chat template refuses these messages: {error}", "messages") from None
        if max_chars is not None and num_chars > max_chars:
            raise InvalidRequest(f"the messages make more than {max_chars} characters of prompt", "messages")
        return "".join(pieces)

    def _shows(self, content: Any) -> bool:
        """Whether the template writes out a user's content given in this form, and not its Python spelling."""
        variables: dict[str, Any] = {**self._special_tokens, "messages": [{"role": "user", "content": content}]}
        variables |= {"tools": None, "documents": None, "add_generation_prompt": False}
        try:
            text = self._run(variables, None)
        except InvalidRequest:
            return False
        return _PROBE in text and not any(spelling in text for spelling in ("{'type'", '{"type"'))


class ChatTemplates:
    """The templates of a model by name: "default", and for some checkpoints "tool_use" or others."""

    def __init__(self, named: Mapping[str, ChatTemplate]) -> None:
        self.named = dict(named)

    @classmethod
    def load(
        cls, folder: str | Path, override: str | None = None, special_tokens: Mapping[str, str] | None = None
    ) -> "ChatTemplates":
        """A checkpoint's templates; `override` (a file, Jinja text, or one of their names) takes their place.

        Raises ConfigError for an override that cannot be used, CheckpointError for a broken template of the checkpoint.
        """
        sources = read_templates(Path(folder))
        if override is not None:
            sources = {_DEFAULT: sources.get(override) or _override_text(override)}
        try:
            return cls({name: ChatTemplate(source, special_tokens) for name, source in sources.items()})
        except ConfigError as error:
            if override is not None:
                raise
            raise CheckpointError(f"{folder}: {error}; --chat-template takes another") from None

    def pick(self, name: str | None = None, tools: Any = None) -> ChatTemplate:
        """The named template; without a name "tool_use" when there are tools and it exists, else "default"."""
        if not self.named:
            raise InvalidRequest("this model has no chat template; the server's --chat-template can give it one")
        if name is None:
            name = "tool_use" if tools and "tool_use" in self.named else _DEFAULT
        if name not in self.named:
            raise InvalidRequest(
                f"this model has no chat template {name!r}, but {', '.join(self.named)}", "chat_template"
            )
        return self.named[name]

    def render(
        self, messages: Any, *, template: str | None = None, allow_request_template: bool = False, **options: Any
    ) -> str:
        """ChatTemplate.render with the template that fits.

        template                a name of one, or with `allow_request_template` the Jinja text of another
        """
        if template is None or template in self.named:
            return self.pick(template, options.get("tools")).render(messages, **options)
        if not allow_request_template:
            raise InvalidRequest(
                "chat_template: this server takes no templates from requests; start it with --chat-template",
                "chat_template",
            )
        special_tokens = next(iter(self.named.values()))._special_tokens if self.named else None
        return render(messages, template, special_tokens=special_tokens, **options)


def render(messages: Any, template: str, special_tokens: Mapping[str, str] | None = None, **options: Any) -> str:
    """Renders once with Jinja text; see ChatTemplate.render. InvalidRequest also when the text is no valid template."""
    try:
        compiled = ChatTemplate(template, special_tokens)
    except ConfigError as error:
        raise InvalidRequest(str(error), "chat_template") from None
    return compiled.render(messages, **options)


def read_templates(folder: Path) -> dict[str, str]:
    """Jinja texts of a checkpoint by name; {} when it has none. The .jinja files win over tokenizer_config.json."""
    found: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        found[_DEFAULT] = _read_text(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read_text(path)
    if found:
        return found
    value = read_json(folder / "chat_template.json").get("chat_template")
    value = read_json(folder / "tokenizer_config.json").get("chat_template") if value is None else value
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = {} if value is None else value if isinstance(value, dict) else {_DEFAULT: value}
    if not all(isinstance(item, str) for pair in named.items() for item in pair):
        raise CheckpointError(f"{folder}: chat_template must be text, or a list of names with text")
    return named


def _override_text(override: str) -> str:
    path = Path(override).expanduser()
    try:
        if path.is_file():
            return _read_text(path)
    except OSError:  # the text of a template is too long for a file name
        pass
    if not any(char in override for char in "{\n"):
        raise ConfigError(f"--chat-template {override}: no such file, and it is not the text of a template")
    return override


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _checked_kwargs(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise InvalidRequest("chat_template_kwargs must be an object", "chat_template_kwargs")
    reserved = sorted(RESERVED & set(kwargs))
    if reserved:
        raise InvalidRequest(f"chat_template_kwargs must not hold {reserved[0]}", "chat_template_kwargs")
    values: dict[str, Any] = plain(kwargs, "chat_template_kwargs")
    return values


def _mark_end(message: Message) -> str:
    """Puts the mark behind the message's text; returns the text."""
    content = message.get("content")
    if isinstance(content, list) and content:
        text = str(content[-1]["text"])
        content[-1]["text"] = text + _END_MARK
    else:
        text = content or ""
        message["content"] = text + _END_MARK
    return text


def _cut_at_mark(text: str, final: str) -> str:
    at = text.find(_END_MARK.strip())
    if text.count(_END_MARK.strip()) != 1 or final.strip() not in text:
        raise InvalidRequest(
            "continue_final_message: the chat template does not write the last message as it is",
            "continue_final_message",
        )
    kept = text[:at]
    return kept if text.startswith(_END_MARK, at) else kept.rstrip()


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks what the model wrote, for training; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> jinja2.Environment:
    """Names, filters and options as transformers gives them to templates (utils/chat_template_utils.py)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
