"""Grammars: where each constrained sequence stands in its grammar, and which tokens that allows next.

State follows from a sequence's generated tokens alone and is made when first needed, so a sequence that was preempted, replayed or
computed again after a failed step is where it was.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch
from quire.runner.sequence_table import Rows, SequenceTable
from quire.text.closing import Closer
from quire.text.grammar import GrammarCompiler
from quire.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # imported with the first grammar (text.grammar says why)
    from llguidance import LLMatcher

BITS = 32
# So many tokens before an output would have to be closed, a look is taken at where each likely token leads. More for a large grammar,
# whose parts take more tokens once they are begun; not more than this, for each look costs a millisecond.
CLOSING_MARGIN = 32
MAX_CLOSING_MARGIN = 192
CHARS_A_TOKEN = 4
NUM_CANDIDATES = 4
LONG_CLOSING = 512  # outputs that take more than this at the least: likely tokens are looked at within the margin alone


class Grammars:
    """Matchers of the constrained sequences, by seq_id.

    tokenizer_dir  folder of the tokenizer, read when the first constrained sequence samples
    """

    def __init__(self, tokenizer_dir: str, vocab_size: int) -> None:
        self._tokenizer_dir = Path(tokenizer_dir)
        self._vocab_size = vocab_size
        self._matchers: dict[int, _Place] = {}
        self._compiler = functools.lru_cache(maxsize=2)(self._make_compiler)

    def update(self, batch: Batch) -> None:
        """Forgets where removed and added sequences stood."""
        for seq_id in batch.removed:
            self._matchers.pop(seq_id, None)
        for sequence in batch.added:
            self._matchers.pop(sequence.seq_id, None)

    def constrain(self, logits: Tensor, rows: Rows, table: SequenceTable) -> None:
        """Makes the tokens that a row's grammar does not allow impossible, in place. logits [n, V] of sequences `rows` [n].

        A row whose grammar cannot go on (it became too complex) is left no token at all.
        """
        places = [i for i, row in enumerate(rows.tolist()) if table.entries[row].grammar]
        if not places:
            return
        words = np.stack([self._allowed(int(rows[i]), table) for i in places])
        allowed = unpacked(torch.from_numpy(words).to(logits.device), logits.shape[1])
        index = torch.tensor(places, device=logits.device)
        logits[index] = logits[index].masked_fill(~allowed, float("-inf"))
        for i in places:
            self._keep_closable(logits[i], int(rows[i]), table)

    def may_follow(self, row: int, token_id: int, table: SequenceTable) -> bool:
        """Whether the grammar of a row that was constrained in this step, if it has one, allows a token next."""
        if not table.entries[row].grammar:
            return True
        word = int(self._allowed(row, table)[token_id // BITS])
        return bool(word >> token_id % BITS & 1)

    def _allowed(self, row: int, table: SequenceTable) -> NDArray[np.int32]:
        """[W] words, bit t % 32 of word t / 32 = token t is allowed."""
        sequence = table.entries[row]
        compiler = self._compiler(sequence.eos_token_ids)
        place = self._matchers.get(sequence.seq_id)
        if place is None:
            place = _Place(compiler.matcher(sequence.grammar), int(table.num_prompt[row]))
            self._matchers[sequence.seq_id] = place
        words = np.zeros(-(-compiler.vocab_size // BITS), dtype=np.int32)
        if place.advance(table.token_ids[row, place.num_seen : table.num_tokens[row]].tolist()):
            words[:] = np.frombuffer(place.matcher.compute_bitmask(), dtype=np.int32)[
                : len(words)
            ]  # it has one to spare
        return words

    def _keep_closable(self, logits: Tensor, row: int, table: SequenceTable) -> None:
        """Near the end of the budget of a row, makes all tokens of its logits [V] impossible but likely ones that leave enough of it
        to complete the output, and the first one on the way there. Nothing if it cannot be completed any more."""
        sequence = table.entries[row]
        compiler, place = self._compiler(sequence.eos_token_ids), self._matchers[sequence.seq_id]
        matcher = place.matcher
        needed = compiler.num_closing(sequence.grammar)
        budget = sequence.params.max_tokens or 0
        if needed is None or needed > budget:
            return
        budget -= needed < budget  # room for the token that ends it, if there is any
        num_left = budget - int(table.num_tokens[row] - table.num_prompt[row])
        margin = min(MAX_CLOSING_MARGIN, CLOSING_MARGIN + len(sequence.grammar) // CHARS_A_TOKEN)
        if num_left > needed + margin:
            return
        way = compiler.closer.way(matcher, num_left, thorough=not place.is_lost)
        place.is_lost = way is None
        if way is None or (needed > LONG_CLOSING and num_left - len(way) > margin):
            return
        likely = logits.topk(min(NUM_CANDIDATES, logits.shape[0])).indices.tolist()
        kept = [t for t in likely if t in sequence.eos_token_ids or leads_on(compiler.closer, matcher, t, num_left - 1)]
        index = torch.tensor([*kept, *(way[:1] or sequence.eos_token_ids)], device=logits.device)
        values = logits[index]
        logits.fill_(float("-inf"))
        logits[index] = values

    def _make_compiler(self, eos_token_ids: tuple[int, ...]) -> GrammarCompiler:
        return GrammarCompiler(Tokenizer.from_dir(self._tokenizer_dir), self._vocab_size, eos_token_ids)


class _Place:
    """A matcher and how many tokens of its sequence are behind it. is_lost: no way to the end was found, the last time."""

    def __init__(self, matcher: "LLMatcher", num_seen: int) -> None:
        self.matcher = matcher
        self.num_seen = num_seen
        self.is_lost = False

    def advance(self, token_ids: list[int]) -> bool:
        """Takes in the tokens since the last time; False when the grammar cannot go on."""
        self.num_seen += len(token_ids)
        return bool(self.matcher.consume_tokens(token_ids)) and not self.matcher.is_error()


def leads_on(closer: Closer, matcher: "LLMatcher", token_id: int, num_left: int) -> bool:
    """Whether an output can be completed within `num_left` tokens after this one."""
    ahead = matcher.deep_copy()
    return bool(ahead.consume_token(token_id)) and closer.way(ahead, num_left, thorough=False) is not None


def unpacked(words: Tensor, count: int) -> Tensor:
    """Bits of int32 words [n, W] as booleans [n, count], lowest bit first; bits beyond the words are false."""
    shifts = torch.arange(BITS, dtype=torch.int32, device=words.device)
    bits = ((words.unsqueeze(-1) >> shifts) & 1).flatten(1).bool()
    missing = max(0, count - bits.shape[1])
    return torch.nn.functional.pad(bits, (0, missing))[:, :count]
