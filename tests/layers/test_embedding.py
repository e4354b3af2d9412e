"""Heads with a weight of their own and without."""

import torch

from quire.layers.build import Build
from quire.layers.embedding import Embedding, LmHead


def test_a_tied_head_uses_the_embedding(build: Build) -> None:
    embedding, head = Embedding(build, 20, 8), LmHead(build, 20, 8, tied=True)
    embedding.weight.data.normal_()
    hidden = torch.randn(3, 8)
    assert list(head.parameters()) == []
    torch.testing.assert_close(head(hidden, embedding.weight), hidden @ embedding.weight.T)


def test_an_untied_head_uses_its_own(build: Build) -> None:
    head = LmHead(build, 20, 8, tied=False)
    head.weight.data.normal_()
    hidden = torch.randn(3, 8)
    logits = head(hidden, torch.full((20, 8), float("nan")))
    torch.testing.assert_close(logits, hidden @ head.weight.T)
    assert logits.dtype == torch.float32
