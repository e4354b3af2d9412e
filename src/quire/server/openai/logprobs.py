"""Log-probabilities in both dialects of the API."""

from collections.abc import Sequence
from typing import Any

from quire.outputs import Logprob, PromptLogprobs
from quire.server.openai.shapes import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from quire.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity
Position = (
    dict[int, Logprob] | None
)  # token id -> Logprob, the token that is there first; None where nothing comes before


class LogprobWriter:
    """Writes positions for one request.

    tokenizer  None: tokens are named by their ids
    top        how many likely tokens are wanted at each position
    as_ids     write tokens as "token_id:123"
    """

    def __init__(self, tokenizer: Tokenizer | None, top: int, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._as_ids = as_ids or tokenizer is None

    def chat(self, positions: Sequence[Position]) -> ChatLogprobs:
        """In chat's dialect."""
        return ChatLogprobs([self._chat_position(position) for position in positions if position])

    def completion(
        self, token_ids: Sequence[int], positions: Sequence[Position], offset: int
    ) -> tuple[CompletionLogprobs, int]:
        """In the dialect of plain completions. `offset`: characters before; returned with those of these tokens added."""
        written = CompletionLogprobs([], [], [], [])
        for token_id, position in zip(token_ids, positions, strict=True):
            written.text_offset.append(offset)
            written.tokens.append(self._name(token_id))
            written.token_logprobs.append(None if position is None else _finite(position[token_id]))
            written.top_logprobs.append(None if position is None else self._top_by_name(token_id, position))
            offset += len(self._text(token_id))
        return written, offset

    def _chat_position(self, position: dict[int, Logprob]) -> TokenLogprob:
        token_id = next(iter(position))
        top = [TopLogprob(self._name(i), _finite(entry), self._bytes(i)) for i, entry in self._likeliest(position)]
        return TokenLogprob(self._name(token_id), _finite(position[token_id]), self._bytes(token_id), top)

    def _top_by_name(self, token_id: int, position: dict[int, Logprob]) -> dict[str, float]:
        """The likeliest, and the token that is there. Of two tokens with one text the likelier is kept."""
        found: dict[str, float] = {}
        for i, entry in [*self._likeliest(position), (token_id, position[token_id])]:
            found.setdefault(self._name(i), _finite(entry))
        return found

    def _likeliest(self, position: dict[int, Logprob]) -> list[tuple[int, Logprob]]:
        ranked = sorted(position.items(), key=lambda item: item[1].rank or 0)
        return [(i, entry) for i, entry in ranked if (entry.rank or 0) <= self._top][: self._top]

    def _name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._text(token_id)

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._tokenizer else ""

    def _bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id)) if self._tokenizer else []


def prompt_logprobs_json(positions: PromptLogprobs | None) -> list[dict[int, dict[str, Any]] | None] | None:
    """Prompt log-probabilities as vLLM writes them: null, then {token id: {logprob, rank, decoded_token}}."""
    if positions is None:
        return None
    return [None if position is None else {i: _entry(entry) for i, entry in position.items()} for position in positions]


def _entry(entry: Logprob) -> dict[str, Any]:
    return {"logprob": _finite(entry), "rank": entry.rank, "decoded_token": entry.decoded_token}


def _finite(entry: Logprob) -> float:
    return max(entry.logprob, LOWEST)
