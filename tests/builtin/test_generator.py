"""The generator of the bundled model's text: true answers, held-out phrasings that stay out, the same rows each time."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from training import ask_places, checks, conversations, corpus, grammar, questions, tables  # noqa: E402
from training.turns import exact, one_name  # noqa: E402


def test_there_are_enough_facts() -> None:
    assert len(tables.countries()) >= 190
    assert len(tables.provinces()) == 34
    assert sum(1 for place in tables.countries() if place.dishes["en"]) >= 40


def test_a_fifth_of_the_phrasings_is_held_out() -> None:
    for name, lines in tables.sections("phrases").items():
        found = tables.phrases(lines)
        assert len(found.held_out) >= 0.2 * len(lines), name
        assert not set(found.held_out) & set(found.trained), name
    for intent in tables.intents():
        assert len(intent.phrases.held_out) >= 0.2 * len(intent.phrases.trained + intent.phrases.held_out)


def test_every_expected_answer_passes_its_own_check() -> None:
    for question in questions.all_questions(seed=5, scale=0.3):
        if question.turn.answer:
            assert checks.is_right(question.turn.check, question.turn.answer), question


def test_checks_refuse_wrong_answers() -> None:
    paris = one_name("Paris", "capital", ("France",))
    assert checks.is_right(paris, "The capital of France is Paris.")
    assert not checks.is_right(paris, "The capital of France is Paris or Rome.")
    assert not checks.is_right(paris, "The capital of France is Rome.")
    assert not checks.is_right({"kind": "number", "want": 42}, "12 + 30 = 43")
    assert not checks.is_right({"kind": "json", "want": {"age": 3}}, '{"age": 3')
    assert not checks.is_right({"kind": "unknown", "want": ["I don't know"]}, "The capital of Blorvia is Paris.")
    assert not checks.is_right(exact("1, 2, 3"), "1, 2, 4")


def test_held_out_questions_hardly_ever_occur_in_training_text() -> None:
    held_out = {q.turn.user for q in questions.all_questions(seed=5) if q.group == "held_out"}
    rng = random.Random(1)
    said = [turn.user for _ in range(20_000) for turn in conversations.conversation(rng).turns]
    assert sum(user in held_out for user in said) < len(said) * 1e-4


def test_drawn_phrasings_hold_no_held_out_one() -> None:
    rng = random.Random(4)
    for section, listed in ask_places.PHRASES.items():
        if section == "arith.sym":  # held out: marks alone (=??), which are no part of the comparison
            continue
        held_out = [grammar.plainly(text) for text in listed.held_out]
        for _ in range(300):
            drawn = grammar.plainly(grammar.varied(rng, section, listed.trained))
            assert not any(held in drawn for held in held_out), (section, drawn)


def test_watch_sees_through_case_spaces_and_marks() -> None:
    assert grammar.is_held_out("Hi, could you give me the Capital City of {x}")
    assert grammar.is_held_out("你好，哪座城市是{x}的首都?")
    assert not grammar.is_held_out("What is the capital of {x}?")


def test_shards_are_repeatable_and_documents_whole() -> None:
    first = corpus.make_rows(seed=3, num_shards=1, row_tokens=512, num_workers=1)
    again = corpus.make_rows(seed=3, num_shards=1, row_tokens=512, num_workers=1)
    assert np.array_equal(first.tokens, again.tokens)
    assert (first.documents > 0).mean() > 0.9
    assert not (first.targets & (first.documents == 0)).any()


def test_segments_encode_as_the_whole_text_does() -> None:
    encoder, rng = corpus.Encoder(), random.Random(2)
    for _ in range(100):
        parts = corpus.write_document(rng, 6)
        if parts[0][0] == "plain":
            continue
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in parts)
        ids, _ = encoder.document([(role, encoder.tokenizer.encode(content).ids) for role, content in parts])
        assert encoder.tokenizer.encode(text).ids == ids
