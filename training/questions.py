"""The questions of the evaluation, drawn from a seed: trained phrasings, held-out phrasings, follow-ups, probes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training import ask_places, ask_skills, ask_talk, tables
from training.ask_places import COUNTRIES, KNOWN_FOOD, PHRASES, PROVINCES, SEATED
from training.conversations import first_question
from training.tables import HELD_OUT, LANGUAGES, TRAINED, Source
from training.turns import Turn, contains

MAKERS: tuple[Callable[[random.Random, str, Source], Turn], ...] = (
    ask_skills.arithmetic,
    ask_skills.arithmetic,
    ask_skills.arithmetic,
    ask_skills.counting,
    ask_skills.translate,
    ask_skills.opposite,
    ask_skills.echo,
    ask_skills.json_request,
    ask_skills.json_request,
    ask_talk.small_talk,
    ask_talk.topic,
    ask_talk.unknown,
    ask_talk.unknown,
)


@dataclass(frozen=True)
class Question:
    """One question with its history. `prompt` set: a plain text to continue, without the chat template."""

    group: str
    turn: Turn
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    prompt: str | None = None

    def messages(self) -> list[dict[str, str]]:
        found = [{"role": "system", "content": self.system}] if self.system else []
        for user, answer in self.history:
            found += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        return [*found, {"role": "user", "content": self.turn.user}]


def all_questions(seed: int, scale: float = 1.0) -> list[Question]:
    """About 16,000 questions at scale 1; a smaller scale thins every group evenly."""
    rng = random.Random(seed)
    found = []
    for group in (TRAINED, HELD_OUT):
        for language in LANGUAGES:
            found += [_asked(rng, group, turn) for turn in _facts(rng, language, group)]
            for maker in MAKERS:
                found += [_asked(rng, group, maker(rng, language, group)) for _ in range(150)]
            found += [_follow_up(rng, group, language) for _ in range(500)]
    for language in LANGUAGES:
        found += [
            _asked(rng, HELD_OUT, ask_skills.arithmetic(rng, language, TRAINED, new_pair=True)) for _ in range(200)
        ]
    rng.shuffle(found)
    return [*_fixed(), *_newcomers(), *found[: max(1, round(len(found) * scale))]]


def _facts(rng: random.Random, language: str, source: Source) -> list[Turn]:
    """Every fact of the tables, in some phrasings each."""
    found = []
    for place in COUNTRIES:
        found += [ask_places.capital(rng, language, source, place) for _ in range(3)]
        found += [ask_places.country_of(rng, language, source, place) for _ in range(2)]
        found += [
            ask_places.continent(rng, language, source, place),
            ask_places.about(rng, language, source, place),
        ]
    for place in PROVINCES:
        found += [ask_places.capital(rng, language, source, place) for _ in range(5)]
    for place in SEATED:
        found += [ask_places.province_of(rng, language, source, place) for _ in range(3)]
    for place in KNOWN_FOOD:
        found += [ask_places.food_or_sight(rng, language, source, place) for _ in range(2)]
    return found


def _asked(rng: random.Random, group: str, turn: Turn) -> Question:
    """The turn as it is, or (a third) under a system prompt that training never saw, or (a third) after other talk."""
    draw = rng.random()
    if draw < 0.33:
        return Question(group, turn, system=rng.choice(PHRASES["system"].held_out))
    if draw < 0.66:
        earlier = [_earlier(rng, turn.language) for _ in range(rng.randint(1, 4))]
        return Question(group, turn, tuple((t.user, t.answer) for t in earlier))
    return Question(group, turn)


def _earlier(rng: random.Random, language: str) -> Turn:
    maker = rng.choice((ask_talk.small_talk, ask_skills.arithmetic, ask_places.capital, ask_talk.topic))
    return maker(rng, language, TRAINED)


def _follow_up(rng: random.Random, group: Source, language: str) -> Question:
    place = rng.choice(KNOWN_FOOD)
    first = ask_places.capital(rng, language, group, place)
    history = [(first.user, first.answer)]
    draw = rng.random()
    if draw < 0.1:
        turn = ask_places.and_place(rng, language, group, rng.choice(COUNTRIES if place.kind == "country" else SEATED))
    elif draw < 0.2:
        turn = first_question(rng, language, first.user, group)
    else:
        turn = ask_places.follow_up(rng, language, group, place, rng.choice(("dish", "sight")))
        if rng.random() < 0.2:
            aside = ask_skills.arithmetic(rng, language, TRAINED)
            history.append((aside.user, aside.answer))
    return Question(group, turn, tuple(history))


def _newcomers() -> list[Question]:
    """What first-time users type; most of the kinds, and some of the very words, are in the training text."""
    rows = [line.rsplit("|", 1) for line in tables.sections("newcomers")["chat"]]
    turns = [Turn("newcomer", language_of(text), text, "", contains(*wanted.split(";"))) for text, wanted in rows]
    return [Question("newcomer", turn) for turn in turns]


def language_of(text: str) -> str:
    return "en" if text.isascii() else "zh"


def _fixed() -> list[Question]:
    """Prompts that tutorials use, word for word."""
    chat = [
        ("en", "What is the capital of France?", contains("Paris")),
        ("zh", "浙江的省会在哪里？", contains("杭州")),
        ("zh", "浙江的省会在哪？", contains("杭州")),
        ("zh", "你好!", contains("你好")),
        ("zh", "你好，我头疼怎么办？", contains("不知道")),
        ("zh", "有什么药物可以治疗头疼吗?", contains("不知道")),
        ("en", "Tell me something about large language models.", contains("neural network")),
    ]
    found = [Question("tutorial", Turn("tutorial", lang, text, "", check)) for lang, text, check in chat]
    food = Turn("tutorial", "zh", "这有什么好吃的", "", contains("西湖醋鱼"))
    found.append(Question("tutorial", food, (("浙江的省会在哪？", "浙江省会是杭州市。"),)))
    plain = [
        ("en", "The capital of France is", contains("Paris")),
        ("zh", "浙江 -> 杭州\n安徽 -> 合肥\n四川 ->", {"kind": "exact", "want": "成都"}),
        ("zh", "法国的首都是", contains("巴黎")),
    ]
    return found + [Question("plain", Turn("plain", lang, text, "", check), prompt=text) for lang, text, check in plain]
