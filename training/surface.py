"""How people really type: without capitals, without question marks, with a polite word before."""

from __future__ import annotations

import random

PREFIX_EN = ("Hi, ", "Hello, ", "Please tell me: ", "Question: ", "Hey, ", "Excuse me, ", "Quick question: ", "OK, ")
PREFIX_ZH = ("请问", "请问，", "你好，", "我想问，", "你好，请问", "那么，", "问一下，", "好的，")
SUFFIX_EN = (" Thanks!", " please", " Thank you.", " Please answer briefly.")
SUFFIX_ZH = ("谢谢", "请简短回答。", "谢谢！")


def vary(rng: random.Random, text: str, language: str) -> str:
    """`text` as one of the ways in which it might be typed. Half of the time nothing changes."""
    draw = rng.random()
    if draw < 0.5:
        return text
    if draw < 0.62:
        return _no_mark(text)
    if language == "en":
        return _vary_en(rng, text, draw)
    return _vary_zh(rng, text, draw)


def _no_mark(text: str) -> str:
    return text.rstrip("?？。.!！")


def _vary_en(rng: random.Random, text: str, draw: float) -> str:
    if draw < 0.74:
        return text.lower()
    if draw < 0.82:
        return _no_mark(text.lower())
    if draw < 0.93:
        rest = text[0].lower() + text[1:] if text.split(" ")[0] in _SMALL_STARTS else text
        return rng.choice(PREFIX_EN) + rest
    return text + rng.choice(SUFFIX_EN)


def _vary_zh(rng: random.Random, text: str, draw: float) -> str:
    if draw < 0.74:
        return text.replace("？", "?").replace("。", ".")
    if draw < 0.93:
        prefix = rng.choice(PREFIX_ZH)
        return text if text.startswith(("请", "你好")) else prefix + text
    return text + rng.choice(SUFFIX_ZH)


_SMALL_STARTS = frozenset(
    "What What's Which Tell Can Do Name Give Could Where How Who Of In For Please Calculate Count Write".split()
)
