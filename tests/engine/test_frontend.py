"""Prompts and params -> requests: every form is taken, every bad value is refused by name, nothing is left open for the engine."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_checkpoints import VOCAB_SIZE, byte_tokenizer

from quire.config import EngineArgs, EngineConfig
from quire.core.params import BeamSearchParams, SamplingParams
from quire.engine.frontend import Frontend
from quire.engine.prompts import one_for_each, split_prompts
from quire.errors import CheckpointError, ConfigError, ContextLengthExceeded, InvalidRequest
from quire.text.generation_config import GenerationConfig
from quire.text.tokenizer import Tokenizer

VOCAB = VOCAB_SIZE + 4  # padded, as checkpoints do
MAX_LEN = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {bos: byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), bos=bos) for bos in (False, True)}


def frontend_for(folder, **changes):
    settings = {"vocab_size": VOCAB, "max_model_len": MAX_LEN, "generation": GenerationConfig({}, (7,)), "seed": 0}
    return Frontend(Tokenizer.from_dir(folder) if folder else None, **{**settings, **changes})


@pytest.fixture(scope="module")
def frontend(folders):
    return frontend_for(folders[False])


def test_every_form_of_a_prompt_gives_the_same_tokens(frontend):
    ids = frontend.tokenizer.encode("Hello")
    array = np.array(ids)
    for form in ("Hello", {"prompt": "Hello"}, ids, tuple(ids), array, {"prompt_token_ids": ids}):
        assert frontend.open(form).request.prompt_token_ids == ids
    both = frontend.open({"prompt": "shown", "prompt_token_ids": ids})
    assert (both.prompt, both.request.prompt_token_ids) == ("shown", ids)
    assert all(type(i) is int for i in frontend.open(array).request.prompt_token_ids)


def test_one_prompt_or_many():
    assert split_prompts("a") == ["a"]
    assert split_prompts([1, 2]) == [[1, 2]]
    assert split_prompts(["a", [1, 2], {"prompt": "b"}]) == ["a", [1, 2], {"prompt": "b"}]
    assert split_prompts([]) == []
    assert split_prompts(("a", "b")) == ["a", "b"]
    for wrong in (None, 5, b"bytes"):
        with pytest.raises(InvalidRequest, match="prompts must be"):
            split_prompts(wrong)


def test_params_are_one_for_all_or_one_for_each():
    params = SamplingParams()
    assert one_for_each(params, 2, "sampling_params", SamplingParams) == [params, params]
    assert one_for_each(None, 2, "sampling_params", SamplingParams) == [None, None]
    with pytest.raises(InvalidRequest, match="1 entries for 2 prompts"):
        one_for_each([params], 2, "sampling_params", SamplingParams)
    with pytest.raises(InvalidRequest, match="SamplingParams objects, not BeamSearchParams"):
        one_for_each(BeamSearchParams(), 1, "sampling_params", SamplingParams)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        ([], "is empty"),
        ([1, VOCAB], f"token id {VOCAB}; the model has 0 to {VOCAB - 1}"),
        ([-1], "token id -1"),
        ([10**40], "of 133 bits"),
        ([1, True], "true or false"),
        ([1, "a"], "integers"),
        ([1.5], "integers"),
        (None, "not NoneType"),
        (7, "not int"),
        (b"Hi", "not bytes"),
        ({}, "needs 'prompt'"),
        ({"prompt": 5}, "must be a string"),
        ({"prompt_token_ids": "abc"}, "must be a list"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "no field 'multi_modal_data'"),
        ({"prompt": "a", "cache_salt": 5}, "must be a string"),
        ({"prompt": "a", "cache_salt": "x" * 300}, "256 bytes"),
        ("a\ud800b", "surrogate"),
    ],
)
def test_bad_prompts_are_refused(frontend, prompt, message):
    with pytest.raises(InvalidRequest, match=message):
        frontend.open(prompt)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ({"allowed_token_ids": [0, VOCAB]}, "allowed_token_ids"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
        ({"logprobs": VOCAB + 1}, "logprobs"),
        ({"prompt_logprobs": VOCAB + 1}, "prompt_logprobs"),
    ],
)
def test_token_ids_of_params_must_be_the_models(frontend, params, name):
    with pytest.raises(InvalidRequest, match=name) as caught:
        frontend.open("Hello", SamplingParams(**params))
    assert caught.value.param == name


def test_fields_assigned_after_the_params_were_made_are_checked_too(frontend):
    params = SamplingParams()
    params.temperature = 9.0
    with pytest.raises(InvalidRequest, match="temperature"):
        frontend.open("Hello", params)
    with pytest.raises(InvalidRequest, match="must be SamplingParams, not dict"):
        frontend.open("Hello", {"temperature": 1.0})


def test_a_prompt_that_fills_the_model_length_is_refused_with_both_numbers(frontend):
    frontend.open([1] * (MAX_LEN - 1))
    with pytest.raises(ContextLengthExceeded, match=f"has {MAX_LEN} tokens and the model length is {MAX_LEN}"):
        frontend.open([1] * MAX_LEN)
    with pytest.raises(ContextLengthExceeded, match="10000 characters, too many for the model length of 64"):
        frontend.open("a" * 10_000)


def test_max_tokens_is_filled_in_or_cut_or_refused(frontend):
    ids = [1] * 60
    assert frontend.open(ids, SamplingParams(max_tokens=None)).request.params.max_tokens == 4
    assert frontend.open(ids, SamplingParams(max_tokens=100)).request.params.max_tokens == 4
    assert frontend.open(ids, SamplingParams(max_tokens=3)).request.params.max_tokens == 3
    with pytest.raises(ContextLengthExceeded, match="60 tokens and max_tokens is 100: together 160, above .* 64"):
        frontend.open(ids, SamplingParams(max_tokens=100), cap_max_tokens=False)
    with pytest.raises(ContextLengthExceeded, match="min_tokens is 5"):
        frontend.open(ids, SamplingParams(max_tokens=100, min_tokens=5))


def test_seeds_are_drawn_so_that_a_request_can_be_replayed(folders):
    first, second = frontend_for(folders[False]), frontend_for(folders[False])
    seeds = [first.open("Hi").request.params.seed for _ in range(3)]
    assert len(set(seeds)) == 3 and seeds == [second.open("Hi").request.params.seed for _ in range(3)]
    assert first.open("Hi", SamplingParams(seed=5)).request.params.seed == 5
    unseeded = [frontend_for(folders[False], seed=None).open("Hi").request.params.seed for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_the_callers_params_stay_as_they_were(frontend):
    params = SamplingParams(max_tokens=None, stop="x", bad_words=["bad"])
    before = dataclasses.replace(params)
    frontend.open("Hello", params)
    assert params == before and params.seed is None


def test_ids_are_ours_and_never_repeat(frontend):
    ids = {frontend.open("Hi", label="same").request.id for _ in range(100)}
    assert len(ids) == 100 and all(len(i) == 32 for i in ids)


def test_bad_words_become_token_ids_with_and_without_a_space(frontend):
    found = frontend.open("Hi", SamplingParams(bad_words=["hello", " the"])).request.bad_words_token_ids
    texts = {frontend.tokenizer.decode(ids) for ids in found}
    assert texts == {"hello", " hello", "the", " the"}


def test_a_text_that_begins_with_bos_gets_no_second_one(folders):
    frontend = frontend_for(folders[True])
    once = frontend.open("hello").request.prompt_token_ids
    again = frontend.open("<|bos|>hello").request.prompt_token_ids
    assert once == again and once[0] == frontend.tokenizer.bos_token_id
    assert frontend.open("hello", add_special_tokens=False).request.prompt_token_ids == once[1:]


def test_without_a_tokenizer_only_token_ids_are_taken():
    frontend = frontend_for(None)
    assert frontend.open([1, 2]).request.prompt_token_ids == [1, 2]
    for prompt, params in (("Hi", None), ([1], SamplingParams(stop="x")), ([1], SamplingParams(bad_words=["x"]))):
        with pytest.raises(InvalidRequest, match="skip_tokenizer_init"):
            frontend.open(prompt, params)


def config_for(folder):
    return EngineConfig(
        str(folder),
        "m",
        "cpu",
        "float32",
        max_model_len=MAX_LEN,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )


def test_defaults_come_from_the_checkpoint(tmp_path):
    folder = byte_tokenizer(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 500, "eos_token_id": 7}))
    loaded = Frontend.load(EngineArgs(model=str(folder)), config_for(folder))
    assert loaded.default_params() == SamplingParams() and loaded.vocab_size == 500
    assert loaded.open("Hi").request.eos_token_ids == (loaded.tokenizer.eos_token_id, 7)
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "max_new_tokens": 99, "eos_token_id": [7]})
    )
    loaded = Frontend.load(EngineArgs(model=str(folder)), config_for(folder))
    request = loaded.open("Hi").request
    assert (request.params.temperature, loaded.default_params().max_tokens) == (0.6, 99)
    assert request.params.max_tokens == MAX_LEN - len(request.prompt_token_ids)
    plain = Frontend.load(EngineArgs(model=str(folder), generation_config="vllm"), config_for(folder))
    assert plain.default_params() == SamplingParams()
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 3.0}))
    with pytest.raises(CheckpointError, match="top_p"):
        Frontend.load(EngineArgs(model=str(folder)), config_for(folder))
    with pytest.raises(ConfigError):
        Frontend.load(EngineArgs(override_generation_config={"nonsense": 1}), config_for(folder))


def test_another_tokenizer_may_be_named(tmp_path):
    model, other = byte_tokenizer(tmp_path / "model"), byte_tokenizer(tmp_path / "other", bos=True)
    (model / "config.json").write_text(json.dumps({"vocab_size": 500}))
    config = dataclasses.replace(config_for(model), tokenizer_dir=str(other))
    loaded = Frontend.load(EngineArgs(model=str(model), tokenizer=str(other)), config)
    assert loaded.tokenizer.bos_token_id == VOCAB_SIZE - 1
    assert Frontend.load(EngineArgs(model=str(model), skip_tokenizer_init=True), config_for(model)).tokenizer is None
