"""generation_config.json as vLLM reads it."""

import json

import pytest

from quire.errors import CheckpointError, ConfigError
from quire.text.generation_config import read_generation_config

QWEN = {
    "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05,
    "eos_token_id": [151645, 151643], "pad_token_id": 151643, "max_new_tokens": 2048, "transformers_version": "4.37.0",
}  # fmt: skip


def folder(path, values, name="generation_config.json"):
    (path / name).write_text(json.dumps(values))
    return path


def test_sampling_defaults_and_eos_ids(tmp_path):
    config = read_generation_config(folder(tmp_path, QWEN), tokenizer_eos_id=151645)
    assert config.sampling == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_tokens": 2048,
    }  # fmt: skip
    assert config.eos_token_ids == (151645, 151643)


def test_one_eos_id_joins_the_tokenizers(tmp_path):
    assert read_generation_config(folder(tmp_path, {"eos_token_id": 7}), tokenizer_eos_id=2).eos_token_ids == (2, 7)
    assert read_generation_config(tmp_path, tokenizer_eos_id=None).eos_token_ids == (7,)


def test_vllm_means_none(tmp_path):
    config = read_generation_config(folder(tmp_path, QWEN), "vllm", tokenizer_eos_id=2)
    assert config.sampling == {} and config.eos_token_ids == (2,)


def test_another_folder(tmp_path):
    (tmp_path / "model").mkdir()
    config = read_generation_config(tmp_path / "model", str(folder(tmp_path, QWEN)))
    assert config.sampling["top_k"] == 20
    with pytest.raises(ConfigError, match="no generation_config.json"):
        read_generation_config(tmp_path, str(tmp_path / "model"))


def test_without_a_file_the_eos_ids_of_config_json_count(tmp_path):
    config = read_generation_config(folder(tmp_path, {"eos_token_id": 9, "temperature": 0.1}, "config.json"))
    assert config.sampling == {} and config.eos_token_ids == (9,)


def test_overrides_win(tmp_path):
    overrides = {"temperature": 0.0, "max_new_tokens": 5, "eos_token_id": 1}
    config = read_generation_config(folder(tmp_path, QWEN), overrides=overrides, tokenizer_eos_id=2)
    assert config.sampling["temperature"] == 0.0 and config.sampling["max_tokens"] == 5
    assert config.eos_token_ids == (1,)
    assert read_generation_config(tmp_path, "vllm", {"max_tokens": 3}).sampling == {"max_tokens": 3}


@pytest.mark.parametrize("overrides", [{"temprature": 1}, {"do_sample": False}, {"temperature": "hot"}, [1]])
def test_overrides_that_cannot_be_honoured_are_refused(tmp_path, overrides):
    with pytest.raises(ConfigError, match="override_generation_config"):
        read_generation_config(tmp_path, overrides=overrides)


@pytest.mark.parametrize("values", [[], {"temperature": "0.7"}, {"top_k": 1.5}, {"eos_token_id": "2"}, {"top_p": True}])
def test_a_bad_file_is_named(tmp_path, values):
    with pytest.raises(CheckpointError, match="generation_config.json"):
        read_generation_config(folder(tmp_path, values))


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": NaN, ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_generation_config(tmp_path)
