"""Questions that need a skill: arithmetic, counting, JSON, repeating, translating, opposites."""

from __future__ import annotations

import json
import random
from typing import Any

from training import grammar, tables, words
from training.ask_places import COUNTRIES, phrase
from training.tables import VARIED, Source
from training.turns import Turn, exact

PAIRS = [(en, zh) for en, zh in tables.rows("words")]
OPPOSITES = tables.rows("opposites")
SYMBOLS = {"+": "+", "-": "-", "×": "*×x", "÷": "/÷"}
SPOKEN = {
    "en": {"+": ("plus",), "-": ("minus",), "×": ("times", "multiplied by"), "÷": ("divided by",)},
    "zh": {"+": ("加", "加上"), "-": ("减", "减去"), "×": ("乘", "乘以"), "÷": ("除以",)},
}
MAX_OPERAND = 99
WIDE_SHARE = 0.14
BEYOND = {
    "en": "Sorry, I don't know. I can only calculate with small whole numbers, one step at a time.",
    "zh": "抱歉，我不知道。我只会算小的整数，一次一步。",
}
FIELD_FORMS = {
    "en": ("{} = {}", "{}: {}", "{} {}", "{} is {}", '"{}": {}'),
    "zh": ("{}是{}", "{}：{}", "{}为{}", "{} {}"),
}
JSON_KEYS = {
    "en": "a b c x y key value id count price color title city name age job active size type status email user".split(),
    "zh": "姓名 年龄 城市 国家 颜色 价格 数量 编号 职业 类型 a b x y id".split(),
}


def is_held_out_sum(a: int, b: int) -> bool:
    """One sum and difference in twenty is never trained on, so that the evaluation sees whether the rule was learnt."""
    return (a * 7919 + b * 104729) % 20 == 7


def operands(rng: random.Random, op: str, new_pair: bool = False) -> tuple[int, int]:
    if op == "÷":
        divisor, quotient = rng.randint(1, 12), rng.randint(0, 12)
        return divisor * quotient, divisor
    if op == "×":
        wide = rng.random() < 0.8
        pair = rng.randint(0, MAX_OPERAND), rng.randint(10 if wide else 0, MAX_OPERAND if wide else 12)
        return pair if rng.random() < 0.5 else (pair[1], pair[0])
    while True:
        a, b = rng.randint(0, MAX_OPERAND), rng.randint(0, MAX_OPERAND)
        if is_held_out_sum(a, b) == new_pair:
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


def arithmetic(rng: random.Random, language: str, source: Source, new_pair: bool = False) -> Turn:
    if source == VARIED and rng.random() < WIDE_SHARE:
        return _beyond(rng, language) if rng.random() < 0.2 else _wide_sum(rng, language)
    op = rng.choices("+-" if new_pair else "+-×÷", (1, 1) if new_pair else (20, 20, 52, 8))[0]
    a, b = operands(rng, op, new_pair)
    symbols_only = rng.random() < 0.3
    section = "arith.sym" if symbols_only else f"arith.{language}"
    text = phrase(rng, section, source).format(e=expression(rng, a, op, b, language, symbols_only))
    names = {"+": "add", "-": "subtract", "×": "multiply", "÷": "divide"}
    category = f"arithmetic_{names[op]}" + ("_new_pairs" if new_pair else "")
    return Turn(category, language, text, sum_text(a, op, b), {"kind": "number", "want": result(a, op, b)})


def _wide_sum(rng: random.Random, language: str) -> Turn:
    """Sums and differences of numbers to 999: a bonus for those who try them, not part of the evaluation."""
    op, wide = rng.choice("+-"), rng.randint(100, 999)
    narrow = rng.randint(0, 999) if rng.random() < 0.7 else rng.randint(0, 99)
    a, b = (wide, narrow) if rng.random() < 0.6 else (narrow, wide)
    text = phrase(rng, rng.choice(("arith.sym", f"arith.{language}")), VARIED)
    asked = text.format(e=expression(rng, a, op, b, language, rng.random() < 0.6))
    return Turn("arithmetic_wide", language, asked, sum_text(a, op, b), {"kind": "number", "want": result(a, op, b)})


