"""Where a sequence ends: token ids and lengths, for one token a step and for several."""

import pytest

from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.core.stop import Cut, StopRule

PROMPT = [9] * 10


def rule(max_model_len: int = 100, eos: tuple[int, ...] = (2,), **params) -> StopRule:
    return StopRule(Request("r", PROMPT, SamplingParams(**params), eos), max_model_len)


@pytest.mark.parametrize(
    ("params", "num_generated", "new", "expected"),
    [
        ({}, 0, [5], Cut(1)),
        ({}, 0, [2], Cut(1, "stop", None)),
        ({"ignore_eos": True}, 0, [2], Cut(1)),
        ({"stop_token_ids": [7]}, 3, [7], Cut(1, "stop", 7)),
        ({"stop_token_ids": [2]}, 0, [2], Cut(1, "stop", None)),
        ({"stop_token_ids": [2], "ignore_eos": True}, 0, [2], Cut(1, "stop", 2)),
        ({"max_tokens": 4}, 2, [5], Cut(1)),
        ({"max_tokens": 4}, 3, [5], Cut(1, "length")),
        ({"max_tokens": 4}, 3, [2], Cut(1, "stop", None)),
        ({"max_tokens": None}, 88, [5], Cut(1)),
        ({"max_tokens": None}, 89, [5], Cut(1, "length")),
        ({"max_tokens": 500}, 89, [5], Cut(1, "length")),
        ({"min_tokens": 3}, 2, [2], Cut(1)),
        ({"min_tokens": 3}, 3, [2], Cut(1, "stop", None)),
        ({"min_tokens": 4, "max_tokens": 4}, 3, [2], Cut(1, "length")),
    ],
)
def test_one_token(params: dict, num_generated: int, new: list[int], expected: Cut) -> None:
    assert rule(**params).cut(num_generated, new) == expected


@pytest.mark.parametrize(
    ("params", "new", "expected"),
    [
        ({}, [], Cut(0)),
        ({}, [5, 6, 8], Cut(3)),
        ({}, [5, 2, 8], Cut(2, "stop", None)),
        ({"stop_token_ids": [6, 8]}, [5, 6, 8], Cut(2, "stop", 6)),
        ({"max_tokens": 2}, [5, 6, 8], Cut(2, "length")),
        ({"max_tokens": 2}, [5, 2, 8], Cut(2, "stop", None)),
        ({"max_tokens": 2}, [5, 6, 2], Cut(2, "length")),
        ({"min_tokens": 2}, [2, 2, 2, 2], Cut(3, "stop", None)),
    ],
)
def test_several_tokens_are_cut_at_the_first_that_ends(params: dict, new: list[int], expected: Cut) -> None:
    assert rule(**params).cut(0, new) == expected


def test_every_eos_of_a_model_ends_a_sequence() -> None:
    assert rule(eos=(2, 3)).cut(0, [3]) == Cut(1, "stop", None)
