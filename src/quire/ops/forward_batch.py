"""ForwardBatch: one step as tensors, the only argument besides ids that a model's forward takes."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class ForwardBatch:
    """T tokens of B sequences, packed; M blocks a block-table row.

    input_ids        [T] int64
    positions        [T] int64, absolute position of each token in its sequence
    slot_mapping     [T] int64, where its keys and values go: block_id * block_size + offset; -1 = nowhere (padding)
    query_start_loc  [B+1] int32, tokens of sequence b are [query_start_loc[b], query_start_loc[b+1])
    seq_lens         [B] int32, tokens of each sequence, this step included; 0 = padding row
    block_tables     [B, M] int32, block ids in logical order; entries past the sequence's end are 0
    logits_indices   [S] int64, which rows of the hidden states need logits
    max_query_len, max_seq_len  upper bounds over the batch, for grid sizes; plain ints
    kv_caches        one [2, N, P, Hkv, D] tensor a layer: keys then values
    last_rows        [B] int64, the row of each sequence's last token (0 for padding), where hidden states of these alone are wanted, [B, H];
                     None = of all rows, [T, H]
    plans            what operators have worked out about this step, for their calls in later layers; a step done again begins without
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    logits_indices: Tensor
    max_query_len: int
    max_seq_len: int
    kv_caches: list[Tensor]
    last_rows: Tensor | None = None
    plans: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.seq_lens.shape[0]

    @property
    def only_decodes(self) -> bool:
        """Whether every sequence computes one token; padding rows count as sequences."""
        return self.max_query_len == 1 and self.num_tokens == self.num_sequences

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.input_ids.device

    def of_last_rows(self) -> "ForwardBatch":
        """The step without all queries but those of last_rows: one a sequence, with the same keys to look at."""
        if self.last_rows is None:
            return self
        return replace(
            self,
            input_ids=self.input_ids[self.last_rows],
            positions=self.positions[self.last_rows],
            slot_mapping=self.slot_mapping[self.last_rows],
            query_start_loc=torch.arange(self.num_sequences + 1, dtype=torch.int32, device=self.device),
            max_query_len=1,
            last_rows=None,
        )
