"""`quire plan`: the engine's own arithmetic, without the engine and without a GPU."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import quire.cli.plan as plan_command
from quire.cli.main import main
from quire.config import BUILTIN_MODEL, EngineConfig, MachineFacts
from quire.hub import resolve_model
from quire.layers.decoder import DecoderConfig
from quire.runner.memory_plan import GIB, plan_memory

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import shapes  # noqa: E402

TINY = resolve_model(BUILTIN_MODEL)
TINY_PARAMETERS = 8_397_056


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    return folder


def printed(capsys, *words: str) -> str:
    code = main(["plan", *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def figure(text: str, name: str) -> float:
    return float(re.search(rf"  {name} +([\d.]+) GiB", text).group(1))


def test_a_plan_for_a_card_is_what_the_engine_would_plan_there(capsys, checkpoint):
    text = printed(
        capsys, str(checkpoint), "--gpu-memory", "24", "--max-num-seqs", "64", "--max-num-batched-tokens", "2048"
    )
    c = json.loads((checkpoint / "config.json").read_text())
    sizes = DecoderConfig(
        c["vocab_size"], c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["num_attention_heads"],
        c["num_key_value_heads"], c.get("head_dim", c["hidden_size"] // c["num_attention_heads"]), 4096, c["tie_word_embeddings"],
    )  # fmt: skip
    config = EngineConfig(str(checkpoint), "tiny", "cuda", "bfloat16", 4096, 16, 64, 2048)
    facts = MachineFacts("cuda", "", 24 * GIB, 24 * GIB - plan_command.CONTEXT_BYTES)
    cos_sin = 4096 * sizes.head_dim * 4
    plan = plan_memory(config, sizes, 2 * TINY_PARAMETERS + cos_sin, facts, graphs=True)
    assert f"({plan.num_blocks} blocks of 16: {plan.kv_tokens:,} tokens)" in text
    assert figure(text, "peak") == pytest.approx(plan.total_bytes / GIB, abs=0.01)
    assert figure(text, "graphs") == pytest.approx(plan.graph_bytes / GIB, abs=0.01)
    assert "max_num_seqs = 64\n" in text, "what the user gave has no reason beside it"


def test_cards_have_names_and_the_engines_flags_count(capsys, checkpoint):
    h200 = printed(capsys, str(checkpoint), "--gpu-memory", "H200")
    assert "139.77 GiB" in h200 and "max_num_seqs = 1024   (a device of 70 GB or more)" in h200
    half = printed(
        capsys, str(checkpoint), "--gpu-memory", "h200", "--gpu-memory-utilization", "0.45", "--enforce-eager"
    )
    assert figure(half, "KV cache") < 0.55 * figure(h200, "KV cache") and figure(half, "graphs") == 0
    serving = printed(capsys, str(checkpoint), "--gpu-memory", "h200", "--serving")
    assert "max_num_batched_tokens = 8192" in serving


def test_without_a_card_it_is_this_machine(capsys):
    text = printed(capsys, "--device", "cpu")
    assert "max_num_seqs = 64" in text and figure(text, "graphs") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-memory", "rtx9"], "known cards are b200"),
        (["--gpu-memory", "8", "--device", "cpu"], "leave it out with --device cpu"),
        (["--gpu-memory", "700MiB"], "the KV cache does not fit in the memory of a GPU of 0.6836 GiB"),
        (["--gpu-memry", "8"], "did you mean --gpu-memory?"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, checkpoint, words, message):
    assert main(["plan", str(checkpoint), *words]) == 2
    assert message in capsys.readouterr().err


def test_headers_of_weights_are_checked(capsys, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main(["plan", str(checkpoint), "--gpu-memory", "8"]) == 2
    assert "is truncated" in capsys.readouterr().err


def test_of_a_model_on_a_hub_only_the_config_is_fetched(capsys, monkeypatch, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    asked = []
    monkeypatch.setattr(
        "quire.hub.resolve.resolve_model", lambda name, **options: asked.append((name, options)) or checkpoint
    )
    text = printed(capsys, "org/model", "--gpu-memory", "8")
    assert asked[0][0] == "org/model" and asked[0][1]["load_format"] == "dummy"
    assert figure(text, "weights") == pytest.approx((2 * TINY_PARAMETERS) / GIB, abs=0.01)


MEASURED = json.loads((BENCHMARKS / "results" / "h200-memory-plan.json").read_text())["rows"]


@pytest.mark.parametrize("row", MEASURED, ids=[f"{r['shape']} {r['options']}" for r in MEASURED])
def test_plans_are_within_three_percent_of_peaks_that_were_measured(capsys, tmp_path, row):
    """Ten combinations of models and flags on an H200, each under every kind of load."""
    folder = shapes.write_config(row["shape"], tmp_path)
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in {"max_model_len": 16_384, **row["options"]}.items()
    ]
    text = printed(capsys, folder, "--gpu-memory", "h200", "--load-format", "dummy", *flags)
    context = plan_command.CONTEXT_BYTES / GIB
    assert figure(text, "peak") + context == pytest.approx(row["peak_gib"] + row["in_use_before_gib"], rel=0.03)
    assert row["planned_gib"] == pytest.approx(row["peak_gib"], rel=0.03), "what the engine itself had planned there"
