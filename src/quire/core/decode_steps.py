"""Several decoding steps in a row, which a runner does without a word from the host, and such steps after those under way.

Blocks for all of them are taken beforehand, so nothing can go wrong on the way but that a sequence ends: then its last steps were in
vain, and what they wrote lies past its end, where nobody reads.
"""

from quire.core.batch import Batch, ScheduledSequence
from quire.core.config import SchedulerConfig
from quire.core.kv_manager import KVManager
from quire.core.sequence import Sequence


def lengthen(rows: dict[int, ScheduledSequence], running: dict[int, Sequence], kv: KVManager, max_steps: int) -> int:
    """Makes several decoding steps of one that computes one token of each of its sequences.

    rows  of that step, by seq_id; changed in place
    Returns how many steps, 1 if blocks lack for more; 0 if a sequence does not decode, and nothing is done then.
    """
    sequences = [running[seq_id] for seq_id in rows]
    if not all(s.num_computed_tokens >= len(s.token_ids) for s in sequences):
        return 0
    more = [(s, min(max_steps - 1, s.num_left)) for s in sequences]  # beside the one that the step has given it
    new_block_ids = _take(more, kv)
    if new_block_ids is None:
        return 1
    for (sequence, count), block_ids in zip(more, new_block_ids):
        row = rows[sequence.seq_id]
        rows[sequence.seq_id] = ScheduledSequence(row.seq_id, 1 + count, row.new_block_ids + block_ids)
    return 1 + max(count for _, count in more)


def follow(batch: Batch, running: dict[int, Sequence], kv: KVManager, config: SchedulerConfig) -> Batch | None:
    """Decoding steps after those of `batch`, with the same rows, of which those that have ended rest. None if blocks lack, or if the
    others alone would make a batch that costs less."""
    sequences = [running.get(row.seq_id) for row in batch.scheduled]
    more = [(s, min(config.max_decode_steps, s.num_left)) for s in sequences if s is not None]
    num_live = sum(count > 0 for _, count in more)
    if not num_live or config.padded_rows(num_live) < config.padded_rows(len(sequences)):
        return None
    new_block_ids = _take(more, kv)
    if new_block_ids is None:
        return None
    rows = {s.seq_id: ScheduledSequence(s.seq_id, count, ids) for (s, count), ids in zip(more, new_block_ids)}
    scheduled = [rows.get(row.seq_id) or ScheduledSequence(row.seq_id, 0) for row in batch.scheduled]
    return Batch(scheduled, decode_steps=max(count for _, count in more), follows=True, unattended=True)


def _take(more: list[tuple[Sequence, int]], kv: KVManager) -> list[list[int]] | None:
    """Blocks for so many tokens more, which count as computed from now on. None if too few are free."""
    new_block_ids = kv.grow_all(more)
    if new_block_ids is not None:
        for sequence, count in more:
            sequence.num_computed_tokens += count
    return new_block_ids
