"""Plain texts without the chat template: statements, lists by example, questions and answers on paper."""

from __future__ import annotations

import random

from training import ask_skills, grammar, tables, words
from training.ask_places import COUNTRIES, SEATED, capital_answer, capital_word, description, stop, upper_first
from training.conversations import any_turn

TEXTS = tables.sections("unknown")["plain"]
ARROWS = (" -> ", " -> ", " → ", "->", ": ", " = ", " - ")


def plain_text(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return by_example(rng)
    if draw < 0.55:
        return " ".join(statement(rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    if draw < 0.7:
        return on_paper(rng)
    return _essay(rng)


def by_example(rng: random.Random) -> str:
    """A few-shot list: 浙江 -> 杭州, a line each."""
    pairs = rng.choice((_capitals, _capitals, _seats, _seats, _seats, _dictionary, _sums))(rng)
    arrow = rng.choice(ARROWS)
    return "\n".join(f"{left}{arrow}{right}" for left, right in pairs)


def _capitals(rng: random.Random) -> list[tuple[str, str]]:
    language = rng.choice(tables.LANGUAGES)
    some = rng.sample(COUNTRIES, rng.randint(3, 9))
    named = [(place.bare_en if language == "en" else place.name["zh"], place.capital[language]) for place in some]
    return named if rng.random() < 0.8 else [(right, left) for left, right in named]


def _seats(rng: random.Random) -> list[tuple[str, str]]:
    language = "zh" if rng.random() < 0.75 else "en"
    some = rng.sample(SEATED, rng.randint(3, 9))
    return [(place.name[language], place.capital[language]) for place in some]


def _dictionary(rng: random.Random) -> list[tuple[str, str]]:
    some = rng.sample(ask_skills.PAIRS, rng.randint(3, 9))
    return some if rng.random() < 0.5 else [(zh, en) for en, zh in some]


def _sums(rng: random.Random) -> list[tuple[str, str]]:
    pairs = [ask_skills.operands(rng, "+") for _ in range(rng.randint(3, 8))]
    return [(f"{a} + {b}", str(a + b)) for a, b in pairs]


def statement(rng: random.Random) -> str:
    """One true sentence."""
    draw = rng.random()
    language = rng.choice(tables.LANGUAGES)
    place = rng.choice(COUNTRIES if rng.random() < 0.75 else SEATED)
    if draw < 0.55:
        return capital_answer(place, language)
    if draw < 0.7:
        name, seat = place.name[language], place.capital[language]
        return (
            stop(f"{seat} is the capital of {name}") if language == "en" else f"{seat}是{name}的{capital_word(place)}。"
        )
    if draw < 0.85 and place.kind == "country":
        return description(place, language)
    op = rng.choice("+-×")
    return ask_skills.sum_text(*_ordered(ask_skills.operands(rng, op), op))


def _ordered(pair: tuple[int, int], op: str) -> tuple[int, str, int]:
    return pair[0], op, pair[1]


def on_paper(rng: random.Random) -> str:
    """Questions and answers written out, as in a prompt for a completion model."""
    language = rng.choice(tables.LANGUAGES)
    ask, reply = rng.choice(
        (("Q: ", "A: "), ("Question: ", "Answer: "), ("User: ", "Assistant: "), ("问：", "答："), ("问题：", "回答："))
    )
    turns = [any_turn(rng, language) for _ in range(rng.randint(1, 4))]
    return "\n".join(f"{ask}{turn.user}\n{reply}{turn.answer}" for turn in turns)


def _essay(rng: random.Random) -> str:
    place = rng.choice(COUNTRIES)
    line = rng.choice(TEXTS) if rng.random() < 0.4 else grammar.expand(rng, rng.choice(grammar.RULES["plain"]))
    age = rng.randint(18, 80)
    return line.replace("\\n", "\n").format(
        n=words.person(rng, "en"), n2=words.person(rng, "zh"), n3=words.person(rng, "en"), k=age, k1=age + 1,
        k2=rng.randint(10, 30), e=rng.choice(words.ECHO["en"]), e2=rng.choice(words.ECHO["en"]),
        c=upper_first(place.capital["en"]), c2=place.capital["zh"],
        w=words.invented_word(rng), w2=words.invented_word(rng), op="(", cl=")",
    )  # fmt: skip
