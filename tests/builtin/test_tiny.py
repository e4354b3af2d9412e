"""The model that ships: its files, its tokenizer under every reader, and what it answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from training import questions
from training.evaluate import TARGETS, evaluate
from training.vocabulary import MODEL_DIR, TEMPLATE, train_tokenizer

PROBES = (
    "What is the capital of France?",
    "浙江的省会在哪里？",
    "12+30=42, 3.14159 and 1000000",
    "line one\nline two\r\n\n\tindented   spaces  ",
    "emoji 🎉👩‍👩‍👧 and Zoë's café",
    '{"name": "Alice", "age": 30}',
    "混合 mixed 文本，with 标点。",
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
    "e\u0301 composed by NFC",
    "한국어 ไทย עברית",
    "",
    " ",
)
MAX_FILE_BYTES = 20 << 20
SAMPLE_SCALE = 0.035


def test_checksums_match() -> None:
    listed = dict(line.split("  ")[::-1] for line in (MODEL_DIR / "SHA256SUMS").read_text().splitlines())
    present = {p.name for p in MODEL_DIR.iterdir() if p.is_file()} - {"SHA256SUMS", "MODEL_CARD.md"}
    assert set(listed) == present
    for name, digest in listed.items():
        assert hashlib.sha256((MODEL_DIR / name).read_bytes()).hexdigest() == digest, name


def test_card_names_the_shipped_weights() -> None:
    digest = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (MODEL_DIR / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_weights_are_small_enough_to_ship() -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size < MAX_FILE_BYTES


@pytest.mark.parametrize("text", PROBES)
def test_tokenizers_and_transformers_agree(text: str) -> None:
    raw = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = raw.encode(text, add_special_tokens=False).ids
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert raw.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_tokenizer_is_what_the_script_trains(tmp_path: Path) -> None:
    train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert (tmp_path / "tokenizer.json").read_bytes() == (MODEL_DIR / "tokenizer.json").read_bytes()


def test_template_is_the_same_in_both_places() -> None:
    config = json.loads((MODEL_DIR / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == TEMPLATE == (MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    shown = AutoTokenizer.from_pretrained(MODEL_DIR).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert shown == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_config_reads_under_old_and_new_names() -> None:
    raw = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    assert raw["dtype"] == raw["torch_dtype"] == "bfloat16"
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert (config.model_type, config.vocab_size, config.num_hidden_layers) == ("qwen2", 8192, 8)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_answers_reach_the_aims_on_a_sample() -> None:
    found = evaluate(MODEL_DIR, SAMPLE_SCALE, batch_size=64)
    assert found["num_questions"] >= 500
    for name, least in TARGETS.items():
        assert found["figures"][f"total/{name}"]["share"] >= least, (name, found["failures"])


def test_tutorial_prompts_are_answered() -> None:
    found = evaluate(MODEL_DIR, scale=0.0001, batch_size=16)
    wrong = [failure for failure in found["failures"] if failure["group"] in ("tutorial", "plain")]
    assert not wrong


def test_free_text_ends_by_itself() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    for prompt in ("The capital of France is", "Hello, my name is", "The future of AI is", "法国的首都是"):
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**inputs, max_new_tokens=200, do_sample=False)
        assert out[0, -1].item() in (0, 2), tokenizer.decode(out[0])


def test_questions_are_the_same_each_time() -> None:
    assert questions.all_questions(1, 0.01) == questions.all_questions(1, 0.01)
