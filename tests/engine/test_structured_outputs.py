"""Constrained output with the bundled model: what ends matches its constraint, whatever is sampled, streamed, preempted or beside it."""

import json
import random
import re
import string

import jsonschema
import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.core.request import Request
from quire.errors import InvalidRequest

PROMPT = "Give me JSON about a person."


@pytest.fixture(scope="module")
def llm():
    with LLM(dtype="float32", max_model_len=512, max_num_seqs=64) as llm:
        yield llm


def word(rng):
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randrange(1, 7)))


def random_schema(rng, depth=0):
    """A small schema whose instances are short, so that outputs end within their budget."""
    kinds = ["integer", "boolean", "null", "string", "enum", "const"] + ["object", "array", "anyOf"] * (depth < 2)
    kind = rng.choice(kinds)
    if kind == "integer":
        low = rng.randrange(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 100)}
    if kind == "string":
        return rng.choice([{"type": "string", "maxLength": 8}, {"type": "string", "pattern": "^[a-f]{2,4}$"}])
    if kind == "enum":
        return {"enum": [word(rng), rng.randrange(100), None, 1.5][: rng.randrange(1, 5)]}
    if kind == "const":
        return {"const": word(rng)}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": rng.randrange(2), "maxItems": 3}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1), random_schema(rng, depth + 1)]}
    if kind == "object":
        names = list(dict.fromkeys(word(rng) for _ in range(rng.randrange(1, 4))))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": kind}


def generate(llm, constraints, **settings):
    params = [
        SamplingParams(
            **{"max_tokens": 400, "temperature": 1.0, "seed": i, "structured_outputs": StructuredOutputsParams(**c), **settings}
        )
        for i, c in enumerate(constraints)
    ]  # fmt: skip
    return llm.generate([PROMPT] * len(params), params, use_tqdm=False)


def test_every_finished_output_is_an_instance_of_its_schema(llm):
    rng = random.Random(5)
    schemas = [random_schema(rng) for _ in range(200)]
    outputs = generate(llm, [{"json": schema} for schema in schemas])
    finished = 0
    for schema, output in zip(schemas, outputs, strict=True):
        completion = output.outputs[0]
        if completion.finish_reason == "stop":
            finished += 1
            jsonschema.validate(json.loads(completion.text), schema)
    assert finished >= 195  # the others met their budget on the way


def test_regex_choice_grammar_and_any_object(llm):
    pattern = r"[A-F]{2}-\d{3}(-x)?"
    for output in generate(llm, [{"regex": pattern}] * 20):
        assert re.fullmatch(pattern, output.outputs[0].text)
    choices = ["red", 'a "quoted" one', "línea\nnueva", "绿"]
    seen = {output.outputs[0].text for output in generate(llm, [{"choice": choices}] * 40)}
    assert seen <= set(choices) and len(seen) > 1
    for grammar in ('start: "f(" ARG ")"\nARG: /[0-9]{1,3}/', 'root ::= "f(" arg ")"\narg ::= [0-9] [0-9]? [0-9]?'):
        for output in generate(llm, [{"grammar": grammar}] * 10):
            assert re.fullmatch(r"f\([0-9]{1,3}\)", output.outputs[0].text)
    for output in generate(llm, [{"json_object": True}] * 10):
        if output.outputs[0].finish_reason == "stop":
            assert isinstance(json.loads(output.outputs[0].text), dict)


