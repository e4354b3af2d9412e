"""What models may write, tidy and not: for tests of whoever reads it."""

import random

from quire.text.reasoning.think import BEGIN, END

CALL = '{"name": "f", "arguments": {"a": 1}}'
FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", BEGIN, END, CALL, CALL[:-1], "{", "}", "[", "]", ";", ",",
    "f", " ", "\n", "\n\n", "text", "<", "</", "```", "json", '"', "\\", "北京", "\ud83d", "\x00", "[" * 3000, " " * 100, "1e999", "é",
]  # fmt: skip


CALLS = {
    "hermes": [f"<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>{CALL}</tool_call>" * 2],
    "mistral": [f"[TOOL_CALLS][{CALL}]", '[TOOL_CALLS]f{"a": 1}'],
    "llama3": [CALL, f"<|python_tag|>{CALL}; {CALL}"],
    "json": [f"[{CALL}, {CALL}]", CALL],
}


def tidy_answer(rng: random.Random, name: str, reasons: bool, begun: bool) -> str:
    """Reasoning, words and calls, as a model of that format of calls would write them. begun: its prompt has begun the reasoning."""
    thoughts = [f"hm {rng.randrange(9)}\n{END}\n\n"] if begun else ["", f"{BEGIN}\nhm {rng.randrange(9)}\n{END}\n\n"]
    said = rng.choice(["", "", "Look: ", "Yes. 北京\n"]) if name in ("hermes", "mistral") else ""
    return (rng.choice(thoughts) if reasons else "") + said + rng.choice([*CALLS[name], "No call."])


def messy_answer(rng: random.Random) -> str:
    """The same parts in any company, something of them missing."""
    text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 10)))
    if rng.random() < 0.5:
        text = tidy_answer(rng, rng.choice(list(CALLS)), rng.random() < 0.5, rng.random() < 0.5)
        at = rng.randrange(len(text))
        text = text[:at] + text[at + rng.randrange(1, 9) :]
    return text
