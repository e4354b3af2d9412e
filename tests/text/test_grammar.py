"""Grammars after reasoning: free until the end mark, strict from there on, with a way out of both."""

import pytest
from tiny_checkpoints import VOCAB_SIZE, thinking_tokenizer

from quire.core.structured import StructuredOutputsParams
from quire.text.closing import allowed_bits
from quire.text.grammar import GrammarCompiler, after_reasoning
from quire.text.reasoning import think
from quire.text.tokenizer import Tokenizer

BEGIN, END, EOS = VOCAB_SIZE, VOCAB_SIZE + 1, VOCAB_SIZE - 4
BEGUN, MAY_BEGIN = -1, BEGIN
# constraint, an answer, and one that is none
KINDS = [
    ({"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}, '{"a": 12}', '{"b"'),
    ({"json_object": True}, '{"a": [1, "think"]}', "[1]"),
    ({"regex": "[ab]{3}c?"}, "aba", "abd"),
    ({"choice": ["yes", "no way"]}, "no way", "no!"),
    ({"grammar": 'start: "f(" ARG ")"\nARG: /[0-9]{1,3}/'}, "f(42)", "f(x"),
    ({"grammar": 'root ::= "a" [0-9]+'}, "a7", "b"),
]
THOUGHTS = ["", "Hm, {", 'is it </th or "a"?\n\n\n', "0" * 50]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_dir(thinking_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, VOCAB_SIZE + 2, [EOS])


def matcher(compiler, constraint, begin):
    plain = compiler.checked(StructuredOutputsParams(**constraint))
    found = compiler.matcher(after_reasoning(plain.text, begin, END))
    assert not found.is_error(), found.get_error()
    return found


def takes(found, ids):
    """Whether each token is allowed where it stands; those that are, are consumed."""
    for token_id in ids:
        if not allowed_bits(found)[token_id]:
            return False
        assert found.consume_token(token_id)
    return True


def is_answer(found, tokenizer, text):
    return takes(found, tokenizer.encode(text, add_special_tokens=False)) and found.is_accepting()


@pytest.mark.parametrize("begin", [BEGUN, MAY_BEGIN])
@pytest.mark.parametrize("constraint, good, bad", KINDS, ids=lambda value: next(iter(value)) if value else "")
def test_the_answer_is_constrained_and_the_reasoning_is_not(compiler, tokenizer, constraint, good, bad, begin):
    for thought in THOUGHTS:
        for gap in ("", "\n", "\n\n"):
            found = matcher(compiler, constraint, begin)
            opening = [BEGIN] if begin == MAY_BEGIN else []
            assert takes(found, [*opening, *tokenizer.encode(thought, add_special_tokens=False)])
            assert not found.is_accepting() and not allowed_bits(found)[EOS], "reasoning alone is no answer"
            assert takes(found, [END, *tokenizer.encode(gap, add_special_tokens=False)])
            wrong = found.deep_copy()
            assert is_answer(found, tokenizer, good)
            assert not is_answer(wrong, tokenizer, bad)


@pytest.mark.parametrize("begin", [BEGUN, MAY_BEGIN])
def test_reasoning_ends_where_its_readers_see_its_end(compiler, tokenizer, begin):
    """They look for the mark's text, so it is the token that writes it, and nothing else."""
    found = matcher(compiler, {"regex": "[ab]{3}"}, begin)
    spelled = [tokenizer.encode(char, add_special_tokens=False)[0] for char in think.END]
    assert takes(found, [*[BEGIN] * (begin == MAY_BEGIN), *spelled[:-1]])
    assert not takes(found.deep_copy(), spelled[-1:])
    assert takes(found, [*tokenizer.encode(" it is not", add_special_tokens=False), END])


@pytest.mark.parametrize("constraint, good, bad", KINDS, ids=lambda value: next(iter(value)) if value else "")
def test_reasoning_that_the_prompt_has_not_begun_may_be_left_out(compiler, tokenizer, constraint, good, bad):
    assert is_answer(matcher(compiler, constraint, MAY_BEGIN), tokenizer, good)
    assert not is_answer(matcher(compiler, constraint, MAY_BEGIN), tokenizer, bad)
    assert not takes(matcher(compiler, constraint, MAY_BEGIN), [END])
    # What the prompt has begun is reasoning, whatever it looks like.
    assert not is_answer(matcher(compiler, constraint, BEGUN), tokenizer, good)


@pytest.mark.parametrize("begin, num_more", [(BEGUN, 1), (MAY_BEGIN, 0)])
@pytest.mark.parametrize("constraint", [kind[0] for kind in KINDS], ids=lambda value: next(iter(value)))
def test_the_way_to_the_end_leads_out_of_the_reasoning(compiler, tokenizer, constraint, begin, num_more):
    plain = compiler.checked(StructuredOutputsParams(**constraint))
    assert compiler.num_closing(after_reasoning(plain.text, begin, END)) == plain.num_closing + num_more
    found = matcher(compiler, constraint, begin)
    assert takes(found, [BEGIN] * (begin == MAY_BEGIN) + tokenizer.encode('so "', add_special_tokens=False))
    way = compiler.closer.way(found, 100)
    assert way[0] == END and len(way) == plain.num_closing + 1
    assert takes(found, way) and found.is_accepting()
