"""Tokenizer: text to token ids and back, from a checkpoint's tokenizer.json, without transformers and without torch.

The file's own pipeline is used as it is (as transformers 4 does); tokenizer_config.json adds what the file does not hold: which
tokens are bos, eos and pad, and special tokens that the file lacks. Checkpoints without tokenizer.json go through transformers.
Text clean-up (`clean_up_tokenization_spaces`) is never done: it is lossy, and a stream could not equal the whole text.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from quire.errors import CheckpointError, InvalidRequest
from quire.text.convert import convert, load_hf_tokenizer
from quire.text.special_tokens import SpecialTokens, apply_bos_eos_flags, read_special_tokens
from quire.text.token_text import TokenText, token_text_of

# Prompts are tokenised in parallel by whoever calls us; a second pool of threads below that only adds switching.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Encodes and decodes. Immutable once built, so any number of threads may use one.

    vocab_size  one more than the highest token id, added tokens included
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialTokens, folder: Path) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = special
        self._folder = folder
        self._hf: Any = None
        self._hf_lock = threading.Lock()
        added = backend.get_added_tokens_decoder()
        self.added_tokens: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.token_texts: TokenText = token_text_of(backend, self.vocab_size)

    @classmethod
    def from_dir(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a checkpoint folder. CheckpointError when there is none, or it cannot be read."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            return cls(*convert(folder), folder)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for malformed files
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        special = read_special_tokens(folder)
        special.add_missing(backend)
        apply_bos_eos_flags(backend, special)
        return cls(backend, special, folder)

    def encode(self, text: str, add_special_tokens: bool = True, max_bytes: int | None = None) -> list[int]:
        """Token ids of `text`; `add_special_tokens` puts bos and eos where the checkpoint wants them.

        max_bytes  longer texts are refused before they are tokenised
        Raises InvalidRequest for text that is too long or no valid Unicode (lone surrogates).
        """
        check_text(text, max_bytes)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids. Ids without a token (padding of the embedding table) give nothing."""
        try:
            text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError):
            raise InvalidRequest("token ids must be integers from 0 to 4294967295") from None
        return text

    def to_json(self) -> str:
        """The whole tokenizer in the format of tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    def is_special(self, token_id: int) -> bool:
        """True for control tokens, which skip_special_tokens leaves out of the text."""
        return token_id in self.special_ids

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its exact piece, such as "<|im_end|>"."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def piece(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it ("Ġhello", "▁hello", "<0xE4>"); None for ids without one."""
        piece: str | None = self._backend.id_to_token(token_id)
        return piece

    def token_text(self, token_id: int) -> str:
        """The token's text within a sentence, its leading space included; bytes that are no character show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The token's exact bytes; those of all tokens of a text, joined, are the text in UTF-8."""
        return self.token_texts.bytes_of(token_id)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that opens a text, if the checkpoint names one."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, if the checkpoint names one."""
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token, if the checkpoint names one."""
        return self._named_id("pad_token")

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """bos_token, eos_token, ... as strings: what a chat template may use."""
        return dict(self._special.named)

    @property
    def hf(self) -> Any:
        """The transformers tokenizer of the same folder, loaded when first asked for (it is slow and may import torch)."""
        with self._hf_lock:
            if self._hf is None:
                self._hf = load_hf_tokenizer(self._folder)
        return self._hf

    def _named_id(self, name: str) -> int | None:
        token = self._special.named.get(name)
        return None if token is None else self.token_to_id(token)


def check_text(text: Any, max_bytes: int | None = None) -> None:
    """Raises InvalidRequest unless `text` is a string of valid Unicode of at most `max_bytes` in UTF-8."""
    if not isinstance(text, str):
        raise InvalidRequest(f"text must be a string, not {type(text).__name__}")
    try:
        num_bytes = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"text holds a lone surrogate (half a character) at position {error.start}") from None
    if max_bytes is not None and num_bytes > max_bytes:
        raise InvalidRequest(f"text has {num_bytes} bytes; at most {max_bytes} can fit the model length")


def visible_ids(tokenizer: Tokenizer, token_ids: Iterable[int], skip_special_tokens: bool) -> list[int]:
    """The ids that leave text behind: those with a token, and no special ones when those are skipped."""
    hidden: frozenset[int] = tokenizer.special_ids if skip_special_tokens else frozenset()
    return [i for i in token_ids if i not in hidden and tokenizer.token_texts.exists(i)]
