"""resolve(): what is chosen, why, and what is refused."""

import pytest

from quire.config import EngineArgs, MachineFacts
from quire.errors import ConfigError, UnsupportedModel
from quire.hf_config import HfConfig
from quire.resolve import WITHOUT_EFFECT, derived_max_model_len, parse_length, parse_size, resolve

CPU = MachineFacts("cpu", "a cpu", 16 * 2**30, 8 * 2**30)
H200 = MachineFacts("cuda", "a large gpu", 141 * 10**9, 140 * 10**9)
T4 = MachineFacts("cuda", "an old gpu", 16 * 2**30, 15 * 2**30, ("float16", "float32"))
HF = {"max_position_embeddings": 4096, "torch_dtype": "bfloat16"}


def config(facts: MachineFacts = CPU, hf: dict | None = None, serving: bool = False, **args):
    return resolve(EngineArgs(**args), HfConfig({**HF, **(hf or {})}), facts, model_dir="/m", serving=serving)[0]


def test_defaults_follow_the_machine():
    assert (config().max_num_seqs, config(H200).max_num_seqs, config(T4).max_num_seqs) == (64, 1024, 256)
    assert (config(H200).max_num_batched_tokens, config(H200, serving=True).max_num_batched_tokens) == (16384, 8192)
    assert config().backends == ("cpu", "torch") and config(H200).backends == ("cuda", "triton", "torch")
    assert config(backends="torch").backends == ("torch",)


@pytest.mark.parametrize(
    ("facts", "saved", "expected"),
    [
        (CPU, "bfloat16", "bfloat16"), (CPU, "float16", "float32"), (CPU, "float32", "float32"),
        (H200, "float32", "bfloat16"), (H200, "float16", "float16"), (T4, "bfloat16", "float16"),
    ],
)  # fmt: skip
def test_auto_dtype(facts, saved, expected):
    assert config(facts, {"torch_dtype": saved}).dtype == expected
    assert config(facts, {"torch_dtype": None, "dtype": saved}).dtype == expected


def test_given_dtype_is_kept_or_refused():
    assert config(dtype="half").dtype == "float16" and config(dtype="float").dtype == "float32"
    with pytest.raises(ConfigError, match="--dtype half"):
        config(T4, dtype="bfloat16")


def test_model_length():
    assert config().max_model_len == 4096 and config(max_model_len="1k").max_model_len == 1024
    assert config(max_model_len=-1).max_model_len == 4096
    with pytest.raises(ConfigError, match="8192.*4096.*--max-model-len"):
        config(max_model_len=8192)
    with pytest.raises(ConfigError, match="--max-model-len"):
        config(hf={"max_position_embeddings": None})
    for scaling in (
        {"rope_type": "linear", "factor": 2.0},
        {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096},
    ):
        assert derived_max_model_len(HfConfig({**HF, "rope_scaling": scaling})) == 8192
    assert derived_max_model_len(HfConfig({**HF, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})) == 4096


def test_sizes_and_lengths_as_people_write_them():
    assert (
        parse_size("12GiB", "x") == 12 * 2**30 and parse_size("1.5g", "x") == 1_500_000_000 and parse_size(5, "x") == 5
    )
    assert parse_length("16k") == 16384 and parse_length("8,192") == 8192 and parse_length("auto") is None
    for bad in ("lots", "12parsecs", 0, -3):
        with pytest.raises(ConfigError):
            parse_size(bad, "kv_cache_memory_bytes")


@pytest.mark.parametrize(
    "args",
    [
        {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {"quantization": "awq"}, {"cpu_offload_gb": 4},
        {"runner": "pooling"}, {"convert": "embed"}, {"gpu_memory_utilization": 0}, {"gpu_memory_utilization": 1.5},
        {"max_num_seqs": 0}, {"block_size": 0}, {"max_num_seqs": 64, "max_num_batched_tokens": 8}, {"distributed_executor_backend": "ray"},
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(args):
    with pytest.raises(ConfigError):
        config(**args)


def test_a_quantised_checkpoint_is_refused_by_name():
    with pytest.raises(ConfigError, match="gptq"):
        config(hf={"quantization_config": {"quant_method": "gptq"}})


def test_without_chunked_prefill_a_step_holds_the_longest_prompt():
    assert config(enable_chunked_prefill=False).max_num_batched_tokens == 4096


def test_each_choice_has_a_reason():
    _, decisions = resolve(EngineArgs(), HfConfig(HF), CPU, model_dir="/m")
    assert {d.name for d in decisions} == {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype"}
    assert all(d.why for d in decisions)


def test_options_of_older_scripts_that_change_nothing_are_said_to():
    args = EngineArgs(trust_remote_code=True, swap_space=8, disable_custom_all_reduce=True)
    _, decisions = resolve(args, HfConfig(HF), CPU, model_dir="/m")
    said = {d.name: d.why for d in decisions if d.why.startswith("no effect")}
    assert set(said) == set(WITHOUT_EFFECT) == {"trust_remote_code", "swap_space", "disable_custom_all_reduce"}


def test_hf_config_reads_are_strict():
    hf = HfConfig({"a": 1, "b": "x", "c": True, "d": 1.5, "e": None}, "f.json")
    assert (hf.int("a"), hf.str("b"), hf.bool("c"), hf.float("d"), hf.float("a"), hf.int("e", 7)) == (
        1,
        "x",
        True,
        1.5,
        1.0,
        7,
    )
    for read in (
        lambda: hf.int("b"),
        lambda: hf.int("c"),
        lambda: hf.int("d"),
        lambda: hf.int("missing"),
        lambda: hf.str("a"),
    ):
        with pytest.raises(UnsupportedModel, match="f.json"):
            read()
    hf.require("b", "x", "y")
    with pytest.raises(UnsupportedModel, match="'x'.*'z'"):
        hf.require("b", "z")
