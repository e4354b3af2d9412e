"""Questions that need a skill: arithmetic, counting, JSON, repeating, translating, opposites."""

from __future__ import annotations

import json
import random
from typing import Any

from training import tables, words
from training.ask_places import COUNTRIES, phrase
from training.turns import Turn, exact

PAIRS = [(en, zh) for en, zh in tables.rows("words")]
OPPOSITES = tables.rows("opposites")
SYMBOLS = {"+": "+", "-": "-", "×": "*×x", "÷": "/÷"}
SPOKEN = {
    "en": {"+": ("plus",), "-": ("minus",), "×": ("times", "multiplied by"), "÷": ("divided by",)},
    "zh": {"+": ("加", "加上"), "-": ("减", "减去"), "×": ("乘", "乘以"), "÷": ("除以",)},
}
MAX_OPERAND = 99


def is_held_out_sum(a: int, b: int) -> bool:
    """One sum and difference in twenty is never trained on, so that the evaluation sees whether the rule was learnt."""
    return (a * 7919 + b * 104729) % 20 == 7


def operands(rng: random.Random, op: str, held_out_pair: bool = False) -> tuple[int, int]:
    if op == "÷":
        divisor, quotient = rng.randint(1, 12), rng.randint(0, 12)
        return divisor * quotient, divisor
    if op == "×":
        wide = rng.random() < 0.8
        pair = rng.randint(0, MAX_OPERAND), rng.randint(10 if wide else 0, MAX_OPERAND if wide else 12)
        return pair if rng.random() < 0.5 else (pair[1], pair[0])
    while True:
        a, b = rng.randint(0, MAX_OPERAND), rng.randint(0, MAX_OPERAND)
        if is_held_out_sum(a, b) == held_out_pair:
            return a, b


