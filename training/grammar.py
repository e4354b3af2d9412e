"""Many more ways to ask, for training alone: a small grammar, words of courtesy, slips of the pen.

Held-out phrasings stay out: a phrasing that holds one, whatever its case, spaces and last mark, is drawn again.
"""

from __future__ import annotations

import random
import re

from training import tables

RULES = tables.sections("grammar")
LISTED_SHARE = 0.35
DRESSED_SHARE = 0.4
MAX_DRAWS = 50

PREFIX_EN = (
    "Hi, ", "Hello, ", "Hello! ", "Hi! ", "Hey, ", "Please tell me: ", "Question: ", "Excuse me, ", "Quick question: ",
    "OK, ", "Well, ", "So, ", "Good morning. ", "Hi there, ", "Thanks. ", "Great. ", "Now, ", "Sorry, ", "One more: ",
    "I have a question. ", "Dear assistant, ", "Hey quire, ", "Alright, ", "Just wondering, ", "By the way, ",
    "Can you help me? ", "Next question: ", "Hello, I have a question: ", "I need help: ", "Hm, ", "Thank you. ",
    "Something else: ", "New question. ", "Please help. ", "Let me ask: ", "Good evening, ", "And ", "But ", "1. ",
)  # fmt: skip
PREFIX_ZH = (
    "请问", "请问，", "你好，", "我想问，", "你好，请问", "那么，", "问一下，", "好的，", "您好，", "你好！", "不好意思，", "打扰一下，",
    "麻烦问一下，", "有个问题：", "问题：", "那", "嗯，", "谢谢。", "下一个问题：", "我有一个问题：", "想请教一下，", "哈喽，", "对了，",
    "另外，", "小助手，", "再问一个：", "帮个忙，", "早上好，", "1. ", "请教：", "老师好，", "求助：", "话说",
)  # fmt: skip
SUFFIX_EN = (
    " Thanks!", " Thank you.", " Please answer briefly.", " I need it for school.", " Just curious.", " :)", " Be brief.",
    " It is for my homework.", " Answer in one sentence.", " Please.", " I forgot.", " Help me, please.", " Thanks",
    " Keep it short.", " I really want to know.", " Can you help?", " You know it, right?", " It's urgent.", " ...",
)  # fmt: skip
SUFFIX_ZH = (
    "谢谢", "请简短回答。", "谢谢！", "多谢。", "我忘了。", "请回答。", "我很好奇。", "麻烦了。", "快告诉我。", "请用一句话回答。", "急！",
    "作业要用。", "帮帮我。", "我真的想知道。", "拜托了。", "你知道吗？", "请帮忙。",
)  # fmt: skip
_DROPPED_EN = frozenset("the a an is of to me please do you in are".split())
_NAME = re.compile(r"<([\w.]+)>")
_CHOICE = re.compile(r"\(([^()]*)\)")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def expand(rng: random.Random, line: str) -> str:
    """One sentence of the grammar: <rule> and (a|b) replaced at random; {slots} stay."""
    while found := _NAME.search(line):
        line = line[: found.start()] + rng.choice(RULES[found[1]]) + line[found.end() :]
    while found := _CHOICE.search(line):
        line = line[: found.start()] + rng.choice(found[1].split("|")) + line[found.end() :]
    line = re.sub(" +", " ", line).strip()
    return line[0].upper() + line[1:] if line and line[0].isascii() and rng.random() < 0.75 else line


def plainly(text: str) -> str:
    """`text` as the watch compares it: small letters, no spaces, no mark at the end."""
    return re.sub(r"\s+", "", text.lower()).rstrip("?？.。!！")


def _held_out() -> tuple[str, ...]:
    listed = [*tables.sections("phrases").values(), *tables.sections("unknown").values()]
    found = {plainly(text) for lines in listed for text in tables.phrases(lines).held_out}
    found |= {plainly(text) for intent in tables.intents() for text in intent.phrases.held_out}
    return tuple(sorted(found - {"{e}=", "{e}"}))


HELD_OUT_TEXTS = _held_out()


def is_held_out(text: str) -> bool:
    """Whether `text`, a phrasing with its slots open, holds a held-out one."""
    shown = plainly(text)
    return any(held in shown for held in HELD_OUT_TEXTS)


def varied(rng: random.Random, section: str, listed: tuple[str, ...] = (), closed: bool = False) -> str:
    """A phrasing of `section` for training, its slots open. `closed`: nothing may be put after it (Repeat: {w})."""
    for _ in range(MAX_DRAWS):
        rule = RULES.get(section)
        from_list = rule is None or (listed and rng.random() < LISTED_SHARE)
        text = rng.choice(listed) if from_list else expand(rng, rng.choice(rule or listed))
        if rng.random() < DRESSED_SHARE:
            text = dressed(rng, text, closed)
        if text and not is_held_out(text):
            return text
    raise ValueError(f"{section}: {MAX_DRAWS} phrasings in a row hold a held-out one; give it more of its own")


def dressed(rng: random.Random, text: str, closed: bool) -> str:
    """`text` with a word of courtesy before or after it, or a slip of the pen."""
    chinese, draw = _CHINESE.search(text) is not None, rng.random()
    if draw < 0.55:
        small = text if chinese or text.startswith(("I ", "I'", "{")) else text[0].lower() + text[1:]
        prefix = rng.choice(PREFIX_ZH if chinese else PREFIX_EN)
        return prefix + (text if prefix.endswith(". ") or rng.random() < 0.3 else small)
    if draw < 0.75:
        return text if closed or text.endswith("}") else text + rng.choice(SUFFIX_ZH if chinese else SUFFIX_EN)
    return _drop_small_word(rng, text) if draw < 0.87 else _slip(rng, text)


def _drop_small_word(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    small = [at for at, word in enumerate(words) if word.lower() in _DROPPED_EN and at > 0]
    if small:
        del words[rng.choice(small)]
    return " ".join(words)


def _slip(rng: random.Random, text: str) -> str:
    """Two letters of a longer English word swapped, or one of them lost. Slots are left alone."""
    words = text.split(" ")
    long = [at for at, word in enumerate(words) if len(word) > 4 and word.isascii() and word.isalpha()]
    if not long:
        return text
    chosen = rng.choice(long)
    word, at = words[chosen], rng.randint(1, len(words[chosen]) - 3)
    words[chosen] = word[:at] + (word[at + 1] + word[at] if rng.random() < 0.6 else word[at]) + word[at + 2 :]
    return " ".join(words)
