"""Reading an answer of a chat: its reasoning, its content and its tool calls, alike for whole answers and streams."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from quire.server.openai.shapes import CallDelta, ChatMessage, Delta, FunctionCall, FunctionDelta, MessageCall
from quire.text.reasoning.count import ReasoningCounter
from quire.text.reasoning.think import ThinkSplitter
from quire.text.tokenizer import Tokenizer
from quire.text.tools.calls import Item, ToolCall
from quire.text.tools.formats import ToolFormat


@dataclass(frozen=True)
class Manner:
    """How answers to one request are read.

    prompt              which they follow
    splits_reasoning    the model may reason before it answers
    shows_reasoning     False: reasoning is left out
    format              of tool calls; None = there are none
    one_call            further calls are left out (parallel_tool_calls is false)
    legacy_call         the one call is told as function_call
    opening             with what the content begins, before anything that the model says
    tokenizer           None: tokens of reasoning are not counted
    """

    prompt: str = ""
    splits_reasoning: bool = False
    shows_reasoning: bool = True
    format: ToolFormat | None = None
    one_call: bool = False
    legacy_call: bool = False
    opening: str = ""
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class News:
    """What is new of an answer: reasoning, then content and calls in order."""

    reasoning: str
    items: list[Item]


class AnswerReader:
    """Reads one answer, in any pieces."""

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self._splitter = ThinkSplitter(manner.prompt) if manner.splits_reasoning else None
        self._counter = ReasoningCounter(manner.tokenizer) if self._splitter and manner.tokenizer else None
        self._parser = manner.format.parser() if manner.format else None
        self._opening = manner.opening
        self.num_calls = 0

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of reasoning so far."""
        return self._counter.num_tokens if self._counter and self._splitter and self._splitter.reasoned else 0

    def push(self, text: str, finished: bool, token_ids: Iterable[int] = ()) -> News:
        """What is certain after this much more text, of these tokens; finished: it was the last."""
        reasoning = ""
        if self._counter is not None:
            self._counter.push(token_ids)
        if self._splitter is not None:
            parts = [self._splitter.push(text)] + ([self._splitter.finish()] if finished else [])
            reasoning, text = "".join(p.reasoning for p in parts), "".join(p.answer for p in parts)
        items: list[Item] = [text] if text else []
        if self._parser is not None:
            items = self._parser.push(text) + (self._parser.finish() if finished else [])
        shown = [item for item in items if self._wanted(item)]
        if self._opening and (shown or finished):
            shown, self._opening = [self._opening, *shown], ""
        return News(reasoning if self._manner.shows_reasoning else "", shown)

    def deltas(self, text: str, finished: bool, token_ids: Iterable[int] = ()) -> list[Delta]:
        """The same as pieces of a streamed message."""
        first = self.num_calls
        news = self.push(text, finished, token_ids)
        deltas = [Delta(reasoning=news.reasoning, reasoning_content=news.reasoning)] if news.reasoning else []
        for item in news.items:
            if not isinstance(item, ToolCall):
                deltas.append(Delta(content=item))
            elif self._manner.legacy_call:
                deltas.append(Delta(function_call=FunctionDelta("", item.name)))
                deltas.append(Delta(function_call=FunctionDelta(item.arguments)))
            else:
                opening = CallDelta(first, FunctionDelta("", item.name), call_id(), "function")
                deltas.append(Delta(tool_calls=[opening]))
                deltas.append(Delta(tool_calls=[CallDelta(first, FunctionDelta(item.arguments))]))
                first += 1
        return deltas

    def message(self, text: str, token_ids: Iterable[int] = ()) -> ChatMessage:
        """The message of a whole answer."""
        news = self.push(text, True, token_ids)
        content = "".join(item for item in news.items if isinstance(item, str))
        calls = [FunctionCall(item.name, item.arguments) for item in news.items if isinstance(item, ToolCall)]
        message = ChatMessage(content or None if calls else content)
        if calls and self._manner.legacy_call:
            message.function_call = calls[0]
        elif calls:
            message.tool_calls = [MessageCall(call_id(), call) for call in calls]
        if news.reasoning:
            message.reasoning = message.reasoning_content = news.reasoning
        return message

    def finish_reason(self, reason: str | None) -> str | None:
        """Why the answer ended, in the words of the API."""
        if reason != "stop" or not self.num_calls:
            return reason
        return "function_call" if self._manner.legacy_call else "tool_calls"

    def _wanted(self, item: Item) -> bool:
        if not isinstance(item, ToolCall):
            return True
        if self._manner.one_call and self.num_calls:
            return False
        self.num_calls += 1
        return True


def call_id() -> str:
    """An id of nine characters: the templates of Mistral models take no other."""
    return secrets.token_hex(5)[:9]
