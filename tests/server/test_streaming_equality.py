"""A streamed answer equals the one that waited, however its tokens are cut into chunks: text, stop strings, reasoning, tool calls and
counts, in chats, in the Responses API and in Anthropic's messages.
"""

import itertools
import json
import os
import random

import pytest
from model_answers import messy_answer, tidy_answer
from tiny_checkpoints import thinking_tokenizer

from quire.core.outputs import EngineOutput
from quire.core.params import RequestOutputKind, SamplingParams
from quire.core.request import Request
from quire.engine.stream import RequestStream
from quire.server.anthropic.outputs import BlockBuilder
from quire.server.openai.answers import AnswerReader, Manner
from quire.server.responses.outputs import OutputBuilder
from quire.text.reasoning.think import has_begun
from quire.text.tokenizer import Tokenizer
from quire.text.tools.formats import HERMES, LLAMA3, MISTRAL, PLAIN_JSON

NUM_CASES = 20_000 if os.environ.get("QUIRE_SOAK") else 500
EXHAUSTIVE_TOKENS = 8  # of so few tokens every way to cut them is tried
FORMATS = (None, HERMES, MISTRAL, LLAMA3, PLAIN_JSON)
PROMPTS = ("", "...<think>\n", "<think>\n\n</think>\n\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_dir(thinking_tokenizer(tmp_path_factory.mktemp("tokens")))


def manner_of(rng, tokenizer) -> Manner:
    return Manner(
        prompt=rng.choice(PROMPTS), splits_reasoning=rng.random() < 0.6, shows_reasoning=rng.random() < 0.8, format=rng.choice(FORMATS),
        one_call=rng.random() < 0.3, legacy_call=False, opening=rng.choice(["", "", "Once"]), tokenizer=tokenizer,
    )  # fmt: skip


def tokens_of(rng, tokenizer, manner: Manner) -> list[int]:
    """An answer as a model may write it: words, marks, calls, half characters."""
    name = manner.format.name if manner.format else rng.choice(["hermes", "json"])
    text = messy_answer(rng)
    if rng.random() < 0.5:
        text = tidy_answer(rng, name, manner.splits_reasoning, has_begun(manner.prompt))
    ids = tokenizer.encode(text.encode("utf-8", "ignore").decode()[:160], add_special_tokens=False)
    if rng.random() < 0.1:  # bytes that are no character
        ids.insert(rng.randrange(len(ids) + 1), rng.randrange(100, 256))
    return ids or [1]


def request_of(rng, num_tokens: int) -> Request:
    stop = rng.choice(
        [None, None, None, None, None, None, ["\n\n"], ["</", "x"], ["}"], ["call"], ["b", "ab"], ["<think>"]]
    )
    params = SamplingParams(
        max_tokens=num_tokens, stop=stop, include_stop_str_in_output=rng.random() < 0.3, skip_special_tokens=rng.random() < 0.5,
        min_tokens=rng.choice([0, 0, 2]) if num_tokens > 2 else 0,
    )  # fmt: skip
    return Request("r", [1], params)


def cuts(rng, num_tokens: int):
    """Ways to cut the tokens: all of them if there are few, else each alone, each single cut, and some at random."""
    if num_tokens <= EXHAUSTIVE_TOKENS:
        for bits in itertools.product([0, 1], repeat=num_tokens - 1):
            yield [0, *(i for i, bit in enumerate(bits, 1) if bit), num_tokens]
        return
    yield list(range(num_tokens + 1))
    for at in rng.sample(range(1, num_tokens), min(6, num_tokens - 1)):
        yield [0, at, num_tokens]
    for _ in range(4):
        yield sorted({0, num_tokens, *(rng.randrange(num_tokens) for _ in range(rng.randrange(1, 12)))})


def outputs_of(request, tokenizer, ids, bounds, reason, kind):
    """(text, token ids, finish reason, stop reason) of each chunk that the caller sees."""
    params = request.params.clone(output_kind=kind)
    stream = RequestStream(Request("r", [1], params), tokenizer)
    seen = []
    for first, end in zip(bounds, bounds[1:]):
        last = end == len(ids)
        result = stream.push(EngineOutput("r", 0, ids[first:end], None, None, reason if last else None))
        if result is not None:
            o = result.outputs[0]
            seen.append((o.text, o.token_ids, o.finish_reason, o.stop_reason))
    return seen


def chat_of(manner, chunks):
    reader = AnswerReader(manner)
    found = {"content": "", "reasoning": "", "calls": []}
    for text, ids, reason, _ in chunks:
        for delta in reader.deltas(text, reason is not None, ids):
            found["content"] += delta.content or ""
            found["reasoning"] += delta.reasoning or ""
            assert delta.reasoning == delta.reasoning_content
            for call in delta.tool_calls or ():
                if call.id:
                    assert call.index == len(found["calls"])
                    found["calls"].append([call.function.name, ""])
                found["calls"][call.index][1] += call.function.arguments
    last = chunks[-1]
    return found, reader.finish_reason(last[2]), last[3], reader.num_reasoning_tokens


def whole_chat_of(manner, chunks):
    ((text, ids, reason, stop),) = chunks
    reader = AnswerReader(manner)
    message = reader.message(text, ids)
    calls = [[c.function.name, c.function.arguments] for c in message.tool_calls or ()]
    found = {"content": message.content or "", "reasoning": message.reasoning or "", "calls": calls}
    return found, reader.finish_reason(reason), stop, reader.num_reasoning_tokens


def response_of(manner, chunks):
    """The items that the events of the Responses API make, after a check of each event against the one before it."""
    builder = OutputBuilder(manner)
    items = []
    for text, ids, reason, _ in chunks:
        for event in builder.push(text, reason, ids):
            kind = event["type"].removeprefix("response.")
            if kind == "output_item.added":
                assert event["output_index"] == len(items)
                items.append({"told": ""})
                continue
            assert event["output_index"] == len(items) - 1
            if kind.endswith(".delta"):
                items[-1]["told"] += event["delta"]
            elif kind == "output_item.done":
                items[-1].update(event["item"])
            elif kind.endswith("text.done"):
                assert event["text"] == items[-1]["told"]
            elif kind.endswith("arguments.done"):
                assert event["arguments"] == items[-1]["told"]
    assert [{**item, "told": None} for item in items] == [{**item, "told": None} for item in builder.items]
    return [{**item, "id": None, "call_id": None} for item in items]


def blocks_of(manner, chunks):
    """The blocks that the events of Anthropic's API make."""
    builder = BlockBuilder(manner)
    blocks = []
    for text, ids, reason, _ in chunks:
        for event in builder.push(text, reason is not None, ids):
            if event["type"] == "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "told": ""})
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                kind = delta["type"]
                if kind == "input_json_delta":
                    blocks[-1]["told"] += delta["partial_json"]
                elif kind != "signature_delta":
                    blocks[-1][kind.removesuffix("_delta")] += delta[kind.removesuffix("_delta")]
    for block in blocks:
        told = block.pop("told")
        if block["type"] == "tool_use":
            block["input"] = json.loads(told)
    assert blocks == builder.blocks
    return [{**block, "id": None} for block in blocks]


@pytest.mark.timeout(7200)
def test_every_way_to_cut_an_answer_gives_the_same_answer(tokenizer):
    rng = random.Random(22)
    num_cuts = num_calls = num_reasoning = 0
    for number in range(NUM_CASES):
        manner = manner_of(rng, tokenizer)
        ids = tokens_of(rng, tokenizer, manner)
        reason = rng.choice(["stop", "length"])
        ids += [tokenizer.eos_token_id] * (reason == "stop")
        request = request_of(rng, len(ids))
        whole = outputs_of(request, tokenizer, ids, [0, len(ids)], reason, RequestOutputKind.FINAL_ONLY)
        expected = (whole_chat_of(manner, whole), response_of(manner, whole), blocks_of(manner, whole))
        num_calls += len(expected[0][0]["calls"])
        num_reasoning += bool(expected[0][0]["reasoning"])
        for bounds in cuts(rng, len(ids)):
            num_cuts += 1
            chunks = outputs_of(request, tokenizer, ids, bounds, reason, RequestOutputKind.DELTA)
            found = (chat_of(manner, chunks), response_of(manner, chunks), blocks_of(manner, chunks))
            assert found == expected, (number, manner, ids, bounds, reason, request.params)
    print(f"{NUM_CASES} answers, cut in {num_cuts} ways; {num_calls} calls, {num_reasoning} with reasoning")
    assert num_calls > NUM_CASES // 20 and num_reasoning > NUM_CASES // 20
