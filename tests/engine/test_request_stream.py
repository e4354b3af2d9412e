"""What the engine gives -> what the caller sees: text, stop strings, logprobs, streaming kinds, whatever the split into steps."""

import random

import pytest
from tiny_checkpoints import byte_tokenizer

from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.core.outputs import EngineOutput
from quire.core.params import RequestOutputKind, SamplingParams
from quire.core.request import Request
from quire.engine.stream import RequestStream
from quire.text.tokenizer import Tokenizer

PROMPT = [72, 105]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_dir(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def stream_for(tokenizer, **params):
    params.setdefault("max_tokens", 1000)
    request = Request("r", PROMPT, SamplingParams(seed=0, **params))
    return RequestStream(request, tokenizer, label="7", prompt="Hi")


def entry(token_id, others=()):
    return TokenLogprobs([token_id, *others], [-0.5 - i for i in range(1 + len(others))], rank=3)


def outputs_of(token_ids, splits, finish_reason="length", index=0, logprobs=False, stop_reason=None):
    """The tokens as a run of EngineOutputs cut at `splits`; the last one carries the end."""
    bounds = [0, *sorted(splits), len(token_ids)]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        ids = token_ids[begin:end]
        last = end == len(token_ids)
        yield EngineOutput(
            "r", index, ids, LogprobColumns.of(entry(i, (i + 1,)) for i in ids) if logprobs else None,
            finish_reason=finish_reason if last else None, stop_reason=stop_reason if last else None,
        )  # fmt: skip


def run(stream, outputs):
    return [seen for output in outputs if (seen := stream.push(output)) is not None]


@pytest.mark.parametrize("stop", [None, ["世界"], ["d!"], ["nowhere", "é n"], ["\n\n"]])
@pytest.mark.parametrize("include", [False, True])
def test_deltas_add_up_to_the_whole_for_any_split(tokenizer, stop, include):
    text = "Hello, world! 你好，世界！naïve é né 😀👍🏽\n\nend"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    rng = random.Random(0)
    wholes = set()
    for _ in range(60):
        splits = rng.sample(range(1, len(token_ids)), rng.randrange(len(token_ids) - 1))
        params = {"stop": stop, "include_stop_str_in_output": include, "logprobs": 1}
        seen = {}
        for kind in RequestOutputKind:
            stream = stream_for(tokenizer, output_kind=kind, **params)
            seen[kind] = run(stream, outputs_of(token_ids, splits, logprobs=True))
            assert stream.finished and seen[kind][-1].finished
        final = seen[RequestOutputKind.FINAL_ONLY][-1].outputs[0]
        deltas = [output.outputs[0] for output in seen[RequestOutputKind.DELTA]]
        assert len(seen[RequestOutputKind.FINAL_ONLY]) == 1
        assert "".join(delta.text for delta in deltas) == final.text
        assert [i for delta in deltas for i in delta.token_ids] == final.token_ids
        assert [i for delta in deltas for i in delta.logprobs] == final.logprobs
        assert deltas[-1].cumulative_logprob == final.cumulative_logprob == pytest.approx(-0.5 * len(final.token_ids))
        assert seen[RequestOutputKind.CUMULATIVE][-1].outputs == [final]
        assert len(final.logprobs) == len(final.token_ids)
        wholes.add((final.text, tuple(final.token_ids), final.finish_reason, final.stop_reason))
    assert len(wholes) == 1
    (whole, ids, reason, matched) = wholes.pop()
    found = [text.find(s) for s in stop or [] if s in text]
    if found:
        assert reason == "stop" and matched in stop
        assert whole == text[: found[0] + (len(matched) if include else 0)]
        assert tokenizer.decode(ids).startswith(text[: found[0]])
    else:
        assert (whole, reason, matched) == (text, "length", None)


def test_tokens_after_the_stop_string_are_dropped_and_the_engine_is_told(tokenizer):
    token_ids = tokenizer.encode("one STOP two three", add_special_tokens=False)
    stream = stream_for(tokenizer, stop="STOP", output_kind=RequestOutputKind.DELTA)
    seen = run(stream, outputs_of(token_ids, range(1, len(token_ids)), finish_reason=None))
    assert "".join(o.outputs[0].text for o in seen) == "one "
    assert seen[-1].outputs[0].finish_reason == "stop" and seen[-1].outputs[0].stop_reason == "STOP"
    assert stream.finished and stream.take_unwanted() == [0] and stream.take_unwanted() == []
    assert stream.push(EngineOutput("r", 0, [1], finish_reason="length")) is None


def test_a_stop_string_does_not_count_before_min_tokens(tokenizer):
    token_ids = [tokenizer.token_to_id("z")] * 6
    stream = stream_for(tokenizer, stop="z", min_tokens=4)
    final = run(stream, outputs_of(token_ids, [2]))[-1].outputs[0]
    assert (final.text, final.token_ids, final.stop_reason) == ("zzzz", token_ids[:5], "z")


def test_the_token_that_ends_a_sequence_is_kept_as_a_token_and_not_as_text(tokenizer):
    token_ids = tokenizer.encode("yes.", add_special_tokens=False)
    dot = token_ids[-1]
    final = run(stream_for(tokenizer, stop_token_ids=[dot]), outputs_of(token_ids, [], "stop", stop_reason=dot))[-1]
    assert (final.outputs[0].text, final.outputs[0].token_ids, final.outputs[0].stop_reason) == ("yes", token_ids, dot)
    stream = stream_for(tokenizer, stop_token_ids=[dot], include_stop_str_in_output=True)
    assert run(stream, outputs_of(token_ids, [], "stop", stop_reason=dot))[-1].outputs[0].text == "yes."


def test_special_tokens_are_shown_only_when_asked_for(tokenizer):
    mark = tokenizer.token_to_id("<|im_start|>")
    ids = [*tokenizer.encode("a", False), mark, *tokenizer.encode("b", False)]
    assert run(stream_for(tokenizer), outputs_of(ids, [1]))[-1].outputs[0].text == "ab"
    shown = run(stream_for(tokenizer, skip_special_tokens=False), outputs_of(ids, [1]))[-1]
    assert shown.outputs[0].text == "a<|im_start|>b"


def test_half_a_character_waits_and_a_cut_off_one_shows_at_the_end(tokenizer):
    ids = tokenizer.encode("龍", False)
    stream = stream_for(tokenizer, output_kind=RequestOutputKind.DELTA)
    assert len(ids) > 1, "the character must take several tokens"
    texts = [o.outputs[0].text for o in run(stream, outputs_of(ids[:-1], range(1, len(ids) - 1)))]
    assert texts[:-1] == [""] * (len(ids) - 2) and texts[-1] == "\ufffd"


def test_logprobs_have_the_names_and_shapes_users_know(tokenizer):
    ids = tokenizer.encode("hi", False)
    stream = stream_for(tokenizer, logprobs=1, prompt_logprobs=0)
    first = EngineOutput(
        "r", 0, ids[:1], LogprobColumns.of([entry(ids[0], (5, ids[0]))]), prompt_logprobs=[entry(PROMPT[1])]
    )
    seen = stream.push(first)
    assert seen.prompt_logprobs[0] is None and list(seen.prompt_logprobs[1]) == [PROMPT[1]]
    (row,) = seen.outputs[0].logprobs
    assert list(row) == [ids[0], 5]
    assert (row[ids[0]].logprob, row[ids[0]].rank, row[ids[0]].decoded_token) == (-0.5, 3, tokenizer.token_text(ids[0]))
    assert (row[5].logprob, row[5].rank) == (-1.5, 1)
    assert (
        stream.push(EngineOutput("r", 0, [ids[0]], LogprobColumns.of([entry(ids[0], (5, ids[0]))]))).prompt_logprobs
        is not None
    )


def test_n_sequences_end_once_each_and_come_back_in_order(tokenizer):
    ids = {
        0: tokenizer.encode("first", False),
        1: tokenizer.encode("second", False),
        2: tokenizer.encode("third", False),
    }
    stream = stream_for(tokenizer, n=3, temperature=1.0, output_kind=RequestOutputKind.FINAL_ONLY)
    assert run(stream, outputs_of(ids[2], [1], index=2)) == []
    assert run(stream, [EngineOutput("r", 1, ids[1], finish_reason="error", error="its logits became NaN")]) == []
    assert not stream.finished
    (final,) = run(stream, outputs_of(ids[0], [1], index=0))
    assert [(o.index, o.text, o.finish_reason) for o in final.outputs] == [
        (0, "first", "length"), (1, "second", "error"), (2, "third", "length"),
    ]  # fmt: skip
    assert final.outputs[1].error == "its logits became NaN"


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_a_cancelled_request_ends_with_abort_and_only_once(tokenizer, kind):
    stream = stream_for(tokenizer, output_kind=kind)
    stream.push(EngineOutput("r", 0, tokenizer.encode("so far", False)))
    last = stream.cancel()
    assert last.finished and (last.outputs[0].text, last.outputs[0].finish_reason) == ("so far", "abort")
    assert stream.take_unwanted() == [0] and stream.cancel() is None


def test_without_a_tokenizer_there_are_ids_alone():
    stream = stream_for(None, logprobs=0)
    final = run(stream, outputs_of([1, 2, 3], [1], logprobs=True))[-1]
    assert (final.outputs[0].text, final.outputs[0].token_ids) == ("", [1, 2, 3])
    assert final.outputs[0].logprobs[0][1].decoded_token is None


def test_times_and_labels(tokenizer):
    stream = stream_for(tokenizer)
    seen = run(stream, outputs_of([1, 2, 3], [1, 2]))
    times = seen[-1].metrics
    assert times.arrival_time <= times.first_token_time <= times.finished_time
    assert seen[0].metrics.finished_time is None
    assert (seen[0].request_id, seen[0].prompt, seen[0].prompt_token_ids) == ("7", "Hi", PROMPT)
