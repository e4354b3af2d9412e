"""Words to fill slots with: people, things, invented names, numbers in words."""

from __future__ import annotations

import random

from training import tables

_LISTS = tables.sections("unknown")
THINGS = {"en": _LISTS["t.en"][0].split(), "zh": _LISTS["t.zh"][0].split()}
VERBS = {"en": _LISTS["v.en"][0].split(), "zh": _LISTS["v.zh"][0].split()}
ADJECTIVES = {"en": _LISTS["a.en"][0].split(), "zh": _LISTS["a.zh"][0].split()}
BODY = {"en": _LISTS["b.en"][0].split(), "zh": _LISTS["b.zh"][0].split()}
NAMES = _LISTS["name.en"][0].split()
SURNAMES = _LISTS["surname.zh"][0].split()
GIVEN = _LISTS["given.zh"][0].split()
ECHO = {"en": _LISTS["echo.en"][0].split(), "zh": _LISTS["echo.zh"][0].split()}

_ONSETS = "b bl br c cl d dr f fl g gl gr h j k kr l m n p pl qu r s sk sn st t tr v w x z zh th".split()
_VOWELS = "a e i o u ee oo ai au or ar ia".split()
_CODAS = ["", "", "", "n", "m", "r", "l", "s", "k", "t", "x", "nd", "rg", "th"]
_ENDINGS = ["", "", "", "ia", "land", "stan", "burg", "ton", "ova", "ville"]

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_DIGITS_ZH = "零一二三四五六七八九"


def common_characters() -> list[str]:
    """The 3,755 most used Chinese characters: level 1 of GB 2312 (rows 16 to 55)."""
    found = []
    for row in range(16, 56):
        for cell in range(1, 95):
            try:
                found.append(bytes((row + 0xA0, cell + 0xA0)).decode("gb2312"))
            except UnicodeDecodeError:
                continue
    return found


CHARACTERS = common_characters()


def person(rng: random.Random, language: str) -> str:
    if language == "zh":
        return rng.choice(SURNAMES) + rng.choice(GIVEN)
    name = rng.choice(NAMES)
    return name if rng.random() < 0.6 else f"{name} {rng.choice(NAMES)}"


def invented(rng: random.Random, language: str) -> str:
    """A name that means nothing, such as Blorvia."""
    if language == "zh":
        return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(2, 4)))
    return invented_word(rng).capitalize() + rng.choice(_ENDINGS)


def scribble(rng: random.Random, language: str) -> str:
    """Letters or characters without a sense, to be copied one by one."""
    if language == "zh":
        return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, 8)))
    return " ".join(invented_word(rng) for _ in range(rng.randint(1, 4)))


def invented_word(rng: random.Random) -> str:
    syllables = rng.randint(1, 3)
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)


def number_words(value: int, language: str) -> str:
    """`value` (0 to 99) in words: forty-two, 四十二."""
    if language == "en":
        if value < 20:
            return _UNITS[value]
        ten, unit = _TENS[value // 10 - 2], value % 10
        return f"{ten}-{_UNITS[unit]}" if unit else ten
    if value < 10:
        return _DIGITS_ZH[value]
    ten, unit = value // 10, value % 10
    return ("" if ten == 1 else _DIGITS_ZH[ten]) + "十" + (_DIGITS_ZH[unit] if unit else "")