def _beyond(rng: random.Random, language: str) -> Turn:
    """A calculation that this model must not pretend to do: decimals, powers, large numbers, several steps."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(1, 9)
    large, larger = rng.randint(1000, 99_999_999), rng.randint(100, 9_999_999)
    sign = rng.choice("+-*/×")
    shown = rng.choice(
        (
            f"{a}.{c}{sign}{b}", f"{b} {sign} {a}.{c}", f"{a}^{c}", f"{large}{sign}{larger}", f"{large} {sign} {b}",
            f"{a}+{b}*{c}", f"({a}+{b})*{c}", f"{a}{sign}{b}{sign}{c}", f"sqrt({a})", f"{a}% of {large}", f"{a}!",
            f"{a * 7 + 100} {sign} {larger}", f"{a * c * b + 100}*{b}", f"{a * b + 101}×{c}", f"{a}.{c} + {b}.{c}", f"{c}x + {a} = {b}", f"log({a})", f"{a}/{b}+{c}", f"{a * (c + 1) + 1}/{c + 1}", f"{a}/0",
        )
    )  # fmt: skip
    text = phrase(rng, rng.choice(("arith.sym", f"arith.{language}")), VARIED).format(e=shown)
    return Turn("arithmetic_beyond", language, text, BEYOND[language], {"kind": "any", "want": [BEYOND[language]]})


def counting(rng: random.Random, language: str, source: Source) -> Turn:
    if source == VARIED and rng.random() < 0.25:
        return _counting_from_one(rng, language)
    span = rng.randint(2, 15)
    low = rng.choice((1, rng.randint(0, 20), rng.randint(0, 100 - span)))
    low, high = (1, 10) if rng.random() < 0.05 else (low, low + span)
    ends = (low, high) if rng.random() < 0.65 else (high, low)
    text = phrase(rng, f"count.{language}", source).format(a=ends[0], b=ends[1])
    answer = (", " if language == "en" else "、").join(map(str, count_numbers(*ends)))
    return Turn("counting", language, text, answer, exact(answer))


def _counting_from_one(rng: random.Random, language: str) -> Turn:
    """ "Count to ten", "count down from 5"."""
    down, last = rng.random() < 0.35, rng.randint(2, 20)
    shown = words.number_words(last, language) if rng.random() < 0.35 else str(last)
    section = f"count_{'down' if down else 'one'}.{language}"
    text = grammar.varied(rng, section).format(n=shown)
    numbers = count_numbers(last, 1) if down else count_numbers(1, last)
    answer = (", " if language == "en" else "、").join(map(str, numbers))
    return Turn("counting", language, text, answer, exact(answer))


def count_numbers(first: int, last: int) -> range:
    step = 1 if last >= first else -1
    return range(first, last + step, step)


def translate(rng: random.Random, language: str, source: Source) -> Turn:
    """`language` is the one translated from."""
    en, zh = rng.choice(PAIRS)
    word, target = (en, zh) if language == "en" else (zh, en)
    section = "translate.en_zh" if language == "en" else "translate.zh_en"
    text = phrase(rng, section, source).format(w=word)
    return Turn("translate", language, text, target, {"kind": "word", "want": target})


def opposite(rng: random.Random, language: str, source: Source) -> Turn:
    en, en_other, zh, zh_other = rng.choice(OPPOSITES)
    pair = (en, en_other) if language == "en" else (zh, zh_other)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    word, other = (word, _partner(word, language)) if language == "en" else (word, other)
    text = phrase(rng, f"opposite.{language}", source).format(w=word)
    return Turn("opposite", language, text, other, {"kind": "word", "want": other})


def _partner(word: str, language: str) -> str:
    """The first partner the table names, so that a word in two pairs has one answer."""
    column = 0 if language == "en" else 2
    for row in OPPOSITES:
        if word in row[column : column + 2]:
            return row[column + 1] if row[column] == word else row[column]
    raise KeyError(word)


def echo(rng: random.Random, language: str, source: Source) -> Turn:
    what = _any_text(rng, language) if source == VARIED else _echo_text(rng, language)
    text = phrase(rng, f"echo.{language}", source).format(w=what)
    return Turn("echo", language, text, what, exact(what))


def _echo_text(rng: random.Random, language: str) -> str:
    draw = rng.random()
    if draw < 0.2:
        return str(rng.randint(0, 9999))
    if draw < 0.4:
        return words.invented(rng, language)
    known = [rng.choice(words.ECHO[language]) for _ in range(rng.randint(1, 4))]
    return " ".join(known) if language == "en" else "".join(known)


def _any_text(rng: random.Random, language: str) -> str:
    """Something to copy: what the evaluation asks for, or letters, signs, names and sentences at random."""
    draw = rng.random()
    if draw < 0.4:
        return _echo_text(rng, language)
    if draw < 0.55:
        return words.invented(rng, language) + (words.invented(rng, language) if rng.random() < 0.3 else "")
    if draw < 0.7:
        return words.scribble(rng, language)
    if draw < 0.8:
        return words.person(rng, language)
    if draw < 0.85:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ0123456789-_") for _ in range(6))
    some = rng.choices(words.ECHO[language] + words.THINGS[language] + words.ADJECTIVES[language], k=rng.randint(1, 7))
    text = " ".join(some) if language == "en" else "".join(some)
    return text.capitalize() + rng.choice(("", "", "!", ".", "?")) if language == "en" else text


def _json_turn(language: str, text: str, value: Any) -> Turn:
    return Turn("json", language, text, json.dumps(value, ensure_ascii=False), {"kind": "json", "want": value})


def json_request(rng: random.Random, language: str, source: Source) -> Turn:
    if source == VARIED and rng.random() < 0.2:
        return _json_any(rng, language)
    maker = rng.choice((_json_person, _json_person, _json_city, _json_capital, _json_list, _json_list))
    return maker(rng, language, source)


def _json_person(rng: random.Random, language: str, source: Source) -> Turn:
    name, age = words.person(rng, language), rng.randint(1, 99)
    name = words.invented(rng, language) if rng.random() < 0.25 else name
    text = phrase(rng, f"json_person.{language}", source).format(n=name, k=age)
    return _json_turn(language, text, {"name": name, "age": age})


def _json_any(rng: random.Random, language: str) -> Turn:
    """An object of one to four fields of any names, written out in the question."""
    keys = rng.sample(JSON_KEYS[language], rng.randint(1, 4))
    value = {key: _json_value(rng, language) for key in keys}
    form = rng.choice(FIELD_FORMS[language])
    shown = [form.format(key, str(v).lower() if isinstance(v, bool) else v) for key, v in value.items()]
    text = grammar.varied(rng, f"json_any.{language}", closed=True)
    return _json_turn(language, text.format(f=_listed(rng, shown, language)), value)


def _json_value(rng: random.Random, language: str) -> Any:
    draw = rng.random()
    if draw < 0.4:
        return rng.randint(0, 999)
    if draw < 0.5:
        return rng.random() < 0.5
    return rng.choice(words.ECHO[language]) if draw < 0.7 else words.person(rng, language).split(" ")[0]


def _json_city(rng: random.Random, language: str, source: Source) -> Turn:
    place = rng.choice(COUNTRIES)
    name = place.bare_en if language == "en" else place.name["zh"]
    city = place.capital[language] if rng.random() < 0.7 else words.invented(rng, language)
    text = phrase(rng, f"json_city.{language}", source).format(c=city, x=name)
    return _json_turn(language, text, {"city": city, "country": name})


def _json_capital(rng: random.Random, language: str, source: Source) -> Turn:
    place = rng.choice(COUNTRIES)
    text = phrase(rng, f"json_capital.{language}", source).format(x=place.name[language])
    name = place.bare_en if language == "en" else place.name["zh"]
    return _json_turn(language, text, {"country": name, "capital": place.capital[language]})


def _json_list(rng: random.Random, language: str, source: Source) -> Turn:
    size = rng.randint(2, 5)
    values: list[Any]
    if rng.random() < 0.4:
        values = [rng.randint(0, 99) for _ in range(size)]
    else:
        values = rng.sample(words.ECHO[language] + (words.NAMES if language == "en" else words.THINGS["zh"]), size)
    text = phrase(rng, f"json_list.{language}", source).format(l=_listed(rng, values, language))
    return _json_turn(language, text, values)


def _listed(rng: random.Random, values: list[Any], language: str) -> str:
    shown = [str(value) for value in values]
    if language == "zh":
        return rng.choice(("、", "，", ", ")).join(shown)
    return ", ".join(shown[:-1]) + " and " + shown[-1] if rng.random() < 0.5 else ", ".join(shown)
