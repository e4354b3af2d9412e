"""Small talk, short definitions, and the many questions to which the honest answer is "I don't know"."""

from __future__ import annotations

import random
import re

from training import grammar, tables, words
from training.ask_places import COUNTRIES, phrase
from training.tables import HELD_OUT, VARIED, Source
from training.turns import Turn, contains

INTENTS = tables.intents()
BY_LANGUAGE = {lang: [intent for intent in INTENTS if intent.language == lang] for lang in tables.LANGUAGES}
TOPICS = tables.topics()
UNKNOWN = tables.sections("unknown")
EXTRAS = tables.sections("extras")
EXTRA_NAMES = {lang: [name for name in EXTRAS if name.endswith(f".{lang}")] for lang in tables.LANGUAGES}
ADMISSIONS = {"en": ("I don't know",), "zh": ("不知道",)}
MEDICAL = re.compile(
    r"headache|medicine|\bsick\b|stomach|\bhurts\b|doctor|\bill today\b|头疼|药|疼|不舒服|生病|失眠|睡不着"
)
USUAL_ANSWER_SHARE = 0.85


def usual(rng: random.Random, answers: tuple[str, ...] | list[str]) -> str:
    """The first answer most of the time, so that greedy decoding has a clear favourite."""
    return answers[0] if rng.random() < USUAL_ANSWER_SHARE else rng.choice(answers)


def small_talk(rng: random.Random, language: str, source: Source, intent: tables.Intent | None = None) -> Turn:
    intent = intent or rng.choice(BY_LANGUAGE[language])
    text = rng.choice(intent.phrases.of(source)) if source != VARIED else _varied_talk(rng, intent)
    return Turn("small_talk", language, text, usual(rng, intent.answers), contains(*intent.marks))


def _varied_talk(rng: random.Random, intent: tables.Intent) -> str:
    text = grammar.varied(rng, f"talk.{intent.name}.{intent.language}", intent.phrases.trained, closed=True)
    return fill(rng, text, intent.language)


def extra(rng: random.Random, language: str, source: Source) -> Turn:
    """What newcomers say besides. Trained on alone: the evaluation does not ask it, so `source` changes nothing."""
    header = rng.choice(EXTRA_NAMES[language])
    lines = EXTRAS[header]
    asked = tuple(line[3:] for line in lines if line.startswith("u: "))
    for _ in range(grammar.MAX_DRAWS):
        text = grammar.expand(rng, rng.choice(asked))
        text = grammar.dressed(rng, text, closed=False) if rng.random() < 0.25 else text
        if not grammar.is_held_out(text):
            break
    answer = next(line[3:] for line in lines if line.startswith("a: "))
    return Turn("extra", language, fill(rng, text, language), answer, contains(answer))


def topic(rng: random.Random, language: str, source: Source, chosen: tables.Topic | None = None) -> Turn:
    chosen = chosen or rng.choice(TOPICS)
    text = phrase(rng, f"topic.{language}", source).format(x=rng.choice(chosen.names[language]))
    definition = chosen.definition[language]
    return Turn("topic", language, text, definition, contains(definition))


def unknown(rng: random.Random, language: str, source: Source) -> Turn:
    if source != HELD_OUT and rng.random() < 0.2:
        text = _unknown_place(rng, language, source)
    else:
        text = fill(rng, _unknown_line(rng, language, source), language)
    section = "medical" if MEDICAL.search(text) else "answer"
    check = {"kind": "unknown", "want": list(ADMISSIONS[language])}
    return Turn("unknown", language, text, usual(rng, UNKNOWN[f"{section}.{language}"]), check)


def _unknown_line(rng: random.Random, language: str, source: Source) -> str:
    section = f"unknown.{language}"
    listed = tables.phrases(UNKNOWN[section]).of(source)
    return grammar.varied(rng, section, listed) if source == VARIED else rng.choice(listed)


def _unknown_place(rng: random.Random, language: str, source: Source) -> str:
    """A question of a known kind about a place, word or thing that does not exist."""
    section = rng.choice(("capital", "country", "dish", "sight", "topic", "continent", "about"))
    name = words.invented(rng, language)
    if language == "zh" and rng.random() < 0.4:
        name += "国"
    return phrase(rng, f"{section}.{language}", source).format(x=name, y=name)


def fill(rng: random.Random, line: str, language: str) -> str:
    """`line` with its slots filled (see the head of data/unknown.txt)."""
    lang = language
    return line.format(
        p=words.person(rng, lang), t=rng.choice(words.THINGS[lang]), t2=rng.choice(words.THINGS[lang]),
        v=rng.choice(words.VERBS[lang]), a=rng.choice(words.ADJECTIVES[lang]), b=rng.choice(words.BODY[lang]),
        o=words.invented(rng, lang), w=words.invented_word(rng), n=rng.randint(1900, 2030),
        c=rng.choice(COUNTRIES).capital[lang], c2=rng.choice(COUNTRIES).capital[lang],
        k=rng.randint(1, 99) if "{k}" in line else 0,
    )  # fmt: skip
