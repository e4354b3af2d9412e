"""sample_tokens: a token from each row of logits with penalties and filters, and log-probabilities, without a word from the host."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn
from quire.ops.count_tokens import WORD_BITS, count_tokens
from quire.ops.draw_tokens import weight_of_likeliest

NUM_CONTROLS = 7
TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE = range(NUM_CONTROLS)
MAX_TOP = 32  # most likely tokens that can be asked for
Scores = tuple[Tensor, Tensor]


def sample_tokens(
    logits: Tensor,
    controls: Tensor,
    uniforms: Tensor,
    step: Tensor,
    seen: Tensor | None,
    counts: Tensor | None,
    rows: Tensor,
    weigh_all: bool,
    scores: Scores | None,
) -> Tensor:
    """Token ids drawn, after penalties, from softmax(logits / temperature) filtered by min_p, top_k and top_p in that order; the
    likeliest, and the first of several, where the temperature is 0. Token for token what quire.runner.draw gives.

    logits     [S, V]   last dimension contiguous
    controls   [7, S] float64: temperature, top_k (0 = all), top_p (1 = all), min_p (0 = all), repetition (1 = none), frequency,
               presence
    uniforms   [K, S] float64 in [0, 1); row step[0] is used
    step       [1] int64
    seen, counts  as count_tokens keeps them; None = no row has penalties
    rows       [S] int64: a row's place in them
    weigh_all  False promises that the top_k of every row with a temperature is above 0 and below V
    scores     None = no log-probabilities. Else two tensors [K, R, 1 + num_top], R at least S, num_top up to MAX_TOP, of which rows
               [step[0], :S] are written, of the raw logits: int32, the rank of the token and the ids of the likeliest, those of equal
               ones in order; fp32, the log-probabilities of all these. Zeros for a row without a token
    Returns ids [S] int64, -1 where a row holds NaN or an infinity.
    """
    raw = logits.float()
    values = raw if seen is None or counts is None else _penalised(raw, controls.float(), seen[rows], counts[rows])
    drawn = _draw(values, controls, uniforms.index_select(0, step).squeeze(0))
    ids = torch.where(controls[TEMPERATURE] > 0, drawn, values.argmax(-1))
    ids = ids.masked_fill(~raw.isfinite().all(-1), -1)
    if scores is not None:
        for target, found in zip(scores, _scores(raw, ids, scores[0].shape[2] - 1), strict=True):
            kept = found.masked_fill((ids < 0).unsqueeze(1), 0).to(target.dtype)
            target[:, : len(raw)].index_copy_(0, step, kept.unsqueeze(0))
    return ids


def _penalised(raw: Tensor, controls: Tensor, seen: Tensor, counts: Tensor) -> Tensor:
    repetition, frequency, presence = (controls[i].unsqueeze(1) for i in (REPETITION, FREQUENCY, PRESENCE))
    shifts = torch.arange(WORD_BITS, device=seen.device)
    known = ((seen.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, : raw.shape[1]] > 0
    repeated = torch.where(raw > 0, raw / repetition, raw * repetition)
    values = torch.where(known, repeated, raw)
    return values - frequency * counts - presence * (counts > 0)


def _draw(values: Tensor, controls: Tensor, uniform: Tensor) -> Tensor:
    size, one = values.shape[1], weight_of_likeliest(values.shape[1])
    temperature = controls[TEMPERATURE].where(controls[TEMPERATURE] > 0, 1.0)
    scaled = values / temperature.float().unsqueeze(1)
    scaled = scaled - scaled.amax(-1, keepdim=True)
    weights = (scaled.double().exp() * one).round()
    falling = weights.sort(-1, descending=True).values
    top_k = controls[TOP_K].long().clamp(max=size)
    kth = falling.gather(1, (top_k - 1).clamp(min=0).unsqueeze(1)).squeeze(1).where((top_k > 0) & (top_k < size), 0)
    least = torch.maximum(kth, (controls[MIN_P] * one).ceil())
    cumulative = falling.where(falling >= least.unsqueeze(1), 0).cumsum(-1)
    mass = cumulative[:, -1]
    needed = torch.minimum((controls[TOP_P] * mass).ceil(), mass)
    last = torch.searchsorted(cumulative, needed.unsqueeze(1)).clamp(max=size - 1)
    by_p = falling.gather(1, last).squeeze(1).where(controls[TOP_P] < 1, 0)
    kept = weights.where(weights >= torch.maximum(least, by_p).unsqueeze(1), 0).cumsum(-1)
    total = kept[:, -1]
    target = torch.minimum((uniform * total).floor(), total - 1)
    return torch.searchsorted(kept, target.unsqueeze(1), right=True).squeeze(1)


def _scores(raw: Tensor, ids: Tensor, num_top: int) -> Scores:
    chosen = raw.gather(1, ids.clamp(min=0).unsqueeze(1))
    normaliser = raw.logsumexp(-1, keepdim=True)
    ranks = (raw > chosen).sum(-1, dtype=torch.int32, keepdim=True) + 1
    top, top_ids = (part[:, :num_top] for part in raw.sort(dim=-1, descending=True, stable=True))
    return torch.cat((ranks, top_ids.int()), dim=1), torch.cat((chosen, top), dim=1) - normaliser


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    # The likeliest of 20,011 tokens fit a shortlist; of a small vocabulary all are looked through.
    for rows, vocab, steps, num_top, spread in ((1, 300, 1, 5, 3), (12, 1500, 2, -1, 3), (12, 20_011, 3, 8, 6)):
        filtered = rows > 1
        logits = spread * randn(generator, rows, vocab, dtype=dtype, device=device)
        if rows > 1:
            logits[0, vocab // 3 : vocab // 3 + 40] = logits[0].max()  # equal ones, more than top_k
        if rows > 9:
            logits[9, vocab // 2] = float("nan")
            logits[10, 1] = float("inf")
            logits[11] = 0.5  # all equal
        yield {
            "logits": logits,
            "controls": _random_controls(generator, rows, vocab, filtered).to(device),
            "uniforms": torch.rand(steps, rows, generator=generator, dtype=torch.float64).to(device),
            "step": torch.full((1,), steps - 1, dtype=torch.int64, device=device),
            **_random_counts(generator, rows, vocab, device),
            "rows": torch.randperm(rows, generator=generator).to(device),
            "weigh_all": filtered,
            "scores": None if num_top < 0 else _make_scores(steps, rows + 2, num_top, device),
        }


def _make_scores(steps: int, rows: int, num_top: int, device: torch.device) -> Scores:
    shape = steps, rows, 1 + num_top
    return torch.zeros(shape, dtype=torch.int32, device=device), torch.zeros(shape, device=device)


def _random_controls(generator: torch.Generator, rows: int, vocab: int, filtered: bool) -> Tensor:
    controls = torch.zeros(NUM_CONTROLS, 12, dtype=torch.float64)
    controls[TEMPERATURE] = torch.tensor([0.7, 0.0, 1.0, 1.7, 0.01, 1.0, 0.9, 0.3, 2.0, 1.0, 1.0, 1.0])
    large_k = 700 if vocab < 2000 else 60
    controls[TOP_K] = torch.tensor([20, 5, 0, 50, 3, 1, 0, vocab + 7, large_k, 5, 0, 9]) if filtered else 20
    controls[TOP_P] = torch.tensor([1.0, 0.5, 0.9, 0.8, 1.0, 1.0, 1.0, 0.6, 0.95, 0.5, 1.0, 0.5]) if filtered else 0.9
    controls[MIN_P] = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 0.1]) if filtered else 0.0
    controls[REPETITION] = 1 + torch.rand(12, generator=generator, dtype=torch.float64)
    controls[FREQUENCY] = torch.randn(12, generator=generator, dtype=torch.float64) / 3
    controls[PRESENCE] = torch.randn(12, generator=generator, dtype=torch.float64) / 3
    return controls[:, :rows].contiguous()


def _random_counts(generator: torch.Generator, rows: int, vocab: int, device: torch.device) -> Inputs:
    seen = torch.zeros(rows, -(-vocab // WORD_BITS), dtype=torch.int32)
    counts = torch.zeros(rows, vocab, dtype=torch.int16)
    tokens = torch.randint(0, vocab, (rows * 30,), generator=generator) // torch.tensor([1, 9, 99] * (rows * 10))
    marks = torch.randint(0, 2, (rows * 30,), generator=generator).int() * 2 - 1
    count_tokens(tokens, marks, torch.arange(rows).repeat(30), seen, counts)
    return {"seen": seen.to(device), "counts": counts.to(device)}


SPEC = OpSpec("sample_tokens", sample_tokens, FLOAT_TOLERANCES, make_inputs, mutates=("scores",))
