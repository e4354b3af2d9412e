"""`quire bench startup`: real starts of the bundled model, and what is made of them."""

import json
import os

from quire.bench.startup import StartupArgs, run, table
from quire.cli.main import main
from quire.config import EngineArgs


def test_a_start_is_timed_by_phases(tmp_path, capfd):
    out = tmp_path / "startup.json"
    code = main(
        [
            "bench",
            "startup",
            "--device",
            "cpu",
            "--num-iters-warm",
            "0",
            "--output-json",
            str(out),
            "--max-model-len",
            "256",
        ]
    )
    assert code == 0
    (phases,) = json.loads(out.read_text())["cold"]
    total = phases.pop("first token after")
    whole = {name: seconds for name, seconds in phases.items() if not name.startswith(" ")}
    assert list(whole)[:2] == ["Python and its command line", "import torch"] and whole["import torch"] > 0.1
    assert abs(sum(whole.values()) - total) < 0.05, "phases add up to the whole"
    assert 0 <= phases["  weights"] <= whole["LLM(): config, weights, KV cache"]
    printed = capfd.readouterr().out
    assert "cold, s" in printed and f"{total:10.2f}" in printed


def test_the_fastest_start_of_each_kind_is_shown():
    cold = [{"a": 1.0, "first token after": 3.0}, {"a": 2.0, "first token after": 2.5}]
    warm = [{"a": 0.5, "b": 0.25, "first token after": 0.75}]
    lines = table(cold, warm).splitlines()
    assert [line.split() for line in lines] == [
        ["phase", "cold,", "s", "warm,", "s"], ["a", "2.00", "0.50"], ["first", "token", "after", "2.50", "0.75"], ["b", "-", "0.25"],
    ]  # fmt: skip


def test_a_start_that_fails_is_an_error(tmp_path, capfd):
    args = EngineArgs(device="cpu", max_model_len=10**6)
    try:
        run(args, StartupArgs())
    except Exception as error:
        assert "a start failed with exit code 1" in str(error)
    else:
        raise AssertionError("a model length that does not exist was taken")
    assert "max_model_len 1000000 is above" in capfd.readouterr().err
    assert os.environ.get("TRITON_CACHE_DIR") != str(tmp_path)


def test_numbers_of_starts_are_checked(capsys):
    assert main(["bench", "startup", "--num-iters-cold", "0"]) == 2
    assert "num_iters_cold must be at least 1" in capsys.readouterr().err