def test_options_of_json(llm):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "required": ["a", "b"]}
    tight = generate(
        llm, [{"json": schema, "disable_any_whitespace": True, "disable_additional_properties": True}] * 10
    )
    assert {o.outputs[0].text for o in tight} <= {'{"a":true,"b":null}', '{"a":false,"b":null}'}
    dashed = {"json": json.dumps({"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2})}
    for output in generate(llm, [dashed | {"whitespace_pattern": " {3}"}] * 5):
        assert json.loads(output.outputs[0].text) == [1, 1]


def test_with_penalties_logprobs_stop_and_several_sequences(llm):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["n"],
    }
    schema["additionalProperties"] = False
    (output,) = generate(llm, [{"json": schema}], n=4, logprobs=2, repetition_penalty=1.3, presence_penalty=0.5)
    for completion in output.outputs:
        assert 0 <= json.loads(completion.text)["n"] <= 99
        assert len(completion.logprobs) == len(completion.token_ids)
    assert len({completion.text for completion in output.outputs}) > 1
    (output,) = generate(llm, [{"regex": "[ab]{40}c"}], stop=["a"], temperature=1.0)
    assert output.outputs[0].text == "b" * len(output.outputs[0].text)
    (output,) = generate(llm, [{"json": schema}], temperature=0.0)
    assert 0 <= json.loads(output.outputs[0].text)["n"] <= 99


def test_streaming_gives_the_same(llm):
    constraint = {"json": random_schema(random.Random(11))}
    params = SamplingParams(max_tokens=200, seed=3, structured_outputs=StructuredOutputsParams(**constraint))
    (whole,) = llm.generate([PROMPT], params, use_tqdm=False)
    pieces = list(llm.generate([PROMPT], params.clone(output_kind=1), stream=True))
    assert "".join(piece.outputs[0].text for piece in pieces) == whole.outputs[0].text
    assert [t for piece in pieces for t in piece.outputs[0].token_ids] == whole.outputs[0].token_ids


def test_preemption_changes_nothing(llm):
    rng = random.Random(7)
    constraints = [{"json": random_schema(rng)} for _ in range(12)]
    before = [o.outputs[0].token_ids for o in generate(llm, constraints)]
    engine, live = llm.llm_engine.engine, llm.llm_engine._live
    step = engine.step

    def disturbed_step(*meanwhile):
        outputs = step(*meanwhile)
        if live and rng.random() < 0.4:
            engine.scheduler.preempt(rng.choice(list(live)))
        return outputs

    engine.step = disturbed_step
    try:
        after = generate(llm, constraints)
    finally:
        engine.step = step
    assert [o.outputs[0].token_ids for o in after] == before
    assert engine.stats().num_preemptions > 0


def test_a_replay_goes_on_where_the_output_was(llm):
    constraint = StructuredOutputsParams(regex="[a-z]{20}[0-9]{20}")
    stream = llm.llm_engine.frontend.open(PROMPT, SamplingParams(max_tokens=100, seed=9, structured_outputs=constraint))
    engine = llm.llm_engine.engine

    def run(request):
        engine.add(request)
        ids = []
        while engine.has_work():
            ids += [t for output in engine.step() for t in output.token_ids]
        return ids

    request = stream.request
    whole = run(request)
    for cut in (1, 7, len(whole) - 1):
        values = {name: getattr(request, name) for name in Request.__dataclass_fields__}
        replayed = Request(**{**values, "id": f"r{cut}", "emitted_token_ids": (tuple(whole[:cut]),)})
        assert run(replayed) == whole[cut:]


def test_neighbours_are_not_touched(llm):
    plain = SamplingParams(max_tokens=30, seed=1, logprobs=2)
    (alone,) = llm.generate([PROMPT], plain, use_tqdm=False)
    constrained = SamplingParams(max_tokens=60, seed=2, structured_outputs=StructuredOutputsParams(json_object=True))
    beside, *_ = llm.generate([PROMPT] * 3, [plain, constrained, constrained], use_tqdm=False)
    assert beside.outputs[0].token_ids == alone.outputs[0].token_ids
    assert beside.outputs[0].logprobs == alone.outputs[0].logprobs


CHAIN = {"$ref": "#/$defs/0", "$defs": {**{str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(1800)}, "1800": {}}}


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": "(a"}, {"regex": "(?=a)b"}, {"regex": "(" * 5000 + ")" * 5000}, {"regex": "a" * 100_000}, {"regex": "a\x00"},
        {"json": {"type": "bogus"}}, {"json": "{"}, {"json": "[]"}, {"json": {"$ref": "http://example.com/x"}},
        {"json": '{"items":' * 5000 + "{}" + "}" * 5000}, {"json": {"enum": ["x" * 100] * 1000}}, {"json": {"minimum": "1"}},
        {"grammar": "start: nobody"}, {"grammar": "start: " + "(" * 5000}, {"grammar": "root ::= " + "(" * 60}, {"grammar": "?"},
        {"grammar": "start: <|nobody|>"}, {"choice": ["x" * 500] * 200}, {"json": {"$ref": "#"}},
        {"json": {"type": "integer", "minimum": 3, "maximum": 1}}, {"regex": "a?" * 4000 + "a" * 40}, {"grammar": "start: " + '"a"? ' * 8000},
    ],
)  # fmt: skip
def test_a_bad_constraint_is_refused_and_nothing_else_is(llm, constraint):
    with pytest.raises(InvalidRequest) as caught:
        generate(llm, [constraint])
    assert caught.value.param == "structured_outputs" and len(str(caught.value)) < 1000
    assert generate(llm, [{"choice": ["yes"]}])[0].outputs[0].text == "yes"


def test_chains_of_rules_do_not_overflow_the_stack(llm):
    assert generate(llm, [{"json": CHAIN}], max_tokens=2)[0].outputs[0].finish_reason in ("stop", "length")
    rules = "\n".join(f"a{i}:a{i + 1}" for i in range(4500))
    assert generate(llm, [{"grammar": f'start: a0\n{rules}\na4500:"k"'}])[0].outputs[0].text == "k"


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"json": {}, "regex": "a"}, {"choice": []}, {"choice": [""]}, {"choice": [1]}, {"regex": 1}, {"structural_tag": "{}"},
        {"json_object": False}, {"json_object": 1}, {"json": 5}, {"regex": "a", "disable_any_whitespace": 1},
    ],
)  # fmt: skip
def test_params_are_checked(fields):
    with pytest.raises(InvalidRequest):
        StructuredOutputsParams(**fields)


