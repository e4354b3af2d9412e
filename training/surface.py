"""How people really type: without capitals, without question marks, in the marks of the other language."""

from __future__ import annotations

import random


def vary(rng: random.Random, text: str, language: str) -> str:
    """`text` as one of the ways in which it might be typed. Half of the time nothing changes."""
    draw = rng.random()
    if draw < 0.55:
        return text
    if draw < 0.7:
        return _no_mark(text)
    if language == "zh":
        return text.replace("？", "?").replace("。", ".").replace("，", rng.choice((",", "，", " ")))
    if draw < 0.84:
        return text.lower()
    if draw < 0.96:
        return _no_mark(text.lower())
    return text.upper() if draw < 0.97 else text + rng.choice((" !", "!", " ?"))


def _no_mark(text: str) -> str:
    return text.rstrip("?？。.!！")
