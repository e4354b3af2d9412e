"""Random inputs of the operator sample_tokens, and the comparison of an implementation with its reference."""

from collections.abc import Callable
from typing import Any

import op_parity
import torch

from quire.ops.contract import Inputs
from quire.ops.sample_tokens import _random_counts, sample_tokens
from quire.runner.device_sampler import make_scores

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def equal_inputs(vocab: int) -> Inputs:
    """One row whose tokens are all as likely: no shortlist holds them."""
    controls = torch.tensor([[1.0], [40], [0.9], [0.0], [1.0], [0.0], [0.0]], dtype=torch.float64)
    return {
        "logits": torch.full((1, vocab), 2.0, dtype=torch.bfloat16), "controls": controls,
        "uniforms": torch.tensor([[0.4]], dtype=torch.float64), "step": torch.tensor([0]), "seen": None, "counts": None,
        "rows": torch.tensor([0]), "weigh_all": False, "scores": make_scores(1, 1, 8, torch.device("cpu")),
    }  # fmt: skip


def random_inputs(seed: int) -> Inputs:
    """Rows of all kinds side by side: greedy ones, with and without filters, penalties, ties, padding; strides and sizes odd or not."""
    draw = torch.Generator().manual_seed(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(0, len(choices), (1,), generator=draw))]

    def of_rows(*choices: float) -> torch.Tensor:
        return torch.tensor(choices, dtype=torch.float64)[torch.randint(0, len(choices), (num_rows,), generator=draw)]

    dtype, vocab, num_rows = one_of(*DTYPES), one_of(40, 777, 2048, 8192, 8200, 20_000), one_of(1, 5, 9)
    wide = one_of(0, 8, 3)
    logits = torch.randn(num_rows, vocab + wide, generator=draw) * one_of(0.5, 3.0, 10.0) + one_of(0.0, -20.0)
    logits = logits.to(dtype)[:, :vocab]
    for row in range(num_rows):
        kind = one_of("as it is", "as it is", "steps", "equal", "one", "zeros")
        if kind == "steps":
            logits[row] = (logits[row] * 2).round() / 2
        elif kind == "equal":
            logits[row] = 1.5
        elif kind == "one":
            logits[row, vocab // 3] = 300.0
        elif kind == "zeros":
            logits[row] = logits[row].clamp(max=0.0) * one_of(1.0, -0.0)
    if num_rows == 9:
        logits[one_of(0, 4), one_of(0, vocab - 1)] = one_of(float("nan"), float("inf"), -float("inf"))
    controls = torch.stack(
        [
            of_rows(0.0, 1.0, 1.0, 0.2, 3.0), of_rows(0, 0, 1, 7, 50, 300, vocab), of_rows(1.0, 0.9, 0.3, 1e-6, 0.999),
            of_rows(0.0, 0.0, 0.05, 1.0, 1e-9), of_rows(1.0, 1.1, 0.7), of_rows(0.0, 0.3, -0.4), of_rows(0.0, 0.3, -2.0),
        ]
    )  # fmt: skip
    found = _random_counts(draw, num_rows + 1, vocab, torch.device("cpu")) if one_of(True, False) else {}
    num_top = one_of(-1, 0, 8, 32)
    return {
        "logits": logits, "controls": controls, "uniforms": torch.rand(2, num_rows, generator=draw, dtype=torch.float64),
        "step": torch.tensor([1]), "seen": found.get("seen"), "counts": found.get("counts"),
        "rows": torch.randperm(num_rows, generator=draw), "weigh_all": True,
        "scores": None if num_top < 0 else make_scores(2, num_rows + 1, num_top, torch.device("cpu")),
    }  # fmt: skip


def compare(run: Callable[..., Any], inputs: Inputs, device: str = "cpu") -> None:
    """The same tokens, ranks and likeliest ones as the reference gives on the CPU, and nearly the same log-probabilities."""
    copies = {name: op_parity.to_device(value, device) for name, value in inputs.items()}
    with op_parity.poisoned_memory():
        found = run(**copies)
    assert torch.equal(found.cpu(), sample_tokens(**inputs))
    if inputs["scores"] is not None:
        ids, logprobs = copies["scores"]
        assert torch.equal(ids.cpu(), inputs["scores"][0])
        torch.testing.assert_close(logprobs.cpu(), inputs["scores"][1], atol=2e-5, rtol=1e-6)
