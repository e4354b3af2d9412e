"""Drawing tokens: the right distribution, transformers' filters, and nothing of a row depends on its neighbours."""

from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from quire.runner import draw as drawing
from quire.runner.draw import Controls, draw

GRID = 20_000


def controls(rows: int, uniform: torch.Tensor, **values: float) -> Controls:
    filled = {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0, **values}
    filtered = any(filled[k] != d for k, d in (("top_k", 0.0), ("top_p", 1.0), ("min_p", 0.0)))
    columns = {name: torch.full((rows,), value, dtype=torch.float64) for name, value in filled.items()}
    return Controls(filtered, uniform=uniform.double(), **columns)


def frequencies(logits: torch.Tensor, **values: float) -> torch.Tensor:
    """Share of each token when the uniform number runs over an even grid: the distribution itself, to within 1 / GRID."""
    uniform = (torch.arange(GRID) + 0.5) / GRID
    drawn = draw(logits.expand(GRID, -1), controls(GRID, uniform, **values))
    return torch.bincount(drawn, minlength=logits.shape[0]).double() / GRID


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(40, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_the_distribution_is_softmax(logits: torch.Tensor, temperature: float) -> None:
    expected = (logits.double() / temperature).softmax(-1)
    torch.testing.assert_close(frequencies(logits, temperature=temperature), expected, atol=1.01 / GRID, rtol=0)


FILTERS: list[tuple[dict[str, float], list[Any]]] = [
    ({"top_k": 5}, [TopKLogitsWarper(5)]),
    ({"top_k": 1}, [TopKLogitsWarper(1)]),
    ({"top_k": 40}, []),
    ({"top_k": 1000}, []),
    ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    ({"top_p": 0.01}, [TopPLogitsWarper(0.01)]),
    ({"top_p": 0.999}, [TopPLogitsWarper(0.999)]),
    ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    ({"min_p": 1.0}, [MinPLogitsWarper(1.0)]),
    ({"top_k": 9, "top_p": 0.7}, [TopKLogitsWarper(9), TopPLogitsWarper(0.7)]),
    ({"min_p": 0.05, "top_k": 9, "top_p": 0.9}, [MinPLogitsWarper(0.05), TopKLogitsWarper(9), TopPLogitsWarper(0.9)]),
]


@pytest.mark.parametrize(("values", "warpers"), FILTERS, ids=lambda value: str(value)[:40])
def test_filters_equal_transformers(logits: torch.Tensor, values: dict[str, float], warpers: list[Any]) -> None:
    scores = logits[None]
    for warper in warpers:
        scores = warper(None, scores)
    torch.testing.assert_close(frequencies(logits, **values), scores[0].double().softmax(-1), atol=1.01 / GRID, rtol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"top_p": 0.9},
        {"top_k": 30},
        {"top_k": 30, "top_p": 0.95},
        {"top_k": 2, "top_p": 0.9},
        {"min_p": 0.7, "top_p": 0.9},
    ],
)
def test_the_threshold_is_found_beyond_the_head_too(
    logits: torch.Tensor, values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = frequencies(logits * 0.1, **values)
    monkeypatch.setattr(drawing, "HEADS", (2, 5))
    assert torch.equal(frequencies(logits * 0.1, **values), expected)


def test_forbidden_tokens_are_never_drawn(logits: torch.Tensor) -> None:
    logits[::2] = float("-inf")
    assert frequencies(logits)[::2].sum() == 0


def test_the_ends_of_the_uniform_range() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, -50.0, 1.0, float("-inf")]] * 2)
    assert draw(logits, controls(2, torch.tensor([0.0, 1.0 - 2**-53]))).tolist() == [1, 3]


def test_equal_tokens_at_the_edge_of_top_k_are_all_kept() -> None:
    kept = frequencies(torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0]), top_k=2)
    assert (kept > 0).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("size", [100, 1500])
def test_a_row_is_drawn_the_same_in_any_batch(size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = 64
    logits = torch.randn(rows, size, generator=generator) * 3
    logits[::5] *= 0.01
    columns = {
        "temperature": torch.rand(rows, generator=generator).double() + 0.1,
        "top_k": torch.randint(0, 50, (rows,), generator=generator).double(),
        "top_p": torch.rand(rows, generator=generator).double() * 0.5 + 0.5,
        "min_p": torch.rand(rows, generator=generator).double() * 0.05,
        "uniform": torch.rand(rows, generator=generator, dtype=torch.float64),
    }
    together = draw(logits, Controls(True, **columns))
    for first, end in ((0, 1), (5, 6), (7, 20), (30, 63), (63, 64)):
        part = Controls(True, **{name: column[first:end] for name, column in columns.items()})
        assert torch.equal(draw(logits[first:end], part), together[first:end])


def test_an_unfiltered_row_does_not_care_for_filtered_neighbours(logits: torch.Tensor) -> None:
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = draw(logits.expand(50, -1), controls(50, uniform))
    beside = controls(50, uniform, top_k=0.0, top_p=1.0)
    assert torch.equal(draw(logits.expand(50, -1), Controls(True, *list(vars(beside).values())[1:])), plain)
