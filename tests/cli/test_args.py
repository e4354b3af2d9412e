"""Flags as people type them."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from quire.cli.args import Parser, parse
from quire.config import EngineArgs, option
from quire.errors import ConfigError


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
    ],
)
def test_spellings(argv: list[str], expected: dict[str, Any]):
    assert read(*argv) == EngineArgs(**expected)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-num-seq", "2"], "did you mean --max-num-seqs"),
        (["--tensor-paralel-size", "2"], "did you mean --tensor-parallel-size"),
        (["--task", "generate"], "--runner"),
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
