"""Small talk, short definitions, and the many questions to which the honest answer is "I don't know"."""

from __future__ import annotations

import random
import re

from training import tables, words
from training.ask_places import COUNTRIES, PHRASES, phrase
from training.turns import Turn, contains

INTENTS = tables.intents()
BY_LANGUAGE = {lang: [intent for intent in INTENTS if intent.language == lang] for lang in tables.LANGUAGES}
TOPICS = tables.topics()
UNKNOWN = tables.sections("unknown")
ADMISSIONS = {"en": ("I don't know",), "zh": ("不知道",)}
MEDICAL = re.compile(r"headache|medicine|\bsick\b|stomach|\bhurts\b|doctor|\bill today\b|头疼|药|疼|不舒服|生病")
USUAL_ANSWER_SHARE = 0.85


def usual(rng: random.Random, answers: tuple[str, ...] | list[str]) -> str:
    """The first answer most of the time, so that greedy decoding has a clear favourite."""
    return answers[0] if rng.random() < USUAL_ANSWER_SHARE else rng.choice(answers)


def small_talk(rng: random.Random, language: str, held_out: bool, intent: tables.Intent | None = None) -> Turn:
    intent = intent or rng.choice(BY_LANGUAGE[language])
    text = rng.choice(intent.phrases.of(held_out))
    return Turn("small_talk", language, text, usual(rng, intent.answers), contains(*intent.marks))


def topic(rng: random.Random, language: str, held_out: bool, chosen: tables.Topic | None = None) -> Turn:
    chosen = chosen or rng.choice(TOPICS)
    text = phrase(rng, f"topic.{language}", held_out).format(x=rng.choice(chosen.names[language]))
    definition = chosen.definition[language]
    return Turn("topic", language, text, definition, contains(definition))


def unknown(rng: random.Random, language: str, held_out: bool) -> Turn:
    if not held_out and rng.random() < 0.2:
        text = _unknown_place(rng, language)
    else:
        lines = tables.phrases(UNKNOWN[f"unknown.{language}"])
        text = fill(rng, rng.choice(lines.of(held_out)), language)
    section = "medical" if MEDICAL.search(text) else "answer"
    check = {"kind": "unknown", "want": list(ADMISSIONS[language])}
    return Turn("unknown", language, text, usual(rng, UNKNOWN[f"{section}.{language}"]), check)


def _unknown_place(rng: random.Random, language: str) -> str:
    """A question of a known kind about a place, word or thing that does not exist."""
    section = rng.choice(("capital", "country", "dish", "sight", "topic", "continent", "about"))
    name = words.invented(rng, language)
    if language == "zh" and rng.random() < 0.4:
        name += "国"
    return rng.choice(PHRASES[f"{section}.{language}"].trained).format(x=name, y=name)


def fill(rng: random.Random, line: str, language: str) -> str:
    """`line` with its slots filled (see the head of data/unknown.txt)."""
    lang = language
    return line.format(
        p=words.person(rng, lang), t=rng.choice(words.THINGS[lang]), t2=rng.choice(words.THINGS[lang]),
        v=rng.choice(words.VERBS[lang]), a=rng.choice(words.ADJECTIVES[lang]), b=rng.choice(words.BODY[lang]),
        o=words.invented(rng, lang), w=words.invented_word(rng), n=rng.randint(1900, 2030),
        c=rng.choice(COUNTRIES).capital[lang], c2=rng.choice(COUNTRIES).capital[lang],
    )  # fmt: skip
