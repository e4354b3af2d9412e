"""What a model writes, as output items and as the events that tell of them. A whole answer is the sum of its events, so a stream and
an answer that waited say the same.
"""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from quire.outputs import Logprob
from quire.server.openai.answers import AnswerReader, Manner, News, call_id
from quire.server.openai.logprobs import LogprobWriter
from quire.text.tools.calls import ToolCall

Event = dict[str, Any]
Item = dict[str, Any]


class OutputBuilder:
    """Builds the output of one response, from its text in any pieces.

    writer  None: log-probabilities are not wanted
    items   output items so far; those before the last are done
    """

    def __init__(self, manner: Manner, writer: LogprobWriter | None = None) -> None:
        self.items: list[Item] = []
        self.reader = AnswerReader(manner)
        self._writer = writer
        self._open: Item | None = None  # the last item, while text is added to it
        self._positions: list[dict[int, Logprob]] = []
        self._num_told = 0

    def push(
        self,
        text: str,
        finish_reason: str | None,
        token_ids: Iterable[int] = (),
        logprobs: Sequence[dict[int, Logprob]] | None = None,
    ) -> list[Event]:
        """The events that more text, of these tokens, makes certain. finish_reason: of the last piece."""
        self._positions += logprobs or ()
        news = self.reader.push(text, finish_reason is not None, token_ids)
        events = self._tell(news)
        if finish_reason is not None:
            if not self.items:
                events += self._begin("message")
            events += self._close("incomplete" if finish_reason == "length" else "completed")
        return events

    def _tell(self, news: News) -> list[Event]:
        events: list[Event] = []
        if news.reasoning:
            events += self._add("reasoning", news.reasoning)
        for item in news.items:
            events += self._call(item) if isinstance(item, ToolCall) else self._add("message", item)
        return events

    def _add(self, kind: str, text: str) -> list[Event]:
        """More text for an item of that kind, which is begun if another is open."""
        events = self._begin(kind) if self._open is None or self._open["type"] != kind else []
        item = self._open or {}
        part = item["content"][0]
        part["text"] += text
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        event = {"type": name, **self._place(item), "content_index": 0, "delta": text}
        if kind == "message":
            event["logprobs"] = self._new_logprobs(part)
        return [*events, event]

    def _begin(self, kind: str) -> list[Event]:
        events = self._close("completed")
        if kind == "message":
            item: Item = {"id": _new_id("msg"), "type": "message", "role": "assistant"}
            part: Item = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": _new_id("rs"), "type": "reasoning", "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        item |= {"status": "in_progress", "content": []}
        self.items.append(item)
        events.append(self._item_event("added", item))
        item["content"].append(part)
        events.append(
            {"type": "response.content_part.added", **self._place(item), "content_index": 0, "part": dict(part)}
        )
        self._open = item
        return events

    def _close(self, status: str) -> list[Event]:
        item, self._open = self._open, None
        if item is None:
            return []
        part = item["content"][0]
        place = {**self._place(item), "content_index": 0}
        done = {"type": "response.reasoning_text.done", **place, "text": part["text"]}
        if item["type"] == "message":
            self._new_logprobs(part)
            done |= {"type": "response.output_text.done", "logprobs": list(part["logprobs"])}
        item["status"] = status
        part_done = {"type": "response.content_part.done", **place, "part": dict(part)}
        return [done, part_done, self._item_event("done", item)]

    def _call(self, call: ToolCall) -> list[Event]:
        events = self._close("completed")
        item = {"id": _new_id("fc"), "type": "function_call", "call_id": call_id(), "name": call.name, "arguments": ""}
        item["status"] = "in_progress"
        self.items.append(item)
        place = self._place(item)
        events.append(self._item_event("added", item))
        events.append({"type": "response.function_call_arguments.delta", **place, "delta": call.arguments})
        done = {
            "type": "response.function_call_arguments.done",
            **place,
            "name": call.name,
            "arguments": call.arguments,
        }
        item |= {"arguments": call.arguments, "status": "completed"}
        return [*events, done, self._item_event("done", item)]

    def _new_logprobs(self, part: Item) -> list[Any]:
        """Log-probabilities that the text now has beyond those told, added to its part."""
        if self._writer is None:
            return []
        first = max(self._num_told, self.reader.num_reasoning_tokens)
        self._num_told = len(self._positions)
        new = self._writer.chat(self._positions[first:]).content
        part["logprobs"] += new
        return new

    def _place(self, item: Item) -> Event:
        return {"item_id": item["id"], "output_index": len(self.items) - 1}

    def _item_event(self, what: str, item: Item) -> Event:
        copy = {**item, "content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)
        return {"type": f"response.output_item.{what}", "output_index": len(self.items) - 1, "item": copy}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