def test_names_of_before_and_fields_that_contradict():
    constraint = StructuredOutputsParams(regex="a")
    assert SamplingParams(guided_decoding=constraint).structured_outputs is constraint
    assert SamplingParams(structured_outputs={"regex": "a"}).structured_outputs == constraint
    for bad in ({"ignore_eos": True}, {"structured_outputs": {"rex": "a"}}, {"structured_outputs": "a"}):
        with pytest.raises(InvalidRequest):
            SamplingParams(**{"structured_outputs": constraint, **bad})


def test_tokens_that_nothing_allows_end_the_request_alone(llm):
    bad, good = (SamplingParams(structured_outputs={"choice": ["ab"]}, min_tokens=n) for n in (15, 0))
    failed, fine = llm.generate([PROMPT] * 2, [bad, good], use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error" and "leave no token" in failed.outputs[0].error
    assert fine.outputs[0].text == "ab"


@pytest.mark.parametrize("constraint", [{"grammar": 'start: "a"{1000000}'}, {"regex": "(((a{50}){50}){50}){50}"}])
def test_a_grammar_that_becomes_too_complex_ends_its_request_alone(llm, constraint):
    bad, good = (SamplingParams(structured_outputs=c, max_tokens=100) for c in (constraint, {"choice": ["ab"]}))
    failed, fine = llm.generate([PROMPT] * 2, [bad, good], use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error" and failed.outputs[0].error
    assert fine.outputs[0].text == "ab"


NAMES = [f"key{i}" for i in range(12)]
PART = {"type": "object", "properties": {name: {"type": "string"} for name in NAMES}, "required": NAMES}
LARGE_PART = {
    "type": "object",
    "properties": {"part": PART},
    "additionalProperties": False,
}  # costs much once it is begun
NODE = {
    "type": "object",
    "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["kids"],
}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}


@pytest.mark.parametrize("seed", range(3))
def test_json_closes_within_a_small_budget_or_is_refused(llm, seed):
    """Budgets from too small to just enough: what is not refused parses and fits its schema, however it ends."""
    rng = random.Random(seed)
    prompts, params, schemas = [], [], []
    num_refused = 0
    for i in range(60):
        schema = rng.choice([random_schema(rng), {"type": "object"}, {"type": "string"}, LARGE_PART, TREE, {}])
        budget = rng.choice([rng.randrange(1, 40), rng.randrange(40, 150)])
        wanted = SamplingParams(max_tokens=budget, seed=i, structured_outputs=StructuredOutputsParams(json=schema))
        try:
            llm.llm_engine.frontend.open(PROMPT, wanted)
        except InvalidRequest as error:
            assert error.param == "max_tokens"
            num_refused += 1
            continue
        prompts.append(PROMPT)
        params.append(wanted)
        schemas.append(schema)
    for schema, output in zip(schemas, llm.generate(prompts, params, use_tqdm=False), strict=True):
        assert output.outputs[0].error is None
        assert output.outputs[0].finish_reason in ("stop", "length")
        jsonschema.validate(json.loads(output.outputs[0].text), schema)
    assert 0 < num_refused < 75


def test_a_schema_that_takes_long_at_the_least():
    """More than a look at each likely token can cover: it is refused where it cannot fit, and closed where it just does."""
    properties = {f"field_{number:02d}": {"type": "string"} for number in range(45)}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    with LLM(dtype="float32", max_model_len=1024, max_num_seqs=4) as llm:
        needed = llm.llm_engine.frontend._grammars().checked(StructuredOutputsParams(json=schema)).num_closing
        assert 512 < needed < 600
        with pytest.raises(InvalidRequest, match="max_tokens"):
            generate(llm, [{"json": schema}], max_tokens=needed - 1)
        (output,) = generate(llm, [{"json": schema}], max_tokens=needed + 60)
        jsonschema.validate(json.loads(output.outputs[0].text), schema)
