"""What a model writes, as content blocks and as the events that tell of them. A whole answer is the sum of its events."""

import json
from collections.abc import Iterable
from typing import Any

from quire.server.openai.answers import AnswerReader, Manner, call_id
from quire.text.tools.calls import ToolCall

Event = dict[str, Any]
Block = dict[str, Any]


class BlockBuilder:
    """Builds the content of one message, from its text in any pieces.

    blocks  so far; those before the last are done
    """

    def __init__(self, manner: Manner) -> None:
        self.blocks: list[Block] = []
        self.reader = AnswerReader(manner)
        self._is_open = False

    def push(self, text: str, finished: bool, token_ids: Iterable[int] = ()) -> list[Event]:
        """The events that more text, of these tokens, makes certain; finished: it was the last."""
        news = self.reader.push(text, finished, token_ids)
        events = self._add("thinking", news.reasoning) if news.reasoning else []
        for item in news.items:
            events += self._call(item) if isinstance(item, ToolCall) else self._add("text", item)
        return events + (self._close() if finished else [])

    def _add(self, kind: str, text: str) -> list[Event]:
        events: list[Event] = []
        if not self._is_open or self.blocks[-1]["type"] != kind:
            empty = (
                {"type": "text", "text": ""}
                if kind == "text"
                else {"type": "thinking", "thinking": "", "signature": ""}
            )
            events = [*self._close(), self._begin(empty)]
            self._is_open = True
        self.blocks[-1][kind] += text
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _call(self, call: ToolCall) -> list[Event]:
        events = self._close()
        block = {"type": "tool_use", "id": call_id(), "name": call.name, "input": {}}
        events.append(self._begin(block))
        events.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        self.blocks[-1]["input"] = json.loads(call.arguments)
        return [*events, self._end()]

    def _begin(self, block: Block) -> Event:
        self.blocks.append(block)
        return {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}

    def _close(self) -> list[Event]:
        """Ends the open block; thinking is signed first, with nothing, for clients wait for it."""
        if not self._is_open:
            return []
        self._is_open = False
        signed = self.blocks[-1]["type"] == "thinking"
        return [*([self._delta({"type": "signature_delta", "signature": ""})] if signed else []), self._end()]

    def _end(self) -> Event:
        return {"type": "content_block_stop", "index": len(self.blocks) - 1}
