"""draw_tokens: a token from each row of logits, drawn by inverse CDF or simply the likeliest."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn

EXACT_BITS = 52  # whole numbers below 2^53 are exact in float64


def draw_tokens(logits: Tensor, temperatures: Tensor, uniforms: Tensor, step: Tensor) -> Tensor:
    """Token ids drawn from softmax(logits / temperature); the likeliest, and the first of several, where the temperature is 0.

    logits        [S, V]   last dimension contiguous
    temperatures  [S] float64, at least 0
    uniforms      [K, S] float64 in [0, 1); row step[0] is used
    step          [1] int64
    Returns [S] int64; -1 where a row of logits holds NaN or an infinity.

    Probabilities become whole numbers in float64, small enough that sums of them are exact in any order (quire.runner.draw).
    """
    drawing = temperatures > 0
    scaled = logits.float() / temperatures.where(drawing, 1.0).float().unsqueeze(1)
    scaled = scaled - scaled.amax(-1, keepdim=True)
    cumulative = (scaled.double().exp() * weight_of_likeliest(logits.shape[1])).round().cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum((uniforms.index_select(0, step).squeeze(0) * total).floor(), total - 1)
    drawn = torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
    ids = torch.where(drawing, drawn, logits.argmax(-1))
    return ids.masked_fill(~logits.isfinite().all(-1), -1)


def weight_of_likeliest(vocab_size: int) -> float:
    """What the probability of the likeliest token becomes: the largest power of two whose sums stay exact."""
    return float(2.0 ** (EXACT_BITS - vocab_size.bit_length()))


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, vocab, steps in ((1, 10, 1), (6, 5000, 3), (9, 9000, 2)):
        logits = 3 * randn(generator, rows, vocab, dtype=dtype, device=device)
        temperatures = torch.tensor([0.7, 0.0, 1.0, 1.7, 0.01, 1.0, 0.0, 0.3, 2.0], dtype=torch.float64)[:rows]
        if rows > 6:
            logits[5, vocab // 2] = float("nan")
            logits[6, vocab - 1] = float("inf")
        yield {
            "logits": logits,
            "temperatures": temperatures.to(device),
            "uniforms": torch.rand(steps, rows, generator=generator, dtype=torch.float64).to(device),
            "step": torch.full((1,), steps - 1, dtype=torch.int64, device=device),
        }


SPEC = OpSpec("draw_tokens", draw_tokens, FLOAT_TOLERANCES, make_inputs)
