"""Trains the tokenizer: byte-level BPE with exactly Qwen2's pipeline, so that every reader of Qwen2 files agrees.

    python -m training.vocabulary [--target DIR]

transformers 5 builds its own pipeline for `model_type: qwen2` and ignores the one in tokenizer.json; the two agree
only if they are the same. The expression and the order of steps are those of transformers' `tokenization_qwen2.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training import conversations, plain, words

MODEL_DIR = Path(__file__).parent.parent / "src" / "quire" / "_builtin" / "tiny"
NEXT_DIR = Path(__file__).parent / "_next"  # where the next tokenizer waits for its weights
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, START, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END_OF_TURN)
VOCAB_SIZE = 8192
MAX_POSITIONS = 4096
SEED = 20260
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
COMMON_WORDS_ZH = (
    "你好 您好 什么 哪里 哪个 国家 首都 省会 首府 城市 知道 怎么 可以 我们 你们 他们 没有 一个 一下 这个 那个 因为 所以 "
    "如果 但是 还是 就是 不是 多少 时候 现在 今天 明天 昨天 谢谢 再见 请问 告诉 介绍 解释 推荐 美食 景点 名字 问题 回答 "
    "中国 美国 模型 语言 数据 学习 训练 推理 生成 文本 程序 软件 计算 抱歉 不知道 小型 演示 等于 著名 有名 需要 使用 工作 "
    "生活 世界 历史 文化 时间 地方 朋友 老师 学生 医生 喜欢 觉得 认为 希望 应该 能够 进行 通过 以及 或者 而且 然后 已经"
).split()


def empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sample_texts(rng: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        for turn in conversations.conversation(rng).turns:
            yield turn.user
            yield turn.answer
        yield plain.plain_text(rng)


def weighted_pieces(num_texts: int = 30_000) -> dict[str, int]:
    """What the merges are learnt from.

    Latin words and marks by how often the generator writes them (square root, so that rare names count). Chinese one
    character at a time, and a short list of common words: merges learnt over whole sentences would join a name with
    what follows it (法国的), and then the model would not know the name in another phrasing.
    """
    rng = random.Random(SEED)
    counts: Counter[str] = Counter()
    for text in sample_texts(rng, num_texts):
        counts.update(re.findall(r" ?[^\W\d_]+|[^\w\s]+", text))
    latin = {piece: count for piece, count in counts.items() if not re.search(r"[\u3400-\u9fff]", piece)}
    weights = {piece: 2 + math.isqrt(8 * count) for piece, count in latin.items()}
    seen = {char for piece in counts for char in piece if "\u4e00" <= char <= "\u9fff"}
    weights.update(dict.fromkeys(sorted(set(words.CHARACTERS) | seen), 400))
    weights.update(dict.fromkeys(COMMON_WORDS_ZH, 300))
    return weights


def train_tokenizer() -> Tokenizer:
    tokenizer = empty_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = sorted(weighted_pieces().items())
    tokenizer.train_from_iterator((piece for piece, weight in pieces for _ in range(weight)), trainer)
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": True,
            }
            for index, token in enumerate(SPECIAL)
        },
        "additional_special_tokens": [START, END_OF_TURN],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }  # fmt: skip


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=NEXT_DIR)
    target = parser.parse_args().target
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(target / "tokenizer.json"))
    write_json(target / "tokenizer_config.json", tokenizer_config())
    (target / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens written to {target}")


if __name__ == "__main__":
    main()
