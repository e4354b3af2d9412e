"""Constraints as nobody means them well: deep, wide, endless, contradictory. For tests of what compiles them."""

import random
from typing import Any

ATOMS = ["a", "[a-z]", "\\d", ".", "\\p{L}", "(?i:a)", "[^x]", "", "\\w", "北"]


def regex(rng: random.Random, depth: int = 0) -> str:
    kind = rng.randrange(9)
    if depth > rng.choice([3, 8, 30]) or kind < 3:
        return rng.choice(ATOMS)
    inner = regex(rng, depth + 1)
    if kind == 3:
        return f"({inner}|{regex(rng, depth + 1)})"
    if kind == 4:
        return inner + regex(rng, depth + 1)
    if kind == 5:
        return f"({inner}){{{rng.randrange(5)},{rng.choice([5, 50, 1000])}}}"
    if kind == 6:
        return f"({inner})" + rng.choice("*+?")
    return rng.choice(["^", "$", "(?=a)", "\\b", "(?m)"]) + inner if kind == 7 else f"(?P<x>{inner})"


def schema(rng: random.Random, depth: int = 0) -> Any:
    if depth > rng.choice([2, 6, 40]):
        return rng.choice([{}, True, {"type": "string"}, {"$ref": "#"}, {"$ref": "#/$defs/a"}])
    kind = rng.randrange(14)
    inner = schema(rng, depth + 1) if kind < 7 else None
    more = schema(rng, depth + 1) if kind < 4 else None
    return [
        {"allOf": [inner, more]}, {"anyOf": [inner, more]}, {"oneOf": [inner, more]}, {"if": inner, "then": more, "else": inner},
        {"not": inner}, {"type": "object", "properties": {rng.choice("abc"): inner}, "required": ["a"], "additionalProperties": inner},
        {"type": "array", "items": inner, "minItems": rng.choice([0, 1, 1000, 10**6]), "maxItems": rng.choice([1, 10**9])},
        {"type": "string", "pattern": regex(rng)}, {"patternProperties": {regex(rng): {}}},
        {"$ref": rng.choice(["#", "#/$defs/a", "#/$defs/b", "#/nope", "http://x"])},
        {"type": "number", "multipleOf": rng.choice([0.01, 1e-9, 3, 1e300]), "minimum": rng.choice([-1e308, 0, 5]), "maximum": 1e308},
        {"type": "integer", "minimum": rng.choice([-(10**18), 0]), "maximum": rng.choice([10**18, 3])},
        {"type": "string", "minLength": rng.choice([0, 10**4, 10**8]), "maxLength": rng.choice([3, 10**5, 10**9])},
        {"enum": [rng.random(), "x" * rng.choice([1, 1000]), None]},
    ][kind]  # fmt: skip


def lark(rng: random.Random) -> str:
    count = rng.choice([1, 3, 20, 300])
    rules = []
    for number in range(count):
        parts = [
            rng.choice(
                [f"r{rng.randrange(count)}", f"r{rng.randrange(count)}?", '"a"', f"/{regex(rng, 6) or 'a'}/", '("x" | "y")*', "T0",
                 '%json {"type":"object"}', "<|x|>", f'"a"~{rng.randrange(3)}..{rng.choice([3, 1000])}']
            )
            for _ in range(rng.randrange(1, 5))
        ]  # fmt: skip
        rules.append(f"r{number}: " + rng.choice([" ", " | "]).join(parts))
    return "start: r0\n" + "\n".join(rules) + "\nT0: /[a-z]+/\n"


def constraint(rng: random.Random) -> dict[str, Any]:
    """Fields of StructuredOutputsParams."""
    kind = rng.randrange(3)
    if kind == 0:
        return {"regex": regex(rng) or "a"}
    if kind == 1:
        return {"grammar": lark(rng)}
    return {"json": {"$defs": {"a": schema(rng, 1), "b": schema(rng, 1)}, "allOf": [schema(rng)]}}
