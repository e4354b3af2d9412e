"""Draws a token from each row of logits, exactly the same on any device and beside any other rows.

Probabilities become whole numbers, kept in float64 and small enough that every sum of them is exact: sums then do not depend on the
order they are taken in, and nothing after the exponential can round differently. A token is drawn by inverse CDF from one uniform
number a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.draw_tokens import weight_of_likeliest

# top_k and top_p are looked for among so many of the most likely tokens before the whole row is sorted.
HEADS = (256, 4096)


@dataclass(frozen=True)
class Controls:
    """How to draw; each but `filtered` [n] float64 on the logits' device.

    filtered     on the host: whether any row has top_k, top_p or min_p
    temperature  > 0
    top_k        0 = all; top_p 1 = all; min_p 0 = all
    uniform      in [0, 1)
    """

    filtered: bool
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class Rows:
    """What decides the threshold of n rows besides their largest weights; each but `size` [n].

    size        weights in a row
    total       their sum
    min_weight  least weight that min_p keeps
    """

    size: int
    total: Tensor
    min_weight: Tensor
    top_k: Tensor
    top_p: Tensor


def draw(logits: Tensor, controls: Controls) -> Tensor:
    """Token ids [n] int64 drawn from softmax(logits / temperature) [n, V] fp32, after min_p, top_k and top_p in that order.

    -inf forbids a token; a row without a finite value, or with NaN, gets a meaningless id and disturbs no other. Tokens as likely as
    the last one that top_k or top_p keeps are kept too. Tokens less likely than 2^-53 · V of the first are never drawn.
    Workspace: 28 bytes a logit.
    """
    scaled = logits / controls.temperature.float().unsqueeze(1)
    scaled -= scaled.amax(-1, keepdim=True)
    one = weight_of_likeliest(logits.shape[1])
    weights = scaled.double().exp_().mul_(one).round_()
    if controls.filtered:
        weights.masked_fill_(weights < _threshold(weights, controls, one).unsqueeze(1), 0)
    cumulative = weights.cumsum_(-1)
    total = cumulative[:, -1]
    target = torch.minimum((controls.uniform * total).floor(), total - 1)
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def _threshold(weights: Tensor, controls: Controls, one: float) -> Tensor:
    """Least weight that min_p, top_k and top_p keep, a row [n].

    Only the largest weights are sorted, and more of them for the rows where those do not tell; the answer is the same either way.
    """
    size = weights.shape[1]
    threshold = (controls.min_p * one).ceil()
    top_k = torch.where(controls.top_k == 0, size, controls.top_k.clamp(max=size)).long()
    pending = ((top_k < size) | (controls.top_p < 1.0)).nonzero().squeeze(1)
    for length in (*HEADS, size):
        if len(pending):
            part = weights if len(pending) == len(weights) else weights[pending]
            rows = Rows(size, part.sum(-1), threshold[pending], top_k[pending], controls.top_p[pending])
            found, told = _threshold_in(part.topk(min(length, size)).values, rows)
            threshold[pending[told]] = found[told]
            pending = pending[~told]
    return threshold


def _threshold_in(head: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The threshold [n], and whether `head` [n, h], the largest weights in falling order, is enough of the row to tell."""
    length = head.shape[1]
    cumulative = head.cumsum(-1)
    kth = _at(head, rows.top_k.clamp(max=length) - 1).where(rows.top_k < rows.size, 0)
    least = torch.maximum(kth, rows.min_weight)
    kept = (head >= least.unsqueeze(1)).sum(-1)
    mass = _at(cumulative, (kept - 1).clamp(min=0)).where(least > 0, rows.total)
    needed = torch.minimum((rows.top_p * mass).ceil(), mass)
    last = torch.searchsorted(cumulative, needed.unsqueeze(1)).squeeze(1)
    by_p = _at(head, last.clamp(max=length - 1))  # clamps: rows of NaN hold garbage, and must not stop the others
    enough_for_k = (rows.top_k <= length) | (rows.top_k >= rows.size)
    enough_for_p = (last < length) & ((kept < length) | (least == 0) | (length == rows.size))
    threshold = torch.maximum(least, by_p.where(rows.top_p < 1.0, 0))
    return threshold, enough_for_k & (enough_for_p | (rows.top_p >= 1.0))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[i, index[i]] of each row i."""
    return values.gather(1, index.unsqueeze(1)).squeeze(1)
