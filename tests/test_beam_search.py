"""Beam search against transformers' on the same weights, and against a search of every continuation."""

import pytest
import torch
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire import LLM, BeamSearchParams, SamplingParams
from quire.errors import InvalidRequest

PROMPTS = ["hello the", "abc", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("beam") / "model", max_len=128, seed=3)


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def eos_ids(reference):
    """Two tokens that this model likes, so that hypotheses end early."""
    ids = reference.generate(torch.tensor([[64, 65, 66]]), max_new_tokens=6, do_sample=False, eos_token_id=None)[0]
    return sorted({int(ids[5]), int(ids[8])})


@pytest.fixture(scope="module")
def llm(folder, eos_ids):
    with LLM(str(folder), num_gpu_blocks_override=200, override_generation_config={"eos_token_id": eos_ids}) as llm:
        yield llm


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
def test_hypotheses_and_scores_are_transformers(llm, reference, eos_ids, width, length_penalty):
    params = BeamSearchParams(
        beam_width=width, max_tokens=9, length_penalty=length_penalty, include_stop_str_in_output=True
    )
    outputs = llm.beam_search(PROMPTS, params)
    num_ended = 0
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = llm.llm_engine.frontend.tokenize(prompt)
        expected = reference.generate(
            torch.tensor([ids]), num_beams=width, num_return_sequences=width, max_new_tokens=9, do_sample=False,
            length_penalty=length_penalty, early_stopping=False, output_scores=True, return_dict_in_generate=True,
            eos_token_id=eos_ids, pad_token_id=1,
        ) if width > 1 else None  # fmt: skip
        sequences = output.sequences
        assert [s.score for s in sequences] == sorted((s.score for s in sequences), reverse=True)
        if expected is None:
            greedy = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=9), use_tqdm=False)[0].outputs[0]
            assert sequences[0].tokens == ids + greedy.token_ids
            continue
        assert [s.score for s in sequences] == pytest.approx(expected.sequences_scores.tolist(), rel=5e-6, abs=2e-5)
        for mine, theirs in zip(sequences, expected.sequences.tolist(), strict=True):
            assert mine.tokens == theirs[: len(mine.tokens)] and set(theirs[len(mine.tokens) :]) <= {1}
            num_ended += mine.finish_reason == "stop"
    assert width == 1 or length_penalty > 1 or num_ended > 0, (
        "some hypotheses must end, or the rules for those are not tested"
    )


def test_a_beam_as_wide_as_all_continuations_finds_the_best_of_all(llm, reference):
    """Every continuation of two tokens over a beam that keeps all first tokens that can lead to the best."""
    (output,) = llm.beam_search("abc", BeamSearchParams(beam_width=64, max_tokens=2, ignore_eos=True))
    ids = llm.llm_engine.frontend.tokenize("abc")
    with torch.no_grad():
        first = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        nexts = reference(torch.tensor([[*ids, t] for t in range(VOCAB_SIZE)])).logits[:, -1].log_softmax(-1)
    totals = first[:, None] + nexts
    best = [divmod(i, VOCAB_SIZE) for i in totals.flatten().topk(20).indices.tolist()]
    assert [tuple(s.tokens[-2:]) for s in output.sequences[:20]] == best
    assert output.sequences[0].cum_logprob == pytest.approx(float(totals[best[0]]), abs=1e-4)


def test_sequences_have_the_names_users_know(llm):
    (output,) = llm.beam_search([{"prompt": "hello"}], BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True))
    best = output.sequences[0]
    tokenizer = llm.llm_engine.frontend.tokenizer
    assert best.text == tokenizer.decode(best.tokens) and best.text.startswith("hello")
    assert len(best.logprobs) == 3 and best.finish_reason == "length"
    assert best.cum_logprob == pytest.approx(
        sum(e[t].logprob for e, t in zip(best.logprobs, best.tokens[1:], strict=True))
    )


def test_eos_is_left_out_unless_asked_for(llm, eos_ids):
    for include in (False, True):
        params = BeamSearchParams(beam_width=7, max_tokens=9, include_stop_str_in_output=include)
        ended = [s for o in llm.beam_search(PROMPTS, params) for s in o.sequences if s.finish_reason == "stop"]
        assert ended and all((s.tokens[-1] == s.stop_reason) == include and s.stop_reason in eos_ids for s in ended)


def test_the_model_length_bounds_a_beam(llm):
    (output,) = llm.beam_search([[5] * 124], BeamSearchParams(beam_width=2, max_tokens=50, ignore_eos=True))
    assert [len(s.tokens) for s in output.sequences] == [128, 128]


def test_what_cannot_be_honoured_is_refused(llm):
    with pytest.raises(InvalidRequest, match="temperature 0.7"):
        llm.beam_search("a", BeamSearchParams(temperature=0.7))
    with pytest.raises(InvalidRequest, match="BeamSearchParams, not SamplingParams"):
        llm.beam_search("a", SamplingParams())
    with pytest.raises(InvalidRequest, match="is empty"):
        llm.beam_search("", BeamSearchParams())
