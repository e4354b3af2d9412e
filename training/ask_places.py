"""Questions about countries and Chinese provinces: capitals both ways, food, sights, continents."""

from __future__ import annotations

import random

from training import grammar, tables
from training.tables import VARIED, Source
from training.turns import Turn, contains, one_name

PHRASES = {name: tables.phrases(lines) for name, lines in tables.sections("phrases").items()}
COUNTRIES = tables.countries()
PROVINCES = tables.provinces()
KNOWN_FOOD = [place for place in COUNTRIES + PROVINCES if place.dishes["en"]]
SEATED = [place for place in PROVINCES if place.has_capital]


def phrase(rng: random.Random, name: str, source: Source) -> str:
    """A phrasing of section `name`, its slots open."""
    listed = PHRASES[name].of(source)
    return grammar.varied(rng, name, listed, name.startswith("echo")) if source == VARIED else rng.choice(listed)


def asked_name(rng: random.Random, place: tables.Place, language: str) -> str:
    """The place as a user writes it: with or without the article, short or full Chinese name."""
    if language == "en":
        return place.bare_en if rng.random() < 0.15 else place.name["en"]
    return place.full_name_zh if rng.random() < 0.4 else place.name["zh"]


def stop(sentence: str) -> str:
    """`sentence` with a full stop, unless it ends in one (Washington, D.C.)."""
    return sentence if sentence.endswith(".") else sentence + "."


def capital_answer(place: tables.Place, language: str) -> str:
    name, capital = place.name[language], place.capital[language]
    if place.kind in "ms":
        return _no_capital(place, language)
    if language == "en":
        return stop(f"The capital of {name} is {capital}")
    return f"{name}的{capital_word(place)}是{capital}。"


def capital_word(place: tables.Place) -> str:
    return {"country": "首都", "p": "省会", "r": "首府"}[place.kind]


def _no_capital(place: tables.Place, language: str) -> str:
    name = place.name[language]
    if language == "en":
        kind = "municipality directly under the central government" if place.kind == "m" else "special region"
        return f"{name} is a {kind} of China, so it has no provincial capital."
    return f"{name}是{'直辖市' if place.kind == 'm' else '特别行政区'}，没有省会。"


def capital(rng: random.Random, language: str, source: Source, place: tables.Place | None = None) -> Turn:
    place = place or rng.choice(COUNTRIES)
    section = "capital" if place.kind == "country" else "seat"
    text = phrase(rng, f"{section}.{language}", source).format(x=asked_name(rng, place, language))
    return capital_turn(place, language, text, "capital" if section == "capital" else "province_capital")


def capital_turn(place: tables.Place, language: str, text: str, category: str) -> Turn:
    if not place.has_capital:
        mark = {"en": {"m": "municipality", "s": "special region"}, "zh": {"m": "直辖市", "s": "特别行政区"}}
        return Turn(category, language, text, capital_answer(place, language),
                    contains(mark[language][place.kind]), place)  # fmt: skip
    name = place.capital[language].split(",")[0]
    check = one_name(name, "capital", (place.name[language],))
    return Turn(category, language, text, capital_answer(place, language), check, place)


def province(rng: random.Random, language: str, source: Source) -> Turn:
    """A seat question. Places without one (Beijing, Hong Kong) come up less often."""
    place = rng.choice(PROVINCES if rng.random() < 0.6 else SEATED)
    return capital(rng, language, source, place)


def country_of(rng: random.Random, language: str, source: Source, place: tables.Place | None = None) -> Turn:
    """Which country has this capital?"""
    place = place or rng.choice(COUNTRIES)
    return _reverse(rng, language, source, place, "country")


def province_of(rng: random.Random, language: str, source: Source, place: tables.Place | None = None) -> Turn:
    """Which province has this seat?"""
    return _reverse(rng, language, source, place or rng.choice(SEATED), "province")


def _reverse(rng: random.Random, language: str, source: Source, place: tables.Place, section: str) -> Turn:
    seat = place.capital[language]
    text = phrase(rng, f"{section}.{language}", source).format(y=seat)
    name = place.name[language]
    answer = (
        stop(f"{seat} is the capital of {name}") if language == "en" else f"{seat}是{name}的{capital_word(place)}。"
    )
    check = one_name(name.removeprefix("the "), "place", (seat,))
    return Turn(f"{section}_of_capital", language, text, answer, check, place)


def known_for(place: tables.Place, what: str, language: str) -> str:
    """The answer to "what is good to eat (`what` "dish") or see ("sight") in `place`?"."""
    name = place.name[language]
    if what == "dish":
        dishes = place.dishes[language]
        return f"Famous dishes of {name} include {dishes}." if language == "en" else f"{name}的美食有{dishes}。"
    sights = place.sights[language]
    return f"Famous sights in {name} include {sights}." if language == "en" else f"{name}的著名景点有{sights}。"


def food_or_sight(rng: random.Random, language: str, source: Source, place: tables.Place | None = None) -> Turn:
    place, what = place or rng.choice(KNOWN_FOOD), rng.choice(("dish", "sight"))
    text = phrase(rng, f"{what}.{language}", source).format(x=asked_name(rng, place, language))
    return _known_turn(place, what, language, text, what)


def follow_up(rng: random.Random, language: str, source: Source, place: tables.Place, what: str) -> Turn:
    """ "What is good to eat there?", after `place` was spoken of."""
    text = phrase(rng, f"{what}_there.{language}", source)
    return _known_turn(place, what, language, text, "follow_up")


def _known_turn(place: tables.Place, what: str, language: str, text: str, category: str) -> Turn:
    wanted = (place.dishes if what == "dish" else place.sights)[language]
    return Turn(category, language, text, known_for(place, what, language), contains(wanted), place)


def and_place(rng: random.Random, language: str, source: Source, place: tables.Place) -> Turn:
    """ "And Germany?", after another country's capital was asked."""
    text = phrase(rng, f"and.{language}", source).format(x=asked_name(rng, place, language))
    return capital_turn(place, language, text, "and_place")


def continent(rng: random.Random, language: str, source: Source, place: tables.Place | None = None) -> Turn:
    place = place or rng.choice(COUNTRIES)
    text = phrase(rng, f"continent.{language}", source).format(x=asked_name(rng, place, language))
    name, part = place.name[language], place.continent[language]
    answer = f"{upper_first(name)} is in {part}." if language == "en" else f"{name}在{part}。"
    return Turn("continent", language, text, answer, contains(f"in {part}" if language == "en" else part), place)


def about(rng: random.Random, language: str, source: Source, place: tables.Place | None = None) -> Turn:
    place = place or rng.choice(COUNTRIES)
    text = phrase(rng, f"about.{language}", source).format(x=asked_name(rng, place, language))
    check = one_name(place.capital[language].split(",")[0], "capital", (place.name[language],))
    return Turn("about", language, text, description(place, language), check, place)


def description(place: tables.Place, language: str) -> str:
    """Two or three sentences about a country."""
    name, seat, part = place.name[language], place.capital[language], place.continent[language]
    if language == "en":
        text = stop(f"{upper_first(name)} is a country in {part}. Its capital is {seat}")
        return text + (f" It is known for {place.sights['en']}." if place.sights["en"] else "")
    known = f"那里的著名景点有{place.sights['zh']}。" if place.sights["zh"] else ""
    return f"{name}是{part}的国家，首都是{seat}。{known}"


def upper_first(text: str) -> str:
    return text[0].upper() + text[1:]
