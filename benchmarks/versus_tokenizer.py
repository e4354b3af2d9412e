"""A made-up tokenizer of Qwen2's kind and of any size, for servers of models with random weights.

Whoever loads it, a server or a client, with Qwen2's own class or from the file alone, gets the same tokens: bytes as Qwen2 has them, its
regular expression, and merges. Words have letters of five alphabets in turn, so that there is one way alone to merge them.
"""

import itertools
import json
import os
import string
from collections.abc import Iterator

ALPHABETS = [string.ascii_letters[i : i + 10] for i in range(0, 50, 10)]
SPACE = "Ġ"  # as byte-level tokenizers write it
END = "<|endoftext|>"
PATTERN = (  # transformers' models/qwen2/tokenization_qwen2.py
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: str, vocab_size: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json: 256 bytes, words and their beginnings, and one special token at the end."""
    merges = list(itertools.islice(pairs(), vocab_size - 257))
    tokens = [*byte_letters(), *(a + b for a, b in merges), END]
    if len(tokens) != vocab_size:
        raise ValueError(f"there are tokenizers of 257 to {len(tokens)} tokens, not of {vocab_size}")
    end = {"id": vocab_size - 1, "content": END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
        "byte_fallback": False, "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": level, "decoder": level, "model": model,
    }  # fmt: skip
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(tokenizer, file, ensure_ascii=False)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 32_768, "eos_token": END, "pad_token": END}, file)  # fmt: skip


def pairs() -> Iterator[tuple[str, str]]:
    """What is merged, in order: words letter by letter, then spaces with whole words."""
    words = list(ALPHABETS[0])
    for alphabet in ALPHABETS[1:]:
        longer = [(word, letter) for word in words for letter in alphabet]
        yield from longer
        words = [a + b for a, b in longer]
    yield from ((SPACE, word) for word in words)


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in GPT-2's order: printable ones for themselves, the others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
