"""A budget for thinking: the end mark comes exactly when it is spent, whatever else is asked for, and not where nothing is thought."""

import numpy as np
import pytest
import torch
from tiny_checkpoints import VOCAB_SIZE, thinking_qwen2

from quire import LLM, SamplingParams
from quire.core.batch import Batch, NewSequence
from quire.errors import InvalidRequest
from quire.runner.sequence_table import SequenceTable
from quire.runner.thinking import end_thinking, is_spent

BEGIN, END = VOCAB_SIZE, VOCAB_SIZE + 1
OPEN = "hello<think>\n"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with LLM(str(thinking_qwen2(tmp_path_factory.mktemp("thinking") / "m")), dtype="float32", max_num_seqs=8) as llm:
        yield llm


def think(llm, prompt, budget, **settings):
    params = SamplingParams(
        **{"max_tokens": 40, "ignore_eos": True, "seed": 3, "thinking_token_budget": budget, **settings}
    )
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs


@pytest.mark.parametrize("budget", [0, 1, 7, 30])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mark_comes_when_the_budget_is_spent(llm, budget, temperature):
    free = think(llm, OPEN, None, temperature=temperature, logit_bias={END: -100})[0].token_ids
    held = think(llm, OPEN, budget, temperature=temperature, logit_bias={END: -100})[0].token_ids
    assert held[:budget] == free[:budget] and held.index(END) == budget and held.count(END) == 1 and len(held) == 40


def test_each_answer_has_its_own_budget_beside_others(llm):
    params = [
        SamplingParams(max_tokens=30, seed=i, temperature=1.0, ignore_eos=True, thinking_token_budget=i if i % 2 else None)
        for i in range(8)
    ]  # fmt: skip
    together = [o.outputs[0].token_ids for o in llm.generate([OPEN] * 8, params, use_tqdm=False)]
    alone = [llm.generate(OPEN, p, use_tqdm=False)[0].outputs[0].token_ids for p in params]
    assert together == alone
    assert all(END in ids[: i + 1] for i, ids in enumerate(together) if i % 2)
    outputs = think(llm, OPEN, 4, n=3, temperature=1.0)
    assert all(END in output.token_ids[:5] for output in outputs)


def test_what_is_forbidden_otherwise_still_ends_the_thinking(llm):
    settings = {"temperature": 0.0, "allowed_token_ids": [70, 71, 72], "logprobs": 2}
    output = think(llm, OPEN, 5, **settings)[0]
    assert output.token_ids.index(END) == 5 and set(output.token_ids) <= {70, 71, 72, END}
    assert END in output.logprobs[5]


def test_no_thinking_no_mark(llm):
    for prompt in ("hello", "<think>\n\n</think>\n\n"):
        plain = think(llm, prompt, None, temperature=0.0, logit_bias={BEGIN: -100})[0].token_ids
        assert think(llm, prompt, 5, temperature=0.0, logit_bias={BEGIN: -100})[0].token_ids == plain


def test_a_model_that_begins_by_itself(llm):
    ids = think(llm, "hello", 6, temperature=0.0, logit_bias={END: -100}, bad_words=[])[0].token_ids
    assert END not in ids
    forced = SamplingParams(max_tokens=1, allowed_token_ids=[BEGIN])
    assert llm.generate("hello", forced, use_tqdm=False)[0].outputs[0].token_ids == [BEGIN]


def table(generated):
    found = SequenceTable(1, 64, 16)
    params = SamplingParams(thinking_token_budget=3)
    found.update(Batch([], [NewSequence(0, 0, [1, 2, *generated], 2, 0, [], params, think_token_ids=(8, 9))]))
    return found


@pytest.mark.parametrize(
    ("generated", "spent"),
    [([8, 5, 5, 5], True), ([7, 8, 5, 5, 5], True), ([8, 5, 5], False), ([8, 5, 5, 5, 5], True), ([8, 5, 5, 5, 5, 9], False), ([8, 5, 9, 5], False),
     ([5, 5, 5], False), ([], False), ([8], False), ([5, 5, 5, 5, 8, 5, 5, 5], False)],
)  # fmt: skip
def test_when_it_is_time(generated, spent):
    found = table(generated)
    assert is_spent(0, found) == spent
    logits = torch.zeros(1, 12)
    end_thinking(logits, np.array([0]), found, lambda row, token_id, table: False)
    assert not logits.isinf().any(), "the grammar decides when the mark may come"
    end_thinking(logits, np.array([0]), found, lambda row, token_id, table: True)
    assert (logits.isinf().sum() == 11) == spent


def test_refusals(llm):
    for settings in ({"structured_outputs": {"regex": "a"}, "ignore_eos": False}, {"thinking_token_budget": -1}):
        with pytest.raises(InvalidRequest) as caught:
            think(llm, OPEN, 5, **settings)
        assert caught.value.param == "thinking_token_budget"
