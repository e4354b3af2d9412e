"""Grammars of strangers: a process that dies, hangs or never starts costs the sender a 400 and nobody else anything."""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import hostile_grammars
import pytest

import quire
from quire.core.structured import StructuredOutputsParams
from quire.errors import EngineUnavailable, InvalidRequest
from quire.text import grammar_worker
from quire.text.grammar import GrammarCompiler
from quire.text.isolated_grammar import IsolatedChecker
from quire.text.tokenizer import Tokenizer

FOLDER = Path(quire.__file__).parent / "_builtin" / "tiny"
NUM_HOSTILE = int(os.environ.get("QUIRE_HOSTILE", 20_000 if os.environ.get("QUIRE_SOAK") else 120))
# Answers with its pid; dies, hangs or prints on what the constraint says.
FAKE = """
import json, os, sys, time
from quire.text.isolated_grammar import read_frame, write_frame
while (frame := read_frame(sys.stdin.buffer)) is not None:
    said = json.loads(frame).get("regex")
    if said == "die": os.abort()
    if said == "hang": time.sleep(600)
    write_frame(sys.stdout.buffer, json.dumps({"text": str(os.getpid()), "num_closing": 1}).encode())
"""


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_dir(FOLDER)


def fake(**options):
    return IsolatedChecker(FOLDER, 10, [0], command=(sys.executable, "-c", FAKE), **options)


def ask(checker, regex):
    return checker.checked(StructuredOutputsParams(regex=regex)).text


def test_what_the_worker_says_is_what_the_compiler_says(tokenizer):
    constraints = [
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}, {"json_object": True},
        {"regex": "[ab]{3}"}, {"choice": ["yes", "北京"]}, {"grammar": 'start: "a"'},
        {"json": {"type": "array"}, "disable_any_whitespace": True},
    ]  # fmt: skip
    here = GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_token_id])
    there = IsolatedChecker(FOLDER, tokenizer.vocab_size, [tokenizer.eos_token_id])
    for constraint in constraints:
        params = StructuredOutputsParams(**constraint)
        assert there.checked(params) == here.checked(params)
    for bad in ({"regex": "(a"}, {"json": {"type": "bogus"}}, {"grammar": "start: nobody"}):
        errors = []
        for checker in (here, there):
            with pytest.raises(InvalidRequest) as caught:
                checker.checked(StructuredOutputsParams(**bad))
            errors.append((str(caught.value), caught.value.param))
        assert errors[0] == errors[1]
    there.close()


def test_a_grammar_that_ends_the_worker_is_refused_and_the_next_is_served(caplog):
    checker = fake()
    first = ask(checker, "a")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="did not survive"):
            ask(checker, "die")
    assert len(caplog.records) == 2  # the old worker and a fresh one died of it; the second time it is remembered
    second = ask(checker, "b")
    assert second != first and ask(checker, "c") == second and ask(checker, "a") == first
    checker.close()


def test_a_worker_that_died_in_between_is_nobodys_fault():
    checker = fake()
    ask(checker, "a")
    checker._worker.kill()
    assert ask(checker, "b")
    checker._worker.kill()
    checker._worker.wait()
    assert ask(checker, "c")
    checker.close()


def test_a_grammar_that_never_ends_is_refused_in_time():
    checker = fake()
    ask(checker, "a")
    checker._timeout_s = 0.5
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="took too long"):
        ask(checker, "hang")
    assert time.monotonic() - began < 100
    checker._timeout_s = 60.0
    assert ask(checker, "b")
    checker.close()


def test_a_real_grammar_that_the_compiler_never_ends_with(tokenizer):
    """Found by fuzzing: two lines of Lark. It is refused for its sender, and the next one is served."""
    endless = 'start: r\nr: ("x" | "y")* r ("x" | "y")*'
    checker = IsolatedChecker(FOLDER, tokenizer.vocab_size, [tokenizer.eos_token_id], max_compile_s=0.5)
    checker.checked(StructuredOutputsParams(regex="a"))
    with pytest.raises(InvalidRequest, match="took too long"):
        checker.checked(StructuredOutputsParams(grammar=endless))
    assert checker._worker is None  # the kernel ended it, after the computing that a grammar may take
    assert checker.checked(StructuredOutputsParams(regex="b"))
    checker.close()


