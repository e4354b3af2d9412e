"""Step: a step while the scheduler puts it together."""

from dataclasses import dataclass, field

from quire.core.batch import NewSequence, ScheduledSequence


@dataclass
class Step:
    """rows: one a sequence, in batch order; budget: tokens not yet given out; num_tokens: tokens given."""

    budget: int
    rows: dict[int, ScheduledSequence] = field(default_factory=dict)
    added: list[NewSequence] = field(default_factory=list)
    preempted: bool = False
    num_tokens: int = 0

    def give(self, row: ScheduledSequence) -> None:
        """A row computes tokens."""
        self.rows[row.seq_id] = row
        self.budget -= row.num_new_tokens
        self.num_tokens += row.num_new_tokens

    def take_back(self, seq_id: int) -> None:
        """A sequence does not take part after all."""
        row = self.rows.pop(seq_id, None)
        if row is not None:
            self.budget += row.num_new_tokens
            self.num_tokens -= row.num_new_tokens
