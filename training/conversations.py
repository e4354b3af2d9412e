"""Conversations: turns of many kinds in one history, with follow-ups that need it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from training import ask_places, ask_skills, ask_talk, grammar, surface
from training.ask_places import COUNTRIES, KNOWN_FOOD, PHRASES, SEATED, phrase
from training.tables import VARIED, Source
from training.turns import Turn, contains

Maker = Callable[[random.Random, str, Source], Turn]
MAKERS: tuple[tuple[Maker, float], ...] = (
    (ask_places.capital, 0.13),
    (ask_places.country_of, 0.07),
    (ask_places.province, 0.06),
    (ask_places.province_of, 0.03),
    (ask_places.food_or_sight, 0.05),
    (ask_places.continent, 0.03),
    (ask_places.about, 0.06),
    (ask_skills.arithmetic, 0.34),
    (ask_skills.counting, 0.05),
    (ask_skills.translate, 0.07),
    (ask_skills.opposite, 0.02),
    (ask_skills.echo, 0.09),
    (ask_skills.json_request, 0.12),
    (ask_talk.small_talk, 0.09),
    (ask_talk.extra, 0.05),
    (ask_talk.topic, 0.05),
    (ask_talk.unknown, 0.14),
)
_FUNCTIONS = [maker for maker, _ in MAKERS]
_WEIGHTS = [weight for _, weight in MAKERS]
SYSTEM_SHARE = 0.35
ROLES = {
    "en": (
        "You are a {a} assistant.", "You are an expert for {t} and {t2}.", "Act as a teacher of {t}.",
        "You are {p}. You know how to {v} {t}.", "You are an assistant in {c}. Answer politely, and be {a}.",
    ),
    "zh": (
        "你是一个{a}的助手。", "你是{t}专家，请认真回答。", "你是{p}，会{v}{t}。", "你是一名{t}老师", "请扮演{c}的导游，耐心回答问题。",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    system: str | None
    turns: tuple[Turn, ...]


def any_turn(rng: random.Random, language: str) -> Turn:
    """A turn of any kind that stands on its own, as a user might type it."""
    return typed(rng, rng.choices(_FUNCTIONS, _WEIGHTS)[0](rng, language, VARIED))


def typed(rng: random.Random, turn: Turn) -> Turn:
    """`turn` with the case and the marks of its question varied, unless the question carries text that must be kept letter by letter."""
    if turn.category in ("json", "echo"):
        return turn
    return replace(turn, user=surface.vary(rng, turn.user, turn.language))


def conversation(rng: random.Random, max_turns: int = 6) -> Conversation:
    system = system_prompt(rng) if rng.random() < SYSTEM_SHARE else None
    language = rng.choice(("en", "zh"))
    target = 1 if rng.random() < 0.45 else rng.randint(2, max_turns)
    turns: list[Turn] = []
    while len(turns) < target:
        turns.extend(_next_turns(rng, language, turns, target))
        language = rng.choice(("en", "zh")) if rng.random() < 0.1 else language
    return Conversation(system, tuple(turns[:target]))


def system_prompt(rng: random.Random) -> str:
    """A harmless system prompt. Some are put together at random, so that none is taken for a question."""
    if rng.random() < 0.6:
        return grammar.varied(rng, "system", PHRASES["system"].trained, closed=True)
    language = rng.choice(("en", "zh"))
    return ask_talk.fill(rng, rng.choice(ROLES[language]), language)


def _next_turns(rng: random.Random, language: str, so_far: list[Turn], target: int) -> list[Turn]:
    if target > 1 and rng.random() < 0.35:
        return place_thread(rng, language)
    if rng.random() < 0.02 and not so_far:
        return [_unclear(rng, language)]
    if so_far and rng.random() < 0.05:
        return [first_question(rng, language, so_far[0].user, VARIED)]
    return [any_turn(rng, language)]


def place_thread(rng: random.Random, language: str) -> list[Turn]:
    """A capital, and then questions that say "there" or "and Germany?"."""
    place = rng.choice(SEATED if rng.random() < 0.3 else KNOWN_FOOD)
    turns = [typed(rng, _opening(rng, language, place))]
    for _ in range(rng.randint(1, 3)):
        draw = rng.random()
        if draw < 0.2 and turns[-1].category in ("capital", "and_place", "province_capital"):
            place = rng.choice(COUNTRIES if place.kind == "country" else SEATED)
            turns.append(typed(rng, ask_places.and_place(rng, language, VARIED, place)))
        elif draw < 0.35:
            turns.append(_aside(rng, language))
        else:
            turns.append(_there(rng, language, place))
    return turns


def _opening(rng: random.Random, language: str, place: ask_places.tables.Place) -> Turn:
    draw = rng.random()
    if draw < 0.15 and place.kind == "country":
        return ask_places.about(rng, language, VARIED, place)
    if draw < 0.3 and place.has_capital:
        reverse = ask_places.country_of if place.kind == "country" else ask_places.province_of
        return reverse(rng, language, VARIED, place)
    return ask_places.capital(rng, language, VARIED, place)


def _there(rng: random.Random, language: str, place: ask_places.tables.Place) -> Turn:
    what = rng.choice(("dish", "sight"))
    if place.dishes[language]:
        return typed(rng, ask_places.follow_up(rng, language, VARIED, place, what))
    text = phrase(rng, f"{what}_there.{language}", VARIED)
    answer = ask_talk.usual(rng, ask_talk.UNKNOWN[f"answer.{language}"])
    return typed(rng, Turn("unknown", language, text, answer, {"kind": "unknown"}))


def _aside(rng: random.Random, language: str) -> Turn:
    """A turn that names no place, after which "there" still means the same place."""
    maker = rng.choice((ask_talk.small_talk, ask_skills.arithmetic, ask_skills.counting, ask_skills.opposite))
    return typed(rng, maker(rng, language, VARIED))


def _unclear(rng: random.Random, language: str) -> Turn:
    """ "What is good to eat there?" with nothing before it."""
    text = phrase(rng, f"{rng.choice(('dish', 'sight'))}_there.{language}", VARIED)
    answer = "Which place do you mean?" if language == "en" else "你说的是哪个地方？"
    return Turn("unclear", language, text, answer, contains(answer))


def first_question(rng: random.Random, language: str, first: str, source: Source) -> Turn:
    text = phrase(rng, f"history.{language}", source)
    answer = f"Your first question was: {first}" if language == "en" else f"你的第一个问题是：{first}"
    return Turn("first_question", language, text, answer, contains(first))
