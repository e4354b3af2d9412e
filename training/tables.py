"""The facts and phrasings in `training/data`, read once into plain objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DATA = Path(__file__).parent / "data"
CONTINENTS = {
    "A": ("Asia", "亚洲"),
    "E": ("Europe", "欧洲"),
    "F": ("Africa", "非洲"),
    "N": ("North America", "北美洲"),
    "S": ("South America", "南美洲"),
    "O": ("Oceania", "大洋洲"),
}
LANGUAGES = ("en", "zh")
HELD_OUT_SHARE = 0.2
Source = Literal["trained", "held_out", "varied"]
TRAINED: Source = "trained"  # a listed phrasing that training sees
HELD_OUT: Source = "held_out"  # a listed phrasing that training never sees
VARIED: Source = "varied"  # what training is made of: listed phrasings and those of the grammar, dressed up


@dataclass(frozen=True)
class Place:
    """A country, or a provincial-level division of China.

    `kind` is "country", "p" (province), "r" (autonomous region), "m" (municipality) or "s" (special region).
    `dishes` and `sights` map a language to a ready list in words; empty where the table has none.
    """

    kind: str
    name: dict[str, str]
    capital: dict[str, str]
    full_name_zh: str
    continent: dict[str, str]
    dishes: dict[str, str]
    sights: dict[str, str]

    @property
    def bare_en(self) -> str:
        """The English name without its article."""
        return self.name["en"].removeprefix("the ")

    @property
    def has_capital(self) -> bool:
        return self.kind not in "ms"


@dataclass(frozen=True)
class Phrases:
    """Phrasings of one question: those trained on, and those held out for the evaluation."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, source: Source) -> tuple[str, ...]:
        """The listed phrasings of `source`; VARIED starts from those that are trained on."""
        return self.held_out if source == HELD_OUT else self.trained


@dataclass(frozen=True)
class Intent:
    """One kind of small talk: ways to say it, answers (the usual one first), and what marks a right answer."""

    name: str
    language: str
    phrases: Phrases
    answers: tuple[str, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    names: dict[str, tuple[str, ...]]
    definition: dict[str, str]


def rows(name: str) -> list[list[str]]:
    """The rows of `data/<name>.tsv`, split at '|', comments left out."""
    lines = (DATA / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines if line and not line.startswith("#")]


def sections(name: str) -> dict[str, list[str]]:
    """The lines of `data/<name>.txt` by their `[section]`."""
    found: dict[str, list[str]] = {}
    for line in (DATA / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            found[line[1:-1]] = []
        elif line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def phrases(lines: list[str]) -> Phrases:
    held = tuple(line[2:] for line in lines if line.startswith("~ "))
    return Phrases(tuple(line for line in lines if not line.startswith("~ ")), held)


def countries() -> list[Place]:
    famous = {row[0]: row[1:] for row in rows("famous")}
    found = []
    for en, capital, zh, capital_zh, letter in rows("countries"):
        dishes, sights, dishes_zh, sights_zh = famous.get(en, [""] * 4)
        continent = dict(zip(LANGUAGES, CONTINENTS[letter]))
        found.append(
            Place(
                "country", _pair(en, zh), _pair(capital, capital_zh), zh, continent,
                _pair(dishes, dishes_zh), _pair(sights, sights_zh),
            )
        )  # fmt: skip
    return found


def provinces() -> list[Place]:
    return [
        Place(kind, _pair(en, zh), _pair(seat, seat_zh), full, _pair("Asia", "亚洲"), _pair(d, dz), _pair(s, sz))
        for en, seat, zh, full, seat_zh, kind, d, s, dz, sz in rows("provinces")
    ]


def intents() -> list[Intent]:
    return [_intent(header, lines) for header, lines in sections("dialogue").items()]


def topics() -> list[Topic]:
    return [
        Topic({"en": tuple(en.split(";")), "zh": tuple(zh.split(";"))}, _pair(text, text_zh))
        for en, text, zh, text_zh in rows("topics")
    ]


def _pair(en: str, zh: str) -> dict[str, str]:
    return {"en": en, "zh": zh}


def _intent(header: str, lines: list[str]) -> Intent:
    name, language = header.split(".")
    by_key = {key: tuple(line[3:] for line in lines if line.startswith(f"{key}: ")) for key in "uhak"}
    answers = tuple(answer.replace("\\n", "\n") for answer in by_key["a"])
    said = by_key["u"] + by_key["h"]
    num_held_out = max(len(by_key["h"]), math.ceil(len(said) * HELD_OUT_SHARE))
    chosen = Phrases(said[:-num_held_out], said[-num_held_out:])
    return Intent(name, language, chosen, answers, tuple(by_key["k"][0].split("|")))
