"""LogprobStore: log-probabilities of one sequence as plain arrays, for one object a token keeps the garbage collector busy for as long as
the model computes."""

from array import array

from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.outputs import LazyLogprobs, Logprob
from quire.text.tokenizer import Tokenizer


class LogprobStore:
    """Entries of one sequence, all with equally many tokens; they are only ever appended."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._token_ids = array("i")
        self._logprobs = array("f")
        self._ranks = array("i")
        self._total, self._num_totalled = 0.0, 0

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def total(self) -> float:
        """Sum of the log-probabilities of the tokens that were chosen."""
        if self._num_totalled < len(self):
            width = len(self._token_ids) // len(self)
            for logprob in self._logprobs[self._num_totalled * width :: width]:  # sum() rounds by how many there are
                self._total += logprob
            self._num_totalled = len(self)
        return self._total

    def extend(self, entries: LogprobColumns) -> None:
        """Adds the entries of new tokens."""
        self._token_ids.frombytes(entries.token_ids)
        self._logprobs.frombytes(entries.logprobs)
        self._ranks.frombytes(entries.ranks)

    def since(self, first: int) -> LazyLogprobs:
        """The entries from number `first` on, as users see them; later ones are not in it."""
        return LazyLogprobs(self._shown, first, len(self))

    def _shown(self, index: int) -> dict[int, Logprob]:
        width = len(self._token_ids) // len(self._ranks)
        part = slice(index * width, (index + 1) * width)
        ids, logprobs = self._token_ids[part].tolist(), self._logprobs[part].tolist()
        return logprob_dict(TokenLogprobs(ids, logprobs, self._ranks[index]), self._tokenizer)


def logprob_dict(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """{token id: Logprob} of one position: the token that is there first, then the likeliest in falling order."""
    decoded = [tokenizer.token_text(token_id) if tokenizer else None for token_id in entry.token_ids]
    values: dict[int, Logprob] = {}
    for place, (token_id, logprob, text) in enumerate(zip(entry.token_ids, entry.logprobs, decoded, strict=True)):
        values.setdefault(token_id, Logprob(logprob, place or entry.rank, text))
    return values
