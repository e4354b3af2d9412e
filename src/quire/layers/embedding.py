"""Token embedding, and the language-model head that may share its weight."""

import torch
from torch import Tensor, nn

from quire.layers.build import Build


class Embedding(nn.Module):
    """Rows of a table by id: ids [T] -> [T, size]."""

    def __init__(self, build: Build, num_rows: int, size: int) -> None:
        super().__init__()
        self.embedding = build.ops.embedding
        empty = torch.empty(num_rows, size, dtype=build.dtype, device=build.device)
        self.weight = nn.Parameter(empty, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids, self.weight)


class LmHead(nn.Module):
    """Hidden states to logits: [S, hidden] -> [S, vocab], in the dtype of the weight.

    A tied head has no weight of its own (and none in the checkpoint): the caller passes the embedding's.
    """

    def __init__(self, build: Build, vocab_size: int, hidden_size: int, tied: bool) -> None:
        super().__init__()
        self.ops = build.ops
        empty = None if tied else torch.empty(vocab_size, hidden_size, dtype=build.dtype, device=build.device)
        self.register_parameter("weight", None if empty is None else nn.Parameter(empty, requires_grad=False))

    def forward(self, hidden: Tensor, embedding_weight: Tensor) -> Tensor:
        return self.ops.linear(hidden, embedding_weight if self.weight is None else self.weight)

    def likeliest(self, hidden: Tensor, embedding_weight: Tensor) -> Tensor:
        """Hidden states to the likeliest token of each: [S, hidden] -> [S]."""
        return self.ops.linear_greedy(hidden, embedding_weight if self.weight is None else self.weight)
