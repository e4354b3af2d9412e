"""The sampler over whole rows of parameters: order of processing, penalties, edits, log-probabilities, failures, independence."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from quire.core.batch import Batch, NewSequence, TokenLogprobs
from quire.core.params import SamplingParams
from quire.core.sequence import MAX_LOGPROBS_ALONE
from quire.ops.greedy import greedy as most_likely
from quire.ops.sample_tokens import MAX_TOP
from quire.runner.grammars import Grammars
from quire.runner.sampler import ALL_FORBIDDEN, NOT_FINITE, Sampler
from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.transfer import OneCopy

VOCAB = 50
PROMPT, GENERATED = [3, 4, 5, 4], [7, 8, 7, 7]


class Rig:
    """Tables of sequences that share PROMPT and GENERATED, one row for each of `params`."""

    def __init__(self, *params: SamplingParams, **sequence: Any) -> None:
        self.table, self.sampling = SequenceTable(len(params), 64, 16), SamplingTable(len(params))
        added = [NewSequence(i, 0, PROMPT + GENERATED, len(PROMPT), 0, [], p, **sequence) for i, p in enumerate(params)]
        self.table.update(Batch([], added))
        self.rows = self.table.rows(range(len(params)))
        for row, new in zip(self.rows, added, strict=True):
            self.sampling.set(int(row), new)
        self.sampler = Sampler(self.table, self.sampling, VOCAB, most_likely, Grammars("", VOCAB))

    def __call__(self, logits: torch.Tensor) -> tuple[list[int], list[TokenLogprobs | None]]:
        out = OneCopy()
        sampled = self.sampler.sample(logits, self.rows, out)
        arrays = out.fetch()
        return self.sampler.token_ids(sampled, arrays).tolist(), self.sampler.logprobs(sampled, self.rows, arrays)


def greedy(**values: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, **values)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 3


def processed(logits: torch.Tensor, params: SamplingParams, **sequence: Any) -> torch.Tensor:
    rig = Rig(params, **sequence)
    return rig.sampler._processed(logits, rig.rows)


def test_greedy_takes_the_most_likely_and_the_first_of_equals(logits: torch.Tensor) -> None:
    logits[0, [9, 30]] = 20.0
    assert Rig(greedy())(logits)[0] == [9]


def test_repetition_penalty_equals_transformers(logits: torch.Tensor) -> None:
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([PROMPT + GENERATED]), logits.clone())
    assert torch.equal(processed(logits, greedy(repetition_penalty=1.7)), expected)


def test_presence_and_frequency_count_generated_tokens_alone(logits: torch.Tensor) -> None:
    expected = logits.clone()
    expected[0, 7] -= 3 * 0.5 + 0.25
    expected[0, 8] -= 0.5 + 0.25
    found = processed(logits, greedy(frequency_penalty=0.5, presence_penalty=0.25))
    torch.testing.assert_close(found, expected)


def test_allowed_token_ids(logits: torch.Tensor) -> None:
    found = processed(logits, greedy(allowed_token_ids=[2, 7, 7, 999]))
    assert found.isfinite().nonzero()[:, 1].tolist() == [2, 7]
    assert torch.equal(found[0, [2, 7]], logits[0, [2, 7]])


def test_bad_words_are_not_completed(logits: torch.Tensor) -> None:
    words = ((7, 7, 11), (8, 7, 12), (13,), (5, 7, 8, 7, 7, 14), (7, 8, 7, 7, 15), (1, 10_000))
    found = processed(logits, greedy(), bad_words_token_ids=words)
    assert found.isinf().nonzero()[:, 1].tolist() == [11, 13, 15]  # 14 would need a prompt token


def test_min_tokens_forbids_every_end_until_there_are_enough(logits: torch.Tensor) -> None:
    early = processed(logits, greedy(min_tokens=5, stop_token_ids=[20, 10_000]), eos_token_ids=(2,))
    assert early.isinf().nonzero()[:, 1].tolist() == [2, 20]
    late = processed(logits, greedy(min_tokens=4, stop_token_ids=[20]), eos_token_ids=(2,))
    assert torch.equal(late, logits)


def test_logit_bias_comes_after_the_masks_and_before_the_penalties(logits: torch.Tensor) -> None:
    params = greedy(logit_bias={7: 10.0, 9: 50.0}, allowed_token_ids=[7, 8], repetition_penalty=2.0)
    found = processed(logits, params)
    biased = logits[0, 7] + 10.0
    assert found[0, 7] == (biased / 2 if biased > 0 else biased * 2)
    assert found[0, 9] == float("-inf")


def test_logprobs_are_of_the_raw_logits(logits: torch.Tensor) -> None:
    best = int(logits.argmax())
    tokens, [entry] = Rig(greedy(logprobs=3, allowed_token_ids=[int(logits.argsort(descending=True)[0, 4])]))(logits)
    raw = logits.log_softmax(-1)[0]
    assert entry is not None
    assert entry.rank == 5
    assert entry.token_ids == [tokens[0], *raw.topk(3).indices.tolist()]
    assert entry.logprobs == raw[entry.token_ids].tolist()
    assert tokens[0] != best


def test_logprobs_of_zero_one_and_all(logits: torch.Tensor) -> None:
    rig = Rig(greedy(logprobs=0), greedy(), greedy(logprobs=1), greedy(logprobs=-1))
    tokens, entries = rig(logits.expand(4, -1))
    assert entries[1] is None
    assert [len(e.token_ids) for e in entries if e is not None] == [1, 2, 1 + VOCAB]
    assert all(e.token_ids[0] == tokens[0] and e.rank == 1 for e in entries if e is not None)
    assert sorted(entries[3].token_ids[1:]) == list(range(VOCAB))  # type: ignore[union-attr]


def test_equal_logprobs_are_listed_by_token_id() -> None:
    flat = torch.zeros(3, VOCAB)
    _, entries = Rig(greedy(logprobs=2), greedy(logprobs=7), greedy(logprobs=-1))(flat)
    for count, entry in zip((2, 7, VOCAB), entries, strict=True):
        assert entry is not None and entry.token_ids[1:] == list(range(count))


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    logits = torch.zeros(64, VOCAB)
    params = [SamplingParams(seed=seed % 32) for seed in range(64)]
    tokens, _ = Rig(*params)(logits)
    assert tokens[:32] == tokens[32:]
    assert len(set(tokens)) > 15


def test_rows_that_are_not_finite_fail_alone(logits: torch.Tensor) -> None:
    rows = logits.repeat(6, 1)
    rows[1, 4], rows[2, 4], rows[3, 4], rows[4] = float("nan"), float("inf"), float("-inf"), float("nan")
    for params in (greedy(), SamplingParams(seed=1), SamplingParams(seed=1, top_p=0.5, logprobs=2)):
        expected, _ = Rig(params)(logits)
        tokens, _ = Rig(*[params] * 6)(rows)
        assert tokens == [expected[0], NOT_FINITE, NOT_FINITE, NOT_FINITE, NOT_FINITE, expected[0]]


@pytest.mark.parametrize("base", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 4}])
def test_a_row_that_may_choose_nothing_fails_alone(logits: torch.Tensor, base: dict[str, Any]) -> None:
    nothing = SamplingParams(**base, allowed_token_ids=[2], min_tokens=9)
    tokens, _ = Rig(nothing, SamplingParams(**base, min_tokens=9), eos_token_ids=(2,))(logits.expand(2, -1))
    assert tokens[0] == ALL_FORBIDDEN and tokens[1] >= 0


def mixed_params() -> list[SamplingParams]:
    return [
        greedy(),
        greedy(logprobs=2),
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_k=3, logprobs=0),
        SamplingParams(seed=3, top_p=0.6, temperature=1.5),
        SamplingParams(seed=4, min_p=0.2, repetition_penalty=1.3),
        greedy(frequency_penalty=1.0, logprobs=5),
        greedy(logit_bias={5: 20.0}),
        SamplingParams(seed=5, allowed_token_ids=[1, 2, 3], presence_penalty=0.4, logprobs=-1),
    ]


@pytest.mark.parametrize("slice_rows", [1, 2, 4, 100])
def test_a_row_is_sampled_the_same_in_any_company(slice_rows: int) -> None:
    params = mixed_params()
    logits = torch.randn(len(params), VOCAB, generator=torch.Generator().manual_seed(8)) * 2
    rig = Rig(*params)
    rig.sampler.slice_rows = slice_rows
    tokens, entries = rig(logits)
    for i, p in enumerate(params):
        assert Rig(p)(logits[i : i + 1]) == ([tokens[i]], [entries[i]])


def test_the_copy_brings_every_part_in_its_own_shape_and_dtype() -> None:
    out = OneCopy()
    parts = [torch.arange(6, dtype=torch.int32).view(2, 3), torch.tensor([1.5, -2.0]), torch.zeros(0, 4)]
    numbers = [out.add(part) for part in parts]
    arrays = out.fetch()
    assert numbers == [0, 1, 2]
    for part, array in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(array, part.numpy())
        assert array.dtype == part.numpy().dtype


def test_the_device_tells_as_many_likeliest_tokens_as_a_sequence_may_ask_of_it_alone() -> None:
    assert MAX_LOGPROBS_ALONE <= MAX_TOP
