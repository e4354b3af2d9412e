"""Flags as people type them."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from quire.cli.args import Parser, parse
from quire.config import EngineArgs, option
from quire.errors import ConfigError
from quire.server.options import ServerArgs


@dataclass
class Extra:
    api_key: list[str] = field(default_factory=list, metadata={"help": "repeatable"})
    port: int = option(8000, "port")


def read(*argv: str) -> EngineArgs:
    return parse(Parser(prog="quire test"), argv, [EngineArgs])[0][0]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["Qwen/Qwen2.5-7B"], {"model": "Qwen/Qwen2.5-7B"}),
        (["--model", "m"], {"model": "m"}),
        (["--max-num-seqs", "2"], {"max_num_seqs": 2}),
        (["--max_num_seqs", "2"], {"max_num_seqs": 2}),
        (["--max_num_seqs=2"], {"max_num_seqs": 2}),
        (["-tp", "2"], {"tensor_parallel_size": 2}),
        (["--enforce-eager"], {"enforce_eager": True}),
        (["--enforce_eager", "true", "m"], {"enforce_eager": True, "model": "m"}),
        (["--enforce-eager", "m"], {"enforce_eager": True, "model": "m"}),
        (["m", "--enforce-eager", "False"], {"enforce_eager": False, "model": "m"}),
        (["--enforce-eager=no"], {"enforce_eager": False}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--no_enable_prefix_caching"], {"enable_prefix_caching": False}),
        (["--swap-space=1"], {"swap_space": 1.0}),
        (["--max-model-len", "16k"], {"max_model_len": "16k"}),
        (["--hf-overrides", '{"a": 1}'], {"hf_overrides": {"a": 1}}),
        (["--gpu-memory-utilization", "0.8", "./m/"], {"gpu_memory_utilization": 0.8, "model": "./m/"}),
        (["--disable-log-requests", "m"], {"model": "m"}),
        (["m", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"], {"model": "m"}),
        (["m", "--enable-reasoning", "--reasoning_parser=deepseek_r1"], {"model": "m"}),
        (["--task=generate", "--kv-cache-dtype", "auto", "m"], {"model": "m"}),
    ],
)
def test_spellings(argv: list[str], expected: dict[str, Any]):
    assert read(*argv) == EngineArgs(**expected)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-num-seq", "2"], "did you mean --max-num-seqs"),
        (["--tensor-paralel-size", "2"], "did you mean --tensor-parallel-size"),
        (["--task", "embed"], "--runner"),
        (["--task"], "--runner"),
        (["m", "--kv-cache-dtype", "fp8"], "the model's dtype"),
        (["m", "--tool-call-parser", "pythonic"], "chat template tells"),
        (["m", "--reasoning-parser=granite"], "<think> and </think>"),
        (["--max-num-seqs", "two"], "two"),
        (["--dtype", "int3"], "int3"),
        (["--hf-overrides", "[1]"], "not a JSON object"),
        (["--enforce-eager=perhaps"], "perhaps"),
        (["a", "--model", "b"], "two models"),
        (["a", "b"], "unknown argument b"),
        (["--config", "/nonexistent.yaml"], "nonexistent"),
    ],
)
def test_wrong_flags_are_refused_with_the_way_out(argv: list[str], words: str):
    with pytest.raises(ConfigError, match=words):
        read(*argv)


def test_config_file_gives_flags_and_the_command_line_wins(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: from-file\nmax_num_seqs: 7\nenforce-eager: true\nhf_overrides: {a: 1}\n")
    args = read("--config", str(path), "--max-num-seqs", "3")
    assert (args.model, args.max_num_seqs, args.enforce_eager, args.hf_overrides) == ("from-file", 3, True, {"a": 1})
    assert read("m", "--config", str(path)).model == "m"
    path.write_text("no_such_flag: 1\n")
    with pytest.raises(ConfigError, match="--no-such-flag"):
        read("--config", str(path))
    path.write_text("dtype:\n")
    with pytest.raises(ConfigError, match="dtype has no value"):
        read("--config", str(path))
    path.write_text("dtype: half\n")
    with pytest.raises(ConfigError, match="given 2 times"):
        read("--config", str(path), f"--config={path}")
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="flag: value"):
        read("--config", str(path))


def test_repeatable_flags_and_two_tables():
    (engine, extra), _ = parse(
        Parser(prog="t"), ["m", "--api-key", "a", "--api-key", "b", "--port", "9"], [EngineArgs, Extra]
    )
    assert (engine.model, extra.api_key, extra.port) == ("m", ["a", "b"], 9)


def test_a_list_flag_never_swallows_the_model_in_silence():
    (engine, extra), _ = parse(Parser(prog="t"), ["m", "--api-key", "a", "b"], [EngineArgs, Extra])
    assert (engine.model, extra.api_key) == ("m", ["a", "b"])
    with pytest.raises(ConfigError, match="put the model before"):
        parse(Parser(prog="t"), ["--api-key", "a", "m"], [EngineArgs, Extra])


# Lines that tutorials of this field have people type, word for word but for the program's name.
TUTORIAL_LINES = {
    "Qwen/Qwen2-0.5B-Instruct --chat-template ./examples/template_chatml.jinja --served-model-name Qwen --trust-remote-code "
    "--tensor-parallel-size 1": {
        "model": "Qwen/Qwen2-0.5B-Instruct", "chat_template": "./examples/template_chatml.jinja",
        "served_model_name": ["Qwen"], "trust_remote_code": True, "tensor_parallel_size": 1,
    },
    "/path/to/model --served-model-name model-name --max-model-len 16384 --gpu-memory-utilization 0.8 --max-num-seqs 2 "
    "--tensor-parallel-size 2 --enforce-eager --swap-space=1": {
        "model": "/path/to/model", "served_model_name": ["model-name"], "max_model_len": "16384",
        "gpu_memory_utilization": 0.8, "max_num_seqs": 2, "tensor_parallel_size": 2, "enforce_eager": True, "swap_space": 1.0,
    },
    "/home/aistudio/script/model/deepseek-Qwen2.5-7B/ --served-model-name Qwen2.5:0.5B": {
        "model": "/home/aistudio/script/model/deepseek-Qwen2.5-7B/", "served_model_name": ["Qwen2.5:0.5B"],
    },
    "./qwq-32b-q5_k_m.gguf --served-model-name QwQ:32B --max-model-len 6384 --max-num-seqs 2 --gpu-memory-utilization 0.8": {
        "model": "./qwq-32b-q5_k_m.gguf", "max_model_len": "6384",
    },
    "org/embeddings --runner pooling --convert embed --dtype half --max-model-len 32768 --enforce-eager --trust-remote-code "
    "--disable-custom-all-reduce --gpu-memory-utilization 0.9 --port 8000": {
        "runner": "pooling", "convert": "embed", "dtype": "half", "disable_custom_all_reduce": True, "port": 8000,
    },
    "-tp 1 -pp 1 --block-size 32 --quantization awq --download-dir /models --max-num-batched-tokens 4096 --cpu-offload-gb 4 "
    "--distributed-executor-backend mp --model m": {
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "block_size": 32, "quantization": "awq",
        "download_dir": "/models", "max_num_batched_tokens": 4096, "cpu_offload_gb": 4.0,
        "distributed_executor_backend": "mp", "model": "m",
    },
}  # fmt: skip


@pytest.mark.parametrize("line", TUTORIAL_LINES)
def test_lines_of_tutorials_are_understood(line: str):
    (engine, server), _ = parse(Parser(prog="quire serve"), line.split(), [EngineArgs, ServerArgs])
    found = {**vars(engine), **vars(server)}
    expected = TUTORIAL_LINES[line]
    assert {name: found[name] for name in expected} == expected
