"""Random JSON schemas with small token budgets and the bundled model: every output is a whole instance, or is refused up front."""

import json
import os
import random
import string
from collections import Counter

import jsonschema
import pytest

from quire import LLM, SamplingParams
from quire.errors import InvalidRequest

NUM_SCHEMAS = int(os.environ.get("QUIRE_SCHEMAS", 10_000 if os.environ.get("QUIRE_SOAK") else 250))
CHUNK = 50
SCALARS = ("string", "integer", "number", "boolean", "null")


def word(rng: random.Random) -> str:
    letters = rng.choice([string.ascii_lowercase, string.ascii_letters + "_-. ", 'äöñ北京🙂"\\/\n'])
    return "".join(rng.choice(letters) for _ in range(rng.randrange(1, 9)))


def scalar(rng: random.Random) -> dict:
    kind = rng.choice(SCALARS)
    schema: dict = {"type": kind}
    if kind == "string":
        more = rng.randrange(6)
        low = rng.randrange(4)
        if more == 0:
            schema |= {"minLength": low, "maxLength": low + rng.randrange(20)}
        elif more == 1:
            schema["pattern"] = rng.choice(["^[a-z]{1,5}$", r"^\d{3}-\d{2}$", "^(red|green)+$", "^[^x]*$", "[0-9]"])
        elif more == 2:
            schema["format"] = rng.choice(["date", "time", "date-time", "email", "uuid", "ipv4", "nonsense"])
    elif kind in ("integer", "number"):
        low = rng.randrange(-1000, 1000)
        more = rng.randrange(5)
        if more == 0:
            schema |= {"minimum": low, "maximum": low + rng.randrange(1, 500)}
        elif more == 1:
            schema |= {"exclusiveMinimum": low}
        elif more == 2 and kind == "integer":
            schema |= {"multipleOf": rng.choice([1, 2, 5, 10])}
    return schema


def random_schema(rng: random.Random, depth: int = 0) -> dict:
    """Any of the ways to say what a value is, those included that a compiler may not know, or that nothing satisfies."""
    kind = rng.randrange(12 if depth < 4 else 5)
    inner = lambda: random_schema(rng, depth + 1)  # noqa: E731
    if kind < 3:
        return scalar(rng)
    if kind == 3:
        return {"enum": [rng.choice([word(rng), rng.randrange(99), None, True, 1.5, [1], {}]) for _ in range(3)]}
    if kind == 4:
        return {"const": rng.choice([word(rng), 7, None, [], {"a": [False]}])}
    if kind < 8:
        names = list(dict.fromkeys(word(rng) for _ in range(rng.randrange(5))))
        schema: dict = {"type": "object", "properties": {name: inner() for name in names}}
        schema["required"] = [name for name in names if rng.random() < 0.6]
        if rng.random() < 0.7:
            schema["additionalProperties"] = rng.choice([False, False, True, scalar(rng)])
        return schema
    if kind == 8:
        low = rng.randrange(3)
        return {"type": "array", "items": inner(), "minItems": low, "maxItems": low + rng.randrange(4)}
    if kind == 9:
        return {"type": "array", "prefixItems": [inner(), inner()], "items": rng.choice([False, scalar(rng)])}
    if kind == 10:
        return {rng.choice(["anyOf", "oneOf"]): [inner(), inner()]}
    return rng.choice(
        [
            {"allOf": [inner(), scalar(rng)]}, {"type": rng.sample(SCALARS, 2)}, {"not": scalar(rng)}, {}, {"type": "array"},
            {"type": "object"}, {"$ref": "#/$defs/x", "$defs": {"x": inner()}}, {"type": "array", "uniqueItems": True},
        ]
    )  # fmt: skip


def recursive(rng: random.Random) -> dict:
    """A list or a tree of itself."""
    node = {
        "type": "object",
        "properties": {"v": scalar(rng), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}},
    }
    node |= {"required": ["v", "next"], "additionalProperties": False}
    return {"$ref": "#/$defs/n", "$defs": {"n": node}}


@pytest.fixture(scope="module")
def llm():
    with LLM(dtype="float32", max_model_len=256, max_num_seqs=CHUNK) as llm:
        yield llm


def is_instance(value, schema: dict) -> bool:
    """format is an annotation, as the standard has it by default."""
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.timeout(14_400)
def test_every_output_is_whole_or_refused_up_front(llm):
    rng = random.Random(2026)
    seen: Counter[str] = Counter()
    failures = []
    for first in range(0, NUM_SCHEMAS, CHUNK):
        cases = []
        for number in range(first, min(first + CHUNK, NUM_SCHEMAS)):
            schema = recursive(rng) if number % 20 == 0 else random_schema(rng)
            try:
                params = SamplingParams(
                    max_tokens=rng.choice([1, 4, 8, 12, 16, 24, 32, 48, 64]), seed=number,
                    temperature=rng.choice([0.0, 1.0, 2.0]), structured_outputs={"json": schema},
                )  # fmt: skip
                llm.llm_engine.frontend.open("Give me JSON.", params)
                cases.append((schema, params))
            except InvalidRequest:
                seen["refused"] += 1
        outputs = llm.generate(["Give me JSON."] * len(cases), [params for _, params in cases], use_tqdm=False)
        for (schema, params), output in zip(cases, outputs, strict=True):
            text, reason = output.outputs[0].text, output.outputs[0].finish_reason
            seen[str(reason)] += 1
            try:
                if not is_instance(json.loads(text), schema):
                    failures.append(("no instance", reason, params.max_tokens, json.dumps(schema), text))
            except ValueError:
                failures.append(("no JSON", reason, params.max_tokens, json.dumps(schema), text))
    for failure in failures:
        print("FAIL", *failure)
    print(dict(seen), len(failures), "failures")
    assert not failures, (len(failures), *failures[:5])
    assert seen["refused"] < NUM_SCHEMAS * 0.7 and seen["stop"] + seen["length"] > NUM_SCHEMAS * 0.3
