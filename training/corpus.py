"""Turns generated conversations and texts into rows of tokens, in parallel and always the same for a seed.

A row is packed with whole documents. `targets` marks the tokens that the loss counts: the assistant's words and the
token that ends its turn, or every token of a plain text. `documents` numbers the documents of a row, so that
attention stays inside each.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training import conversations, plain
from training.vocabulary import END_OF_TEXT, END_OF_TURN, MODEL_DIR, START

LONG_ROW_TOKENS = 1024
PLAIN_SHARE = 0.12
DOCUMENTS_A_ROUND = 512
NUM_OPEN_ROWS = 12
SHARD_TOKENS = 1 << 20


@dataclass(frozen=True)
class Rows:
    """Three arrays of shape [num_rows, row_tokens]: uint16 tokens, bool targets, uint8 documents (0 is padding)."""

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray

    @staticmethod
    def join(parts: list[Rows]) -> Rows:
        return Rows(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("tokens", "targets", "documents")))


class Encoder:
    """Documents to token ids. Segments are encoded apart: special tokens split the text in any case."""

    def __init__(self, folder: Path = MODEL_DIR) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end_of_text = self._id(END_OF_TEXT)
        self.end_of_turn = self._id(END_OF_TURN)
        self.newline = self.tokenizer.encode("\n").ids
        self.heads = {
            role: [self._id(START), *self.tokenizer.encode(f"{role}\n").ids] for role in ("system", "user", "assistant")
        }

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}; run python -m training.vocabulary")
        return found

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def document(self, parts: list[tuple[str, list[int]]]) -> tuple[list[int], list[bool]]:
        """Tokens and targets of one conversation, given (role, content tokens) of each message."""
        tokens: list[int] = []
        targets: list[bool] = []
        for role, content in parts:
            if role == "plain":
                return [*content, self.end_of_text], [True] * (len(content) + 1)
            head, is_answer = self.heads[role], role == "assistant"
            tokens += [*head, *content, self.end_of_turn, *self.newline]
            targets += [False] * len(head) + [is_answer] * (len(content) + 1) + [False] * len(self.newline)
        return tokens, targets


def write_document(rng: random.Random, max_turns: int) -> list[tuple[str, str]]:
    """One document as (role, text) pairs; a plain text has the single role "plain"."""
    if rng.random() < PLAIN_SHARE:
        return [("plain", plain.plain_text(rng))]
    said = conversations.conversation(rng, max_turns)
    messages = [("system", said.system)] if said.system else []
    for turn in said.turns:
        messages += [("user", turn.user), ("assistant", turn.answer)]
    return messages


class Packer:
    """Fills rows with whole documents: the fullest open row that has room, else a new one."""

    def __init__(self, num_rows: int, row_tokens: int) -> None:
        self.rows = Rows(*(np.zeros((num_rows, row_tokens), dtype) for dtype in (np.uint16, np.bool_, np.uint8)))
        self.used = [0] * num_rows
        self.num_documents = [0] * num_rows
        self.open: list[int] = []
        self.next_row = 0
        self.full = False

    def add(self, tokens: list[int], targets: list[bool]) -> None:
        """Places one document; one longer than a row is left out. `full` once no new row is left."""
        row_tokens = self.rows.tokens.shape[1]
        if self.full or len(tokens) > row_tokens:
            return
        fitting = [row for row in self.open if self.used[row] + len(tokens) <= row_tokens]
        row = max(fitting, key=lambda r: self.used[r]) if fitting else self._new_row()
        if row < 0:
            self.full = True
            return
        self.num_documents[row] += 1
        span = slice(self.used[row], self.used[row] + len(tokens))
        self.rows.tokens[row, span] = tokens
        self.rows.targets[row, span] = targets
        self.rows.documents[row, span] = self.num_documents[row]
        self.used[row] += len(tokens)

    def _new_row(self) -> int:
        if self.next_row >= len(self.used):
            return -1
        if len(self.open) == NUM_OPEN_ROWS:
            self.open.remove(max(self.open, key=lambda r: self.used[r]))
        self.open.append(self.next_row)
        self.next_row += 1
        return self.open[-1]


def make_shard(job: tuple[Path, int, int, int]) -> Rows:
    """Shard `index` of (tokenizer, seed, index, row_tokens): a million tokens. Long rows hold long conversations."""
    tokenizer, seed, index, row_tokens = job
    rng = random.Random(seed * 1_000_003 + index)
    max_turns = 24 if row_tokens >= LONG_ROW_TOKENS else 6
    encoder, packer = Encoder(tokenizer), Packer(SHARD_TOKENS // row_tokens, row_tokens)
    while not packer.full:
        documents = [write_document(rng, max_turns) for _ in range(DOCUMENTS_A_ROUND)]
        contents = iter(encoder.encode_all([text for parts in documents for _, text in parts]))
        for parts in documents:
            packer.add(*encoder.document([(role, next(contents)) for role, _ in parts]))
    return packer.rows


def make_rows(seed: int, num_shards: int, row_tokens: int, num_workers: int, tokenizer: Path = MODEL_DIR) -> Rows:
    """`num_shards` shards made by `num_workers` processes; the same rows whatever the number of processes."""
    jobs = [(tokenizer, seed + row_tokens, index, row_tokens) for index in range(num_shards)]
    if num_workers <= 1:
        return Rows.join([make_shard(job) for job in jobs])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        return Rows.join(list(pool.imap(make_shard, jobs)))
