"""Flight: steps that the device has been asked for, and whose tokens nobody has waited for yet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch
from quire.ops.sample_tokens import Scores
from quire.platform.base import Mark
from quire.runner.sequence_table import Rows

BATCHES_UNDER_WAY = 2
# In place of a token:
NOT_FINITE = -1  # the row's logits, or hidden states, are not all finite
ALL_FORBIDDEN = -2
NO_TOKEN = -3  # the row does not sample in this step, or rested


@dataclass(frozen=True)
class Flight:
    """Steps of one batch.

    rows    [B] of the table, in batch order
    lives   [B] what table.lives was for them
    firsts  [B] the first position that each computes
    num_logprobs  [B] as in the SamplingTable
    tokens  [K, R] int32 on the host, the first B columns in use; complete once `done` is reached
    scores  as ops.sample_tokens gives them, likewise on the host; None = nobody asked for log-probabilities
    """

    batch: Batch
    rows: Rows
    lives: NDArray[np.int64]
    firsts: NDArray[np.int64]
    num_logprobs: NDArray[np.int64]
    tokens: Tensor
    scores: Scores | None
    done: Mark

    def wait(self) -> NDArray[np.int32]:
        """The tokens [K, B]; negative where there is none. Good until the next batch but one is asked for."""
        self.done.wait()
        found: NDArray[np.int32] = self.tokens.numpy()[:, : len(self.rows)]
        return found
