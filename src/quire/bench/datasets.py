"""Prompts to send: made up (chat, random, shared beginnings) or read from files, with the output length that each asks for."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quire.bench.options import ServeBenchArgs
from quire.errors import ConfigError
from quire.text.tokenizer import Tokenizer

SIGMA = 0.8  # of the logarithm of chat lengths; the mean is exp(SIGMA² / 2) times the median
SHAREGPT_MIN_TOKENS = 4
SHAREGPT_MAX_PROMPT_TOKENS = 1024
SHAREGPT_MAX_TOTAL_TOKENS = 2048
MAX_FITTING_ROUNDS = 8
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part place "
    "case week company system program question work number night point home water room mother area money story fact month lot right "
    "study book eye job word business issue side kind head house service friend father power hour game line end member law car city "
    "name team minute idea body back parent face level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education river stone paper light winter music garden letter window market bridge"
).split()


@dataclass(frozen=True)
class Sample:
    """One request. prompt: text, or messages of a chat; max_tokens: output tokens to ask for; num_tokens: of the prompt, about."""

    prompt: str | list[dict[str, Any]]
    max_tokens: int
    num_tokens: int


class Texts(Protocol):
    """Makes and measures texts in tokens of the model."""

    def make(self, rng: random.Random, num_tokens: int) -> str:
        """A text without meaning, of that many tokens."""

    def count(self, text: str) -> int:
        """Tokens of a text."""


class TokenizedTexts:
    """Exact, with the model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.added_tokens]

    def make(self, rng: random.Random, num_tokens: int) -> str:
        """Random tokens; as tokens join when their text is read again, it is cut and lengthened until it fits."""
        text = ""
        ids: list[int] = []
        for _ in range(MAX_FITTING_ROUNDS):
            ids = ids[:num_tokens] + rng.choices(self._ids, k=max(0, num_tokens - len(ids)))
            text = self._tokenizer.decode(ids)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == num_tokens:
                break
        return text

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))


class EstimatedTexts:
    """Without a tokenizer: words, of which the server has said how many tokens they take."""

    def __init__(self, tokens_per_word: float) -> None:
        self._tokens_per_word = tokens_per_word

    def make(self, rng: random.Random, num_tokens: int) -> str:
        """Random words."""
        return " ".join(rng.choices(WORDS, k=max(1, round(num_tokens / self._tokens_per_word))))

    def count(self, text: str) -> int:
        """By the number of words."""
        return max(1, round(len(text.split()) * self._tokens_per_word))


def samples(args: ServeBenchArgs, texts: Texts) -> list[Sample]:
    """--num-prompts requests of the data set, the same for the same seed. Raises ConfigError for a file that cannot be used."""
    rng = random.Random(args.seed)
    makers = {
        "chat": _chat, "random": _random, "sharegpt": _sharegpt, "custom": _custom,
        "prefix_repetition": _repeated, "shared-prefix": _repeated,
    }  # fmt: skip
    found = list(makers[args.dataset_name](args, texts, rng))
    if not found:
        raise ConfigError(f"--dataset-path {args.dataset_path} holds no request that can be used")
    return [found[i % len(found)] for i in range(args.num_prompts)]


def _chat(args: ServeBenchArgs, texts: Texts, rng: random.Random) -> Iterator[Sample]:
    """Lengths as in ShareGPT's chats: log-normal."""
    for _ in range(args.num_prompts):
        num_in, num_out = (_log_normal(rng, mean) for mean in (args.chat_input_len, args.chat_output_len))
        yield Sample(texts.make(rng, num_in), num_out, num_in)


def _log_normal(rng: random.Random, mean: int) -> int:
    return max(4, round(mean * rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)))


def _random(args: ServeBenchArgs, texts: Texts, rng: random.Random) -> Iterator[Sample]:
    prefix = texts.make(rng, args.random_prefix_len) + " " if args.random_prefix_len else ""
    for _ in range(args.num_prompts):
        num_in, num_out = (
            _around(rng, n, args.random_range_ratio) for n in (args.random_input_len, args.random_output_len)
        )
        yield Sample(prefix + texts.make(rng, num_in), num_out, args.random_prefix_len + num_in)


def _around(rng: random.Random, length: int, ratio: float) -> int:
    return max(1, rng.randint(int(length * (1 - ratio)), int(length * (1 + ratio))))


def _repeated(args: ServeBenchArgs, texts: Texts, rng: random.Random) -> Iterator[Sample]:
    """Each beginning is used equally often; their order is shuffled."""
    num_prefix, num_suffix = args.prefix_repetition_prefix_len, args.prefix_repetition_suffix_len
    prefixes = [texts.make(rng, num_prefix) if num_prefix else "" for _ in range(args.prefix_repetition_num_prefixes)]
    order = [prefixes[i % len(prefixes)] for i in range(args.num_prompts)]
    rng.shuffle(order)
    for prefix in order:
        prompt = f"{prefix} {texts.make(rng, num_suffix)}".strip()
        yield Sample(prompt, args.prefix_repetition_output_len, num_prefix + num_suffix)


def _sharegpt(args: ServeBenchArgs, texts: Texts, rng: random.Random) -> Iterator[Sample]:
    """First questions and the lengths of their answers, in random order; those of odd lengths are left out, as vLLM does."""
    talks = [turns for entry in _read_json(args) if len(turns := _turns(entry)) >= 2]
    rng.shuffle(talks)
    num_found = 0
    for question, answer, *_ in talks:
        num_in = texts.count(question)
        num_out = args.sharegpt_output_len or texts.count(answer)
        if num_found < args.num_prompts and _usual(num_in, num_out, args.sharegpt_output_len is not None):
            num_found += 1
            yield Sample(question, num_out, num_in)


def _usual(num_in: int, num_out: int, fixed: bool) -> bool:
    long_enough = num_in >= SHAREGPT_MIN_TOKENS and (fixed or num_out >= SHAREGPT_MIN_TOKENS)
    return long_enough and num_in <= SHAREGPT_MAX_PROMPT_TOKENS and num_in + num_out <= SHAREGPT_MAX_TOTAL_TOKENS


def _turns(entry: Any) -> list[str]:
    turns = entry.get("conversations", []) if isinstance(entry, dict) else []
    return [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]


def _custom(args: ServeBenchArgs, texts: Texts, rng: random.Random) -> Iterator[Sample]:
    for number, line in enumerate(_read(args).splitlines(), 1):
        if not line.strip():
            continue
        entry = _parse(line, f"{args.dataset_path}, line {number}")
        prompt = entry.get("prompt", entry.get("messages")) if isinstance(entry, dict) else None
        if not isinstance(prompt, str | list):
            raise ConfigError(
                f'{args.dataset_path}, line {number}: {{"prompt": "..."}} or {{"messages": [...]}} is needed'
            )
        num_out = entry.get("output_tokens") if args.custom_output_len == -1 else args.custom_output_len
        if not isinstance(num_out, int) or num_out < 1:
            raise ConfigError(
                f"{args.dataset_path}, line {number}: output_tokens is {num_out!r}; or give --custom-output-len"
            )
        yield Sample(prompt, num_out, texts.count(prompt) if isinstance(prompt, str) else 0)


def _read_json(args: ServeBenchArgs) -> list[Any]:
    found = _parse(_read(args), str(args.dataset_path))
    if not isinstance(found, list):
        raise ConfigError(f"--dataset-path {args.dataset_path}: a JSON list of conversations is needed")
    return found


def _read(args: ServeBenchArgs) -> str:
    try:
        return Path(args.dataset_path or "").expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset-path {args.dataset_path}: {error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
