"""Executor: runs a batch, and keeps a failure from reaching anyone but its cause.

When a step raises, nothing says which of its rows did it. Each row can be computed again exactly (its tokens are known, its keys
and values are rewritten in the same slots, random draws depend on seed and position alone), so the batch is halved and each half
tried again, down to single rows. A row that fails alone is the culprit: it gets an error, the others get their tokens. The same
halving helps when a step ran out of memory. If the device itself is lost, no retry can help: that is EngineUnavailable.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from quire.core.batch import Batch, NewSequence, ScheduledSequence, SequenceResult, StepResult
from quire.errors import EngineUnavailable
from quire.platform import Platform

logger = logging.getLogger(__name__)
MAX_LOST_STEPS = 3  # steps in a row in which every row failed alone: then it is not the rows
FAILED = "this request made the model fail; other requests were not touched"
Row = tuple[ScheduledSequence, NewSequence]


class Runner(Protocol):
    """What is needed of quire.runner.ModelRunner."""

    def execute(self, batch: Batch) -> StepResult:
        """Computes one step."""


class Executor:
    """rows_of  gives, for the batch under way, what a runner must know of each row to start it afresh."""

    def __init__(self, runner: Runner, platform: Platform, rows_of: Callable[[Batch], list[NewSequence]]) -> None:
        self._runner = runner
        self._platform = platform
        self._rows_of = rows_of
        self._num_lost_steps = 0

    def execute(self, batch: Batch) -> StepResult:
        """The runner's result; after a failure, errors for the rows that caused it and results for the others.

        Raises EngineUnavailable when the device is lost.
        """
        try:
            return self._runner.execute(batch)
        except Exception as error:
            logger.exception("a step of %d sequences failed; looking for the one that caused it", len(batch.scheduled))
            self.check_device(error)
            return self._execute_apart(batch)

    def _execute_apart(self, batch: Batch) -> StepResult:
        scheduled = [ScheduledSequence(row.seq_id, row.num_new_tokens) for row in batch.scheduled]
        rows = list(zip(scheduled, self._rows_of(batch), strict=True))
        middle = (len(rows) + 1) // 2  # a single row is simply tried again
        results = self._try(rows[:middle], batch.removed) + self._try(rows[middle:], [])
        failed = [result.seq_id for result in results if result.error is not None]
        self._count_lost_steps(len(failed) == len(rows) > 1)
        logger.warning("of %d sequences %d failed; the others go on", len(rows), len(failed))
        return StepResult(results)

    def _try(self, rows: list[Row], removed: list[int]) -> list[SequenceResult]:
        """Results of some rows: in one go, else in halves, else an error. Rows are told to the runner as if they were new."""
        if not rows:
            return []
        stale = [*removed, *(row.seq_id for row, _ in rows)]
        try:
            return self._runner.execute(Batch([row for row, _ in rows], [new for _, new in rows], stale)).results
        except Exception as error:
            self.check_device(error)
            if len(rows) == 1:
                logger.error("sequence %d fails alone: %s", rows[0][0].seq_id, error)
                return [SequenceResult(rows[0][0].seq_id, [], error=FAILED)]
        middle = len(rows) // 2
        return self._try(rows[:middle], removed) + self._try(rows[middle:], [])

    def check_device(self, cause: Exception) -> None:
        """Asks the device whether it is still there. An error that sticks to it (CUDA's illegal access) shows here again."""
        try:
            self._platform.synchronize()
            self._platform.empty_cache()
        except Exception:
            raise EngineUnavailable(f"the device is lost: {cause}") from cause

    def _count_lost_steps(self, lost: bool) -> None:
        self._num_lost_steps = self._num_lost_steps + 1 if lost else 0
        if self._num_lost_steps >= MAX_LOST_STEPS:
            raise EngineUnavailable(f"{MAX_LOST_STEPS} steps in a row failed for every sequence")
