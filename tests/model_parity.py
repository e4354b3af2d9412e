"""Compares quire's models with transformers': tiny random checkpoints, every position's full log-softmax, greedy tokens.

Import it as `model_parity`: pytest puts this folder on the path.
QUIRE_PARITY_POSITIONS   teacher-forced positions a variant; small by default, thousands in a soak
"""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from step_driver import BLOCK_SIZE, Driver, Line, load_runner
from transformers import AutoModelForCausalLM, PretrainedConfig

from quire.core.batch import TokenLogprobs
from quire.core.params import SamplingParams
from quire.runner.model_runner import ModelRunner

POSITIONS = int(os.environ.get("QUIRE_PARITY_POSITIONS", "600"))
MAX_ABS_ERROR = 1e-4  # of a log-probability, fp32
CLEAR_GAP = 2e-4  # where the two best are closer than this, either may win
VOCAB_SIZE = 199
SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GREEDY = SamplingParams(temperature=0.0, logprobs=-1, prompt_logprobs=-1)
NO_PROMPT_LOGPROBS = SamplingParams(temperature=0.0, logprobs=-1)


@dataclass(frozen=True)
class Errors:
    """What a comparison found."""

    positions: int
    max_abs: float
    wrong_tokens: int


def rope(kind: str, theta: float, **values: float) -> dict[str, Any]:
    """Rotary arguments of a transformers config, as the installed version spells them."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else {"rope_type": kind, **values}}


def make_checkpoint(folder: Path, config: PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """Saves a random model to `folder` and returns it. Biases and norms are random too: transformers starts them at 0 and 1."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(folder)
    return model


def spellings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The folder's config.json as transformers 4 writes it (rope_theta, rope_scaling, torch_dtype), and as 5 does."""
    values = json.loads((folder / "config.json").read_text())
    rope = values.pop("rope_parameters", None)
    if rope is None and "rope_theta" in values:
        rope = {
            "rope_type": "default",
            **(values.pop("rope_scaling", None) or {}),
            "rope_theta": values.pop("rope_theta"),
        }
    dtype = values.pop("dtype", None) or values.pop("torch_dtype")
    values.pop("torch_dtype", None)
    old, new = {**values, "torch_dtype": dtype}, {**values, "dtype": dtype}
    old.pop("layer_types", None)
    if rope is not None:
        new["rope_parameters"] = rope
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        old["rope_theta"] = rope["rope_theta"]
        old["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return old, new


def compare(reference: torch.nn.Module, runner: ModelRunner, seed: int = 0, positions: int = POSITIONS) -> Errors:
    """Runs random prompts through the runner, several at once in random chunks, then decodes; every position is compared."""
    draw = random.Random(seed)
    driver = Driver(runner, seed)
    done, worst, wrong = 0, 0.0, 0
    while done < positions:
        lines = [driver.line(_random_tokens(draw, draw.choice((1, 5, 16, 33, 120))), GREEDY) for _ in range(4)]
        _prefill_in_chunks(driver, lines, draw)
        for _ in range(8):
            draw.shuffle(lines)
            driver.step([(line, 1) for line in lines])
        for line in lines:
            expected = _reference_logprobs(reference, line.tokens[:-1])
            got = torch.stack([_dense(entry) for entry in (*line.prompt_logprobs, *line.logprobs)])
            worst = max(worst, float((got - expected).abs().max()))
            wrong += _wrong_tokens(line, expected)
            done += len(expected)
            driver.forget(line)
    return Errors(done, worst, wrong)


def check(folder: Path, config: PretrainedConfig, backends: tuple[str, ...], **runner_args: object) -> None:
    """Makes a checkpoint of `config`, and asserts that quire gives what transformers gives."""
    reference = make_checkpoint(folder, config)
    runner = load_runner(folder, backends=backends, **runner_args)
    errors = compare(reference, runner)
    check_narrow_steps(runner)
    runner.close()
    assert errors.positions >= POSITIONS
    assert errors.max_abs <= MAX_ABS_ERROR
    assert errors.wrong_tokens == 0


def check_narrow_steps(runner: ModelRunner) -> None:
    """Asserts that steps that compute the last layer for each sequence's last token alone give the same bits as those that, for
    prompt log-probabilities, compute it for all."""
    draw = random.Random(1)
    prompts = [_random_tokens(draw, count) for count in (200, 1, 60)]
    narrow, wide = (_answers(runner, prompts, params) for params in (NO_PROMPT_LOGPROBS, GREEDY))
    assert narrow == wide


def _answers(
    runner: ModelRunner, prompts: list[list[int]], params: SamplingParams
) -> list[tuple[list[int], list[TokenLogprobs]]]:
    driver = Driver(runner, seed=2)
    lines = [driver.line(prompt, params) for prompt in prompts]
    before = len(prompts[0]) - 30  # a first chunk; nothing is sampled of it
    driver.step([(lines[0], before), (lines[1], 1), (lines[2], 60)])
    driver.step([(lines[0], 30), (lines[1], 1), (lines[2], 1)])
    for line in lines:
        driver.forget(line)
    driver.step([])
    return [(line.generated, line.logprobs) for line in lines]


def _random_tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(VOCAB_SIZE) for _ in range(count)]


def _prefill_in_chunks(driver: Driver, lines: Sequence[Line], draw: random.Random) -> None:
    """Until every line has its first token; lines that have it decode beside the chunks of the others."""
    while not all(line.generated for line in lines):
        plan = []
        for line in draw.sample(list(lines), len(lines)):
            left = len(line.tokens) - line.computed
            plan.append((line, min(left, draw.choice((1, 3, BLOCK_SIZE, 40)))))
        driver.step(plan)


@torch.inference_mode()
def _reference_logprobs(reference: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """[T, V]: at each position the log-probabilities of the next token."""
    logits: torch.Tensor = reference(torch.tensor([tokens])).logits[0]
    return logits.float().log_softmax(-1)


def _dense(entry: TokenLogprobs) -> torch.Tensor:
    out = torch.full((VOCAB_SIZE,), float("nan"))
    out[entry.token_ids] = torch.tensor(entry.logprobs)
    return out


def _wrong_tokens(line: Line, expected: torch.Tensor) -> int:
    """Generated tokens that are not the reference's most likely ones, where the reference is clear."""
    best = expected[line.num_prompt - 1 :].topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > CLEAR_GAP
    return int((clear & (best.indices[:, 0] != torch.tensor(line.generated))).sum())
