"""Parsers of tool calls and reasoning: what they give depends on the text alone, not on how it is cut, whatever a model writes."""

import json
import os
import random
import time

import pytest
from model_answers import CALL, FRAGMENTS

from quire.text.reasoning.think import BEGIN, ThinkSplitter
from quire.text.tools import hermes, llama3, mistral, plain_json
from quire.text.tools.calls import ToolCall
from quire.text.tools.formats import HERMES, LLAMA3, MISTRAL, NO_TEMPLATE, PLAIN_JSON, format_of

PARSERS = {"hermes": hermes.parser, "llama3": llama3.parser, "mistral": mistral.parser, "json": plain_json.parser}
NUM_CASES = 20_000 if os.environ.get("QUIRE_SOAK") else 1_500
F = ToolCall("f", '{"a": 1}')


def run(make, pieces):
    """(content, calls) of a text in pieces."""
    parser = make()
    items = [item for piece in pieces for item in parser.push(piece)] + parser.finish()
    return "".join(i for i in items if isinstance(i, str)), [i for i in items if isinstance(i, ToolCall)]


def split(pieces, prompt=""):
    splitter = ThinkSplitter(prompt)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.finish()]
    return "".join(p.reasoning for p in parts), "".join(p.answer for p in parts)


def cut(text, rng):
    bounds = sorted({0, len(text), *(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))})
    return [text[a:b] for a, b in zip(bounds, bounds[1:])]


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [F]),
        ("hermes", f"Look:\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", "Look:", [F, F]),
        ("hermes", f"<tool_call>{CALL}", "", [F]),
        ("hermes", '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
        ("hermes", "<tool_call>no</tool_call> a < b <tool", "<tool_call>no</tool_call> a < b <tool", []),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', "", [ToolCall("f", '{"x": "\\ud800"}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "北京"}}</tool_call>', "", [ToolCall("f", '{"x": "北京"}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": NaN}</tool_call>', '<tool_call>{"name": "f", "arguments": NaN}</tool_call>', []),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
         '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', []),
        ("hermes", "plain answer ", "plain answer ", []),
        ("mistral", f"[TOOL_CALLS][{CALL}, {CALL}]", "", [F, F]),
        ("mistral", 'Hm. [TOOL_CALLS]f{"a": 1}[TOOL_CALLS]f[ARGS]{"a": 1}', "Hm.", [F, F]),
        ("mistral", "[TOOL_CALLS] f", "[TOOL_CALLS] f", []),
        ("mistral", "[TOOL_CAL", "[TOOL_CAL", []),
        ("llama3", '{"name": "f", "parameters": {"a": 1}}', "", [F]),
        ("llama3", f'<|python_tag|>{CALL}; {{"name": "f", "parameters": {{"a": 1}}}}', "", [F, F]),
        ("llama3", '{"name": 1}', '{"name": 1}', []),
        ("llama3", "  {a}", "  {a}", []),
        ("llama3", "<|python", "<|python", []),
        ("json", f" [{CALL}]", "", [F]),
        ("json", CALL, "", [F]),
        ("json", f"```json\n{CALL}\n```", "", [F]),
        ("json", "[1, 2]", "[1, 2]", []),
        ("json", "[]", "[]", []),
        ("json", "Hello [1]", "Hello [1]", []),
        ("json", '{"name": "f"}', "", [ToolCall("f", "{}")]),
        ("json", '{"name": "f", "arguments": "{\\"a\\": 1}"}', "", [F]),
    ],
)  # fmt: skip
def test_what_is_read_at_every_split(name, text, content, calls):
    assert run(PARSERS[name], [text]) == (content, calls)
    assert run(PARSERS[name], list(text)) == (content, calls)
    for at in range(len(text) + 1):
        assert run(PARSERS[name], [text[:at], text[at:]]) == (content, calls)


def random_output(rng):
    text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 14)))
    if rng.random() < 0.2:
        text = rng.choice(
            [f"<tool_call>{CALL}</tool_call>", f"[TOOL_CALLS][{CALL}]", f"<|python_tag|>{CALL}", f"[{CALL}]", CALL]
        )
        text = rng.choice(["", " ", "\n", "Hi "]) + text + rng.choice(["", "\n", ";"])
    if rng.random() < 0.3 and text:
        at = rng.randrange(len(text))
        text = text[:at] + text[at + rng.randrange(1, 9) :]
    return text


@pytest.mark.parametrize("name", PARSERS)
def test_random_outputs_cut_at_random(name):
    rng = random.Random(name)
    num_calls = 0
    for _ in range(NUM_CASES):
        text = random_output(rng)
        content, calls = run(PARSERS[name], [text])
        assert run(PARSERS[name], cut(text, rng)) == (content, calls)
        num_calls += len(calls)
        assert calls or content == text  # what is no call is shown as it is
        for call in calls:
            assert call.name and isinstance(json.loads(call.arguments), dict)
            call.arguments.encode()
    assert num_calls > 0


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes", "", ("hm\n", "yes")),
        ("hm</think>yes", "...<think>\n", ("hm", "yes")),
        ("yes <think>no</think>", "", ("", "yes <think>no</think>")),
        ("yes", "<think>\n\n</think>\n\n", ("", "yes")),
        ("\n<think>hm", "", ("hm", "")),
        ("<thi", "", ("", "<thi")),
        ("hm </thi", "<think>", ("hm </thi", "")),
        ("<think></think>", "", ("", "")),
        ("", "", ("", "")),
    ],
)
def test_reasoning_at_every_split(text, prompt, expected):
    assert split([text], prompt) == split(list(text), prompt) == expected
    for at in range(len(text) + 1):
        assert split([text[:at], text[at:]], prompt) == expected


@pytest.mark.parametrize("prompt", ["", "<think>\n"])
def test_random_reasoning_cut_at_random(prompt):
    rng = random.Random(prompt)
    for _ in range(NUM_CASES):
        text = rng.choice(["", BEGIN, " \n" + BEGIN]) + random_output(rng)
        assert split(cut(text, rng), prompt) == split([text], prompt)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("begin", ["", "<tool_call>", "[TOOL_CALLS]", "{", "<|python_tag|>[", "[" * 200])
def test_time_is_linear(name, begin):
    """A long output, a character at a time."""
    start = time.process_time()
    for filling in ("<", " ", '{"a":', "[TOOL_CALLS]x"):
        text = (begin + filling * 40_000)[:40_000]
        run(PARSERS[name], text)
        run(PARSERS[name], [text])
    assert time.process_time() - start < 8


def test_formats_are_known_by_their_templates():
    assert format_of("{{ messages }}") is NO_TEMPLATE
    assert format_of("{% for tool in tools %}<tool_call>") is HERMES
    assert format_of("{{ tools }}[AVAILABLE_TOOLS][TOOL_CALLS]") is MISTRAL
    assert format_of("{{ tools }}<|python_tag|>") is LLAMA3
    assert format_of("{{ tools }}") is PLAIN_JSON


def test_messages_for_templates_without_tools():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    system, said = plain_json.with_instructions(messages, tools)
    assert system["content"].startswith("Be kind.") and '"name": "f"' in system["content"]
    assert json.loads(said["content"]) == [{"name": "f", "arguments": {"a": 1}}] and "tool_calls" not in said
    assert plain_json.with_instructions([{"role": "user", "content": "x"}], tools)[0]["role"] == "system"