def test_a_worker_that_does_not_start():
    for command in ((sys.executable, "-c", "1"), ("/nobody",)):
        with pytest.raises(EngineUnavailable):
            ask(IsolatedChecker(FOLDER, 10, [0], command=command), "a")


def test_what_is_too_long_does_not_even_reach_the_worker():
    checker = fake()
    for constraint in ({"regex": "a" * 10**6}, {"json": {"enum": ["x" * 10**6]}}, {"choice": ["y" * 1000] * 1000}):
        with pytest.raises(InvalidRequest, match="longer than"):
            checker.checked(StructuredOutputsParams(**constraint))
    assert checker._worker is None


def test_many_threads_share_one_worker():
    checker = fake()
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(ask(checker, f"a{i % 7}"))) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and len(set(found)) == 1
    checker.close()


def test_what_takes_too_long_to_compile_is_refused_by_the_worker(tokenizer):
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_token_id])
    answer = grammar_worker.answer(compiler, {"regex": "a"}, max_compile_s=-1.0)
    assert "the limit is" in answer["error"] and answer["param"] == "structured_outputs"


@pytest.mark.timeout(7200)
def test_random_hostile_constraints(tokenizer, caplog):
    """Each is compiled or refused; none ends the worker but by computing without end."""
    rng = random.Random(13)
    checker = IsolatedChecker(FOLDER, tokenizer.vocab_size, [tokenizer.eos_token_id], max_compile_s=0.5)
    compiled = refused = endless = 0
    for _ in range(NUM_HOSTILE):
        try:
            compiled += bool(checker.checked(StructuredOutputsParams(**hostile_grammars.constraint(rng))))
        except InvalidRequest as error:
            refused += 1
            endless += "did not survive" in str(error)
    checker.close()
    print(f"{compiled} compiled, {refused} refused, of these {endless} ended their worker")
    assert compiled > NUM_HOSTILE // 20 and refused > NUM_HOSTILE // 20 and endless <= 2 + NUM_HOSTILE // 50
    assert all(f"({-signal.SIGXCPU})" in record.message for record in caplog.records)


def test_hostile_constraints_leave_the_worker_alive(tokenizer):
    """Chains and nests that have ended compilers: each is refused or compiled, in bounded time."""
    checker = IsolatedChecker(FOLDER, tokenizer.vocab_size, [tokenizer.eos_token_id])
    chain = {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(2000)}}
    nest = json.loads('{"items":' * 120 + "{}" + "}" * 120)
    rules = "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(4000)) + '\na4000: "x"'
    hostile = [
        {"json": chain}, {"json": nest}, {"grammar": rules}, {"regex": "(a{1000}){1000}"}, {"regex": "(" * 60 + "a" + ")*" * 60},
        {"json": {"type": "array", "minItems": 10**9}}, {"json": {"type": "string", "minLength": 10**9}},
        {"json": {"pattern": "(a|aa)+$" * 50, "type": "string"}}, {"json": {"allOf": [{"$ref": "#"}]}}, {"json": {"not": {"$ref": "#"}}},
        {"choice": ["\\" * 500, '"' * 500]}, {"json": {"enum": ["\u0000", "\u2028", "x" * 5000]}},
        {"json": {"oneOf": [{"properties": {f"p{i}": {"const": i}}} for i in range(300)]}},
    ]  # fmt: skip
    outcomes = []
    for constraint in hostile:
        try:
            outcomes.append(checker.checked(StructuredOutputsParams(**constraint)).text)
        except InvalidRequest as error:
            outcomes.append(error)
            assert "did not survive" not in str(error)
    assert any(isinstance(found, str) for found in outcomes) and any(isinstance(f, InvalidRequest) for f in outcomes)
    checker.close()
