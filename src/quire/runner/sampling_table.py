"""SamplingTable: each sequence's sampling parameters as arrays, in the rows of the SequenceTable."""

import numpy as np
from numpy.typing import NDArray

from quire.core.batch import NewSequence
from quire.runner.sequence_table import Rows

NO_LOGPROBS = -2  # in num_logprobs; -1 means the whole vocabulary


class SamplingTable:
    """Parameters of R rows: all arrays [R].

    edits         whether the row has allowed_token_ids, bad words, min_tokens, logit_bias, a grammar or a budget for thinking
    num_logprobs  top log-probabilities a token, -1 = all, NO_LOGPROBS = none
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.temperature = np.zeros(max_num_seqs)
        self.top_p = np.ones(max_num_seqs)
        self.top_k = np.zeros(max_num_seqs)
        self.min_p = np.zeros(max_num_seqs)
        self.repetition = np.ones(max_num_seqs)
        self.frequency = np.zeros(max_num_seqs)
        self.presence = np.zeros(max_num_seqs)
        self.seed = np.zeros(max_num_seqs, dtype=np.uint64)
        self.index = np.zeros(max_num_seqs, dtype=np.int64)
        self.edits = np.zeros(max_num_seqs, dtype=bool)
        self.num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)
        self.num_prompt_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)

    def set(self, row: int, sequence: NewSequence) -> None:
        """Overwrites every field of `row`."""
        p = sequence.params
        self.temperature[row] = p.temperature
        self.top_p[row], self.top_k[row], self.min_p[row] = p.top_p, p.top_k, p.min_p
        self.repetition[row] = p.repetition_penalty
        self.frequency[row], self.presence[row] = p.frequency_penalty, p.presence_penalty
        self.seed[row], self.index[row] = p.seed or 0, sequence.index
        single_tokens = p.allowed_token_ids or p.logit_bias or p.min_tokens or sequence.bad_words_token_ids
        self.edits[row] = bool(single_tokens or sequence.grammar or sequence.think_token_ids)
        self.num_logprobs[row] = NO_LOGPROBS if p.logprobs is None else p.logprobs
        wanted = p.prompt_logprobs if sequence.index == 0 else None
        self.num_prompt_logprobs[row] = NO_LOGPROBS if wanted is None else wanted

    def controls(self, rows: Rows) -> NDArray[np.float64]:
        """[7, n] as ops.sample_tokens has them."""
        return np.stack(
            [
                self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows],
                self.repetition[rows], self.frequency[rows], self.presence[rows],
            ]
        )  # fmt: skip

    def penalised(self, rows: Rows) -> NDArray[np.bool_]:
        """[n] bool: rows with any of the three penalties."""
        found: NDArray[np.bool_] = self.repetition[rows] != 1.0
        found |= (self.frequency[rows] != 0.0) | (self.presence[rows] != 0.0)
        return found
