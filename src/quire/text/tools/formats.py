"""Which format of tool calls a model speaks, by its chat template."""

from collections.abc import Callable
from dataclasses import dataclass

from quire.text.tools import hermes, llama3, mistral, plain_json
from quire.text.tools.calls import ToolParser


@dataclass(frozen=True)
class ToolFormat:
    """One format.

    marks       strings that must not be left out of the text, though they may be special tokens
    in_template the chat template writes the tools into the prompt
    """

    name: str
    parser: Callable[[], ToolParser]
    marks: tuple[str, ...] = ()
    in_template: bool = True


HERMES = ToolFormat("hermes", hermes.parser, hermes.MARKS)
MISTRAL = ToolFormat("mistral", mistral.parser, mistral.MARKS)
LLAMA3 = ToolFormat("llama3", llama3.parser, llama3.MARKS)
PLAIN_JSON = ToolFormat("json", plain_json.parser)
NO_TEMPLATE = ToolFormat("json", plain_json.parser, in_template=False)


def format_of(template: str) -> ToolFormat:
    """The format that the text of a chat template shows."""
    if "tools" not in template:
        return NO_TEMPLATE
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<|python_tag|>" in template or '"parameters": dictionary of argument' in template:
        return LLAMA3
    return PLAIN_JSON
