"""Budgets for thinking: reasoning that has taken its tokens is ended by its own mark, which no other token can then be chosen over.

Whether it is time follows from a sequence's tokens alone, so a preempted or replayed sequence ends where it would have.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quire.runner.sequence_table import Rows, SequenceTable

MAX_BEFORE = 4  # tokens of whitespace that may stand before the mark which begins


def end_thinking(
    logits: Tensor, rows: Rows, table: SequenceTable, may_follow: Callable[[int, int, SequenceTable], bool]
) -> None:
    """Leaves only the end mark possible in logits [n, V], in place, of those sequences `rows` [n] whose budget is spent.

    may_follow  whether a row's grammar lets a token come next: within a character it does not let the mark, which waits for its end
    """
    for place, row in enumerate(rows.tolist()):
        marks = table.entries[row].think_token_ids
        if marks and is_spent(row, table) and may_follow(row, marks[1], table):
            end = marks[1]
            value = logits[place, end].clone()
            logits[place] = float("-inf")
            # The mark may have been forbidden by other wishes; the budget comes first.
            logits[place, end] = torch.nan_to_num(value, neginf=0.0)


def is_spent(row: int, table: SequenceTable) -> bool:
    """Whether the budget has been thought, and the end mark has not come."""
    sequence = table.entries[row]
    begin, end = sequence.think_token_ids
    first, last = int(table.num_prompt[row]), int(table.num_tokens[row])
    if begin >= 0:
        marks = np.flatnonzero(table.token_ids[row, first : min(last, first + MAX_BEFORE)] == begin)
        if not len(marks):
            return False
        first += int(marks[0]) + 1
    if last - first < (sequence.params.thinking_token_budget or 0):
        return False
    return not (table.token_ids[row, first:last] == end).any()