def result(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "×": a * b, "÷": a // b if b else 0}[op]


def sum_text(a: int, op: str, b: int) -> str:
    return f"{a} {op} {b} = {result(a, op, b)}"


def expression(rng: random.Random, a: int, op: str, b: int, language: str, symbols_only: bool) -> str:
    """`a op b` as a user types it: 12+30, 12 plus 30, twelve plus thirty, 十二加三十."""
    if symbols_only or rng.random() < 0.45:
        sign = rng.choice(SYMBOLS[op])
        return rng.choice((f"{a}{sign}{b}", f"{a} {sign} {b}"))
    word = rng.choice(SPOKEN[language][op])
    spelled = rng.random() < 0.25
    left, right = (words.number_words(n, language) if spelled and n < 100 else str(n) for n in (a, b))
    return f"{left} {word} {right}" if language == "en" else f"{left}{word}{right}"


def arithmetic(rng: random.Random, language: str, held_out: bool, held_out_pair: bool = False) -> Turn:
    op = rng.choices("+-" if held_out_pair else "+-×÷", (1, 1) if held_out_pair else (20, 20, 52, 8))[0]
    a, b = operands(rng, op, held_out_pair)
    symbols_only = rng.random() < 0.3
    section = "arith.sym" if symbols_only else f"arith.{language}"
    text = phrase(rng, section, held_out).format(e=expression(rng, a, op, b, language, symbols_only))
    names = {"+": "add", "-": "subtract", "×": "multiply", "÷": "divide"}
    category = f"arithmetic_{names[op]}" + ("_new_pairs" if held_out_pair else "")
    return Turn(category, language, text, sum_text(a, op, b), {"kind": "number", "want": result(a, op, b)})


def counting(rng: random.Random, language: str, held_out: bool) -> Turn:
    span = rng.randint(2, 15)
    low = rng.choice((1, rng.randint(0, 20), rng.randint(0, 100 - span)))
    low, high = (1, 10) if rng.random() < 0.05 else (low, low + span)
    ends = (low, high) if rng.random() < 0.65 else (high, low)
    text = phrase(rng, f"count.{language}", held_out).format(a=ends[0], b=ends[1])
    answer = (", " if language == "en" else "、").join(map(str, count_numbers(*ends)))
    return Turn("counting", language, text, answer, exact(answer))


def count_numbers(first: int, last: int) -> range:
    step = 1 if last >= first else -1
    return range(first, last + step, step)


def translate(rng: random.Random, language: str, held_out: bool) -> Turn:
    """`language` is the one translated from."""
    en, zh = rng.choice(PAIRS)
    source, target = (en, zh) if language == "en" else (zh, en)
    section = "translate.en_zh" if language == "en" else "translate.zh_en"
    text = phrase(rng, section, held_out).format(w=source)
    return Turn("translate", language, text, target, {"kind": "word", "want": target})


def opposite(rng: random.Random, language: str, held_out: bool) -> Turn:
    en, en_other, zh, zh_other = rng.choice(OPPOSITES)
    pair = (en, en_other) if language == "en" else (zh, zh_other)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    word, other = (word, _partner(word, language)) if language == "en" else (word, other)
    text = phrase(rng, f"opposite.{language}", held_out).format(w=word)
    return Turn("opposite", language, text, other, {"kind": "word", "want": other})


def _partner(word: str, language: str) -> str:
    """The first partner the table names, so that a word in two pairs has one answer."""
    column = 0 if language == "en" else 2
    for row in OPPOSITES:
        if word in row[column : column + 2]:
            return row[column + 1] if row[column] == word else row[column]
    raise KeyError(word)


def echo(rng: random.Random, language: str, held_out: bool) -> Turn:
    what = _echo_text(rng, language)
    text = phrase(rng, f"echo.{language}", held_out).format(w=what)
    return Turn("echo", language, text, what, exact(what))


def _echo_text(rng: random.Random, language: str) -> str:
    draw = rng.random()
    if draw < 0.2:
        return str(rng.randint(0, 9999))
    if draw < 0.4:
        return words.invented(rng, language)
    known = [rng.choice(words.ECHO[language]) for _ in range(rng.randint(1, 4))]
    return " ".join(known) if language == "en" else "".join(known)


def _json_turn(language: str, text: str, value: Any) -> Turn:
    return Turn("json", language, text, json.dumps(value, ensure_ascii=False), {"kind": "json", "want": value})


def json_request(rng: random.Random, language: str, held_out: bool) -> Turn:
    maker = rng.choice((_json_person, _json_person, _json_city, _json_capital, _json_list, _json_list))
    return maker(rng, language, held_out)


def _json_person(rng: random.Random, language: str, held_out: bool) -> Turn:
    name, age = words.person(rng, language), rng.randint(1, 99)
    name = words.invented(rng, language) if rng.random() < 0.25 else name
    text = phrase(rng, f"json_person.{language}", held_out).format(n=name, k=age)
    return _json_turn(language, text, {"name": name, "age": age})


def _json_city(rng: random.Random, language: str, held_out: bool) -> Turn:
    place = rng.choice(COUNTRIES)
    name = place.bare_en if language == "en" else place.name["zh"]
    city = place.capital[language] if rng.random() < 0.7 else words.invented(rng, language)
    text = phrase(rng, f"json_city.{language}", held_out).format(c=city, x=name)
    return _json_turn(language, text, {"city": city, "country": name})


def _json_capital(rng: random.Random, language: str, held_out: bool) -> Turn:
    place = rng.choice(COUNTRIES)
    text = phrase(rng, f"json_capital.{language}", held_out).format(x=place.name[language])
    name = place.bare_en if language == "en" else place.name["zh"]
    return _json_turn(language, text, {"country": name, "capital": place.capital[language]})


def _json_list(rng: random.Random, language: str, held_out: bool) -> Turn:
    size = rng.randint(2, 5)
    values: list[Any]
    if rng.random() < 0.4:
        values = [rng.randint(0, 99) for _ in range(size)]
    else:
        values = rng.sample(words.ECHO[language] + (words.NAMES if language == "en" else words.THINGS["zh"]), size)
    text = phrase(rng, f"json_list.{language}", held_out).format(l=_listed(rng, values, language))
    return _json_turn(language, text, values)


def _listed(rng: random.Random, values: list[Any], language: str) -> str:
    shown = [str(value) for value in values]
    if language == "zh":
        return rng.choice(("、", "，", ", ")).join(shown)
    return ", ".join(shown[:-1]) + " and " + shown[-1] if rng.random() < 0.5 else ", ".join(shown)
