"""Text of a growing sequence: IncrementalDetokenizer turns new ids into new text, StopChecker ends it at a stop string.

Both cost the same for each token however long the text is, and joined, what they give is exactly the text of the whole.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from quire.text.token_text import ByteLevelText, PieceText
from quire.text.tokenizer import Tokenizer, visible_ids

# Enough of a prompt's end to see whether it shows text and whether it ends within a character.
_CONTEXT_TOKENS = 8


class IncrementalDetokenizer:
    """Joined, what push() and flush() return equals tokenizer.decode of all ids; half a character is never among it.

    prompt_token_ids  what the sequence continues: after a prompt that shows any text, the first token keeps its leading
                      space, and a character that the prompt began is completed
    spaces_between_special_tokens  False: special tokens that follow each other are joined without the decoder's spaces
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        context = _context(tokenizer, prompt_token_ids, skip_special_tokens)
        texts = tokenizer.token_texts
        self._stream: _Stream
        if isinstance(texts, PieceText):
            join = not spaces_between_special_tokens and not skip_special_tokens
            self._stream = _PieceStream(texts, context, tokenizer.added_tokens if join else {})
        else:
            self._stream = _ByteStream(texts, context)

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these ids settle; what may still change waits for the next ones."""
        return self._stream.push(visible_ids(self._tokenizer, token_ids, self._skip_special_tokens))

    def flush(self) -> str:
        """What still waited, once no more ids come: a cut-off character shows as U+FFFD."""
        return self._stream.flush()


class _Stream(Protocol):
    def push(self, token_ids: list[int]) -> str: ...

    def flush(self) -> str: ...


class _ByteStream:
    """Byte-level tokens: a UTF-8 decoder that keeps the bytes of an unfinished character."""

    def __init__(self, texts: ByteLevelText, context: list[int]) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(b"".join(map(texts.bytes_of, context)))

    def push(self, token_ids: list[int]) -> str:
        return self._decoder.decode(b"".join(map(self._texts.bytes_of, token_ids)))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class _PieceStream:
    """Piece tokens. A run of byte tokens is decoded as a whole, so it waits for the token that ends it."""

    def __init__(self, texts: PieceText, context: list[int], joined: dict[int, str]) -> None:
        self._texts = texts
        self._joined = joined
        self._first = not context
        self._run = _unfinished_run(texts, context)
        self._after_joined = False

    def push(self, token_ids: list[int]) -> str:
        return "".join(map(self._push_one, token_ids))

    def flush(self) -> str:
        return self._settle(self._run) if self._run else ""

    def _push_one(self, token_id: int) -> str:
        if self._texts.byte_of(token_id) is not None:
            self._run.append(token_id)
            self._after_joined = False
            return ""
        settled = self.flush()
        follows = self._after_joined
        self._after_joined = token_id in self._joined
        if follows and self._after_joined:
            return settled + self._joined[token_id]
        return settled + self._settle([token_id])

    def _settle(self, token_ids: list[int]) -> str:
        first, self._first = self._first, False
        self._run = []
        return self._texts.decode(token_ids, first)


def _context(tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> list[int]:
    """The last visible tokens of the prompt, few of them."""
    visible: list[int] = []
    for token_id in reversed(prompt_token_ids):
        visible = visible_ids(tokenizer, [token_id], skip_special_tokens) + visible
        if len(visible) == _CONTEXT_TOKENS:
            break
    return visible


def _unfinished_run(texts: PieceText, context: list[int]) -> list[int]:
    """The byte tokens at the end of `context` that begin a character and do not end it."""
    for num_tokens in range(1, min(3, len(context)) + 1):
        tail = [texts.byte_of(token_id) for token_id in context[-num_tokens:]]
        data = bytes(byte for byte in tail if byte is not None)
        if len(data) < num_tokens:
            return []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        if decoder.decode(data) == "" and data:
            return context[-num_tokens:]
    return []


class StopResult(NamedTuple):
    """text: may be shown now. stopped: a stop string is complete, nothing follows. matched: which one."""

    text: str
    stopped: bool = False
    matched: str | None = None


class StopChecker:
    """Finds stop strings in a growing text, however it is cut, and holds back what may be the start of one.

    The string that is complete first wins; of two that end together, the longer.
    include  the stop string stays in the text (nothing needs holding back then)
    """

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        self._stop = list(stop)
        self._include = include
        self._num_seen = max(map(len, self._stop), default=1) - 1
        self._tail = ""  # the last _num_seen characters; its last _num_held were not shown yet
        self._num_held = 0

    def push(self, delta: str) -> StopResult:
        """What may be shown after this text is added."""
        window = self._tail + delta
        start = len(self._tail) - self._num_held
        match = self._find(window)
        if match is not None:
            end, matched = match
            self._num_held = 0
            return StopResult(window[start : end if self._include else end - len(matched)], True, matched)
        self._num_held = 0 if self._include else self._held(window, start)
        shown = window[start : len(window) - self._num_held]
        self._tail = window[-self._num_seen :] if self._num_seen else ""
        return StopResult(shown)

    def flush(self) -> str:
        """What was held back, once the text ends without a stop string."""
        held = self._tail[len(self._tail) - self._num_held :]
        self._num_held = 0
        return held

    def _find(self, window: str) -> tuple[int, str] | None:
        """End of the first complete stop string, and the string."""
        found = ((window.find(s), s) for s in self._stop)
        ends = [(at + len(s), s) for at, s in found if at >= 0]
        return min(ends, key=lambda e: (e[0], -len(e[1])), default=None)

    def _held(self, window: str, start: int) -> int:
        """Length of the longest end of `window` that begins a stop string."""
        longest = 0
        for stop in self._stop:
            at = window.find(stop[0], max(start, len(window) - len(stop) + 1))
            while at >= 0 and not stop.startswith(window[at:]):
                at = window.find(stop[0], at + 1)
            longest = max(longest, len(window) - at if at >= 0 else 0)
        return longest


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of the text that is a beginning of the mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
