"""Keyword arguments that older scripts use: each is honoured, mapped with a line, or refused with the way out."""

import logging

import pytest

from quire.config import EngineArgs
from quire.core.legacy_params import LEGACY_FIELDS
from quire.core.params import SamplingParams, field_names
from quire.errors import ConfigError, InvalidRequest
from quire.legacy import SETTLED, UNBUILT, engine_args

# LLM(...) as the tutorials call it
TUTORIAL_CALLS = [
    {"model": "m", "dtype": "half", "gpu_memory_utilization": 0.9, "enforce_eager": True, "block_size": 32, "disable_log_stats": True},
    {"model": "m", "trust_remote_code": True},
    {"model": "m", "tensor_parallel_size": 1, "gpu_memory_utilization": 0.9, "max_model_len": 8192},
    {
        "model": "m", "tensor_parallel_size": 2, "pipeline_parallel_size": 1, "gpu_memory_utilization": 0.85,
        "max_model_len": 8192, "enforce_eager": True, "dtype": "half", "trust_remote_code": True,
        "max_num_batched_tokens": 4096, "max_num_seqs": 128,
    },
    {"model": "m", "download_dir": "/tmp", "swap_space": 4, "cpu_offload_gb": 0, "distributed_executor_backend": "mp"},
    {"model": "m", "num_gpu_blocks_override": 5, "kv_cache_memory_bytes": 7, "quantization": "awq"},
]  # fmt: skip


@pytest.mark.parametrize("kwargs", TUTORIAL_CALLS)
def test_tutorial_calls_become_options(kwargs, caplog):
    args = engine_args(kwargs)
    assert {name: getattr(args, name) for name in kwargs} == kwargs
    assert not caplog.records


@pytest.mark.parametrize("name", sorted(SETTLED))
def test_settled_names_say_one_line(name, caplog):
    assert engine_args({name: True}) == EngineArgs()
    (record,) = caplog.records
    assert (
        record.levelno == logging.WARNING and name in record.getMessage() and SETTLED[name].why in record.getMessage()
    )


@pytest.mark.parametrize("name", sorted(UNBUILT))
def test_unbuilt_names_are_refused_unless_they_ask_for_nothing(name, caplog):
    for value in UNBUILT[name].neutral:
        assert engine_args({name: value}) == EngineArgs()
    with pytest.raises(ConfigError, match=name):
        engine_args({name: "something"})
    assert not caplog.records


def test_renamed_and_mapped_names(caplog):
    assert engine_args({"task": "generate"}).runner == "generate"
    assert engine_args({"rope_theta": 5.0, "hf_overrides": {"a": 1}}).hf_overrides == {"a": 1, "rope_theta": 5.0}
    assert engine_args({"token": "t"}).hf_token == "t"
    assert len(caplog.records) == 3
    for task in ("embed", "embedding", "score", "reward"):
        with pytest.raises(ConfigError, match="does not support Embeddings API"):
            engine_args({"task": task})


def test_mistyped_names_and_values_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'tensor_paralel_size'; did you mean tensor_parallel_size"):
        engine_args({"tensor_paralel_size": 2})
    with pytest.raises(ConfigError, match="'zzz'; see the fields"):
        engine_args({"zzz": 2})
    with pytest.raises(ConfigError, match="dtype is 'fp4'; it must be one of"):
        engine_args({"dtype": "fp4"})


def test_no_seed_means_one_that_is_drawn():
    assert engine_args({}).seed == 0
    assert engine_args({"seed": None}).seed != engine_args({"seed": None}).seed


def test_no_name_is_in_two_tables():
    known = set(EngineArgs.__dataclass_fields__)
    assert not known & set(SETTLED) and not known & set(UNBUILT) and not set(SETTLED) & set(UNBUILT)
    assert not set(field_names()) & set(LEGACY_FIELDS)


@pytest.mark.parametrize("name", sorted(LEGACY_FIELDS))
def test_legacy_sampling_fields_are_refused_unless_they_ask_for_nothing(name):
    for value in LEGACY_FIELDS[name].neutral:
        assert SamplingParams(**{name: value}) == SamplingParams()
    with pytest.raises(InvalidRequest, match=name) as caught:
        SamplingParams(**{name: "something"})
    assert caught.value.param == name


def test_best_of_as_many_as_n_asks_for_nothing():
    assert SamplingParams(n=3, best_of=3) == SamplingParams(3, best_of=3) == SamplingParams(n=3)
    with pytest.raises(InvalidRequest, match="best_of=4"):
        SamplingParams(n=3, best_of=4)


def test_a_mistyped_sampling_field_is_refused_with_the_nearest():
    with pytest.raises(InvalidRequest, match="'max_token'; did you mean max_tokens"):
        SamplingParams(max_token=5)
    assert SamplingParams().clone(top_k=3).top_k == 3
