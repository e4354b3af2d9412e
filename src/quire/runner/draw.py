"""Draws a token from each row of logits, exactly the same on any device and beside any other rows.

Probabilities become integers (fixed point, the row's most likely token = ONE). Sums of integers do not depend on the order they are
taken in, so nothing after the exponential can round differently. A token draws by inverse CDF from one uniform number a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ONE = (
    2**40
)  # a vocabulary of 2^22 such weights still sums below 2^63; less likely tokens than 2^-41 of the first are never drawn
HEAD = 1024  # top-p is looked for among this many most likely tokens before the whole row is sorted


@dataclass(frozen=True)
class Controls:
    """How to draw; each [n] float64 on the logits' device.

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


def draw(logits: Tensor, controls: Controls) -> Tensor:
    """Token ids [n] int64 drawn from softmax(logits / temperature) [n, V] fp32, after min_p, top_k and top_p in that order.

    Each row holds a finite value; -inf forbids a token. Tokens as likely as the last one that top_k or top_p keeps are kept too.
    Workspace: 32 bytes a logit.
    """
    scaled = logits / controls.temperature.float().unsqueeze(1)
    peak = scaled.amax(-1, keepdim=True)
    weights = (scaled - peak).double().exp_().mul_(ONE).round_().long()
    if controls.filtered:
        keep_from = _min_p_threshold(controls)
        keep_from = torch.maximum(
            keep_from, _top_threshold(weights.where(weights >= keep_from.unsqueeze(1), 0), controls)
        )
        weights = weights.where(weights >= keep_from.unsqueeze(1), 0)
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum((controls.uniform * total).long(), total - 1)
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def _min_p_threshold(controls: Controls) -> Tensor:
    return (controls.min_p * ONE).ceil().long()


def _top_threshold(weights: Tensor, controls: Controls) -> Tensor:
    """Least weight that top_k and top_p keep, a row [n] int64."""
    size = weights.shape[1]
    top_k = torch.where(controls.top_k == 0, size, controls.top_k.clamp(max=size)).long()
    head = weights.topk(min(HEAD, size)).values
    threshold, found = _threshold_in(head, weights, top_k, controls.top_p)
    missed = ~found
    if head.shape[1] < size and bool(missed.any()):
        whole = weights[missed].sort(dim=-1, descending=True).values
        threshold[missed] = _threshold_in(whole, weights[missed], top_k[missed], controls.top_p[missed])[0]
    return threshold


def _threshold_in(head: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold if it lies among `head` [n, h], the largest weights in falling order, and whether it does."""
    length, size = head.shape[1], weights.shape[1]
    kth = head.gather(1, (top_k.clamp(max=length) - 1).unsqueeze(1)).squeeze(1)
    by_k = kth.where(top_k < size, 0)
    mass = weights.where(weights >= by_k.unsqueeze(1), 0).sum(-1)
    needed = torch.minimum((top_p * mass).ceil().long(), mass)
    first = torch.searchsorted(head.cumsum(-1), needed.unsqueeze(1)).squeeze(1)
    by_p = head.gather(1, first.clamp(max=length - 1).unsqueeze(1)).squeeze(1).where(top_p < 1.0, 0)
    found = ((top_k <= length) | (top_k >= size)) & ((first < length) | (top_p >= 1.0))
    return torch.maximum(by_k, by_p), found
