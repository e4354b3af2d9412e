"""What each token contributes to a text, read off the tokenizer's decoder once, so that streams need not decode twice.

Two kinds of decoder cover the checkpoints there are:
    ByteLevel   (GPT-2, Qwen, Llama 3)   a token is some bytes; the text is their concatenation read as UTF-8
    pieces      (Llama 2, T5, BERT)      a token is some text, the same wherever it stands, but for the first token of a
                                         text (its leading space is cut) and for runs of byte tokens (<0xE4> <0xBD> ...),
                                         which become characters together
"""

import json
import re
from typing import Any, TypeAlias

import tokenizers

from quire.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_LOCAL_STEPS = ("Replace", "ByteFallback", "Metaspace", "WordPiece")


class ByteLevelText:
    """Tokens that are bytes, in GPT-2's spelling of them as printable characters."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int) -> None:
        self._backend = backend
        self._vocab_size = vocab_size
        self._cache: dict[int, bytes] = {}

    def exists(self, token_id: int) -> bool:
        """False for ids that have no token: they leave nothing in a text."""
        return bool(self._cache.get(token_id)) or self._backend.id_to_token(token_id) is not None

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; empty for ids without a token."""
        found = self._cache.get(token_id)
        if found is None:
            found = self._cache[token_id] = self._read(token_id)
        return found

    def _read(self, token_id: int) -> bytes:
        piece = self._backend.id_to_token(token_id) or ""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in piece)
        except KeyError:  # an added token, spelled in plain characters
            return piece.encode("utf-8")


class PieceText:
    """Tokens that are pieces of text. `byte_of` says which are single bytes of a character."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int, byte_fallback: bool) -> None:
        self._backend = backend
        self._byte_fallback = byte_fallback
        self._anchor = _anchor(backend, vocab_size)
        self._anchor_text = backend.decode([self._anchor], skip_special_tokens=False)
        self._cache: dict[int, str] = {}

    def exists(self, token_id: int) -> bool:
        """False for ids that have no token: they leave nothing in a text."""
        return self._backend.id_to_token(token_id) is not None

    def byte_of(self, token_id: int) -> int | None:
        """The byte that a byte token stands for; None for other tokens."""
        match = _BYTE_TOKEN.match(self._backend.id_to_token(token_id) or "") if self._byte_fallback else None
        return int(match[1], 16) if match else None

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes in the middle of a text; empty for ids without a token."""
        byte = self.byte_of(token_id)
        return self.decode([token_id], first=False).encode("utf-8") if byte is None else bytes([byte])

    def decode(self, token_ids: list[int], first: bool) -> str:
        """Text of tokens that stand together (one token, or a whole run of byte tokens); `first`: at a text's beginning."""
        if first:
            return str(self._backend.decode(token_ids, skip_special_tokens=False))
        if len(token_ids) == 1 and token_ids[0] in self._cache:
            return self._cache[token_ids[0]]
        text = self._backend.decode([self._anchor, *token_ids], skip_special_tokens=False)
        text = str(text[len(self._anchor_text) :])
        if len(token_ids) == 1:
            self._cache[token_ids[0]] = text
        return text


TokenText: TypeAlias = ByteLevelText | PieceText


def token_text_of(backend: tokenizers.Tokenizer, vocab_size: int) -> TokenText:
    """Reads the kind of decoder. CheckpointError for one whose text cannot be streamed token by token."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder]) if decoder else []
    names = [step["type"] for step in steps]
    if "ByteLevel" in names and set(names) <= {"ByteLevel", "Fuse"}:
        return ByteLevelText(backend, vocab_size)
    for step in steps:
        if step["type"] not in (*_LOCAL_STEPS, "Fuse", "Strip") or step.get("stop", 0):
            raise CheckpointError(f"tokenizer.json: decoder {step['type']} is not supported")
    return PieceText(backend, vocab_size, byte_fallback="ByteFallback" in names)


def _anchor(backend: tokenizers.Tokenizer, vocab_size: int) -> int:
    """A plain token to decode others after, so that they are not the first."""
    added = backend.get_added_tokens_decoder()
    plain = (i for i in range(vocab_size) if i not in added and (backend.id_to_token(i) or "").isalpha())
    return next(plain, 0)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the other 68 for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return table


_BYTE_OF_CHAR = _byte_of_char()
