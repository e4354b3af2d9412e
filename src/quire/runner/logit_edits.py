"""What params say of single tokens: allowed_token_ids, bad words, min_tokens and logit_bias, and the three penalties."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import Rows, SequenceTable

NEG_INF = float("-inf")


def apply_edits(logits: Tensor, rows: Rows, table: SequenceTable, sampling: SamplingTable) -> None:
    """Changes logits [n, V] of sequences `rows` [n] in place: allowed ids, bad words, min_tokens, then logit_bias."""
    vocab_size = logits.shape[1]
    forbidden = _Cells(vocab_size)
    biased = _Cells(vocab_size)
    for i in np.flatnonzero(sampling.edits[rows]).tolist():
        row = int(rows[i])
        sequence = table.entries[row]
        params = sequence.params
        if params.allowed_token_ids:
            _keep_only(logits[i], params.allowed_token_ids)
        forbidden.add(i, _ends_of_bad_words(sequence.bad_words_token_ids, table, row))
        if table.num_tokens[row] - table.num_prompt[row] < params.min_tokens:
            forbidden.add(i, (*sequence.eos_token_ids, *(params.stop_token_ids or ())))
        if params.logit_bias:
            biased.add(i, params.logit_bias.keys(), params.logit_bias.values())
    if forbidden.tokens:
        logits[forbidden.index(logits.device)] = NEG_INF
    if biased.tokens:
        values = torch.tensor(biased.values, dtype=logits.dtype, device=logits.device)
        logits.index_put_(biased.index(logits.device), values, accumulate=True)


def apply_penalties(logits: Tensor, rows: Rows, table: SequenceTable, sampling: SamplingTable) -> Tensor:
    """Logits [n, V] of sequences `rows` [n] with repetition, frequency and presence penalties.

    Repetition counts prompt and generated tokens: positive logits are divided by it, negative ones multiplied. Frequency (times the
    count) and presence (once) are subtracted for generated tokens.
    """
    device = logits.device
    length = int(table.num_tokens[rows].max())
    tokens = torch.from_numpy(table.token_ids[rows, :length]).to(device).long()
    place = np.arange(length)
    known = place < table.num_tokens[rows, None]
    generated = known & (place >= table.num_prompt[rows, None])
    seen, counts = _count(tokens, known, logits), _count(tokens, generated, logits)
    controls = np.stack((sampling.repetition[rows], sampling.frequency[rows], sampling.presence[rows]))
    repetition, frequency, presence = torch.from_numpy(controls).to(device).float().unsqueeze(2)
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen > 0, repeated, logits)
    penalised: Tensor = logits - frequency * counts - presence * (counts > 0)
    return penalised


def _count(tokens: Tensor, counted: NDArray[np.bool_], logits: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs in a row of `tokens` [n, L], among those counted: [n, V] int32."""
    ones = torch.from_numpy(counted).to(logits.device).int()
    return torch.zeros(logits.shape, dtype=torch.int32, device=logits.device).scatter_add_(1, tokens, ones)


def _keep_only(row: Tensor, token_ids: Sequence[int]) -> None:
    inside = [t for t in token_ids if 0 <= t < row.shape[0]]
    index = torch.tensor(inside, dtype=torch.int64, device=row.device)
    kept = row[index]
    row.fill_(NEG_INF)
    row[index] = kept


def _ends_of_bad_words(words: tuple[tuple[int, ...], ...], table: SequenceTable, row: int) -> list[int]:
    """Last tokens of the bad words whose other tokens the sequence has just generated."""
    count, num_prompt = int(table.num_tokens[row]), int(table.num_prompt[row])
    longest = max((len(word) for word in words), default=1) - 1
    tail = table.token_ids[row, max(num_prompt, count - longest) : count].tolist()
    return [word[-1] for word in words if list(word[:-1]) == tail[len(tail) - len(word) + 1 :]]


class _Cells:
    """Cells (row, token) of the logits, collected on the host and sent to the device at once."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.values: list[float] = []

    def add(self, row: int, tokens: Iterable[int], values: Iterable[float] | None = None) -> None:
        """Tokens outside the vocabulary have no cell: they can never be chosen anyway."""
        for token, value in zip(tokens, values, strict=True) if values is not None else ((t, 0.0) for t in tokens):
            if 0 <= token < self.vocab_size:
                self.rows.append(row)
                self.tokens.append(token)
                self.values.append(value)

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index tensors of the cells."""
        pairs = torch.tensor([self.rows, self.tokens], dtype=torch.int64, device=device)
        return pairs[0], pairs[1]
