"""SamplingParams: every field's bounds, canonical forms and error texts."""

import math

import pytest

from quire.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.errors import InvalidRequest

NUMBERS = {
    "n": (1, 64), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "temperature": (0, 2), "min_p": (0, 1),
    "logprobs": (-1, None), "prompt_logprobs": (-1, None), "min_tokens": (0, None), "top_k": (-1, None), "max_tokens": (1, None),
}  # fmt: skip
HOSTILE = [math.nan, math.inf, -math.inf, 1e400, "1", [], {}, True, 10**5000, -(10**5000), "x" * 100_000]


def test_defaults_are_those_users_know():
    p = SamplingParams()
    assert (p.n, p.temperature, p.top_p, p.top_k, p.min_p, p.max_tokens, p.seed) == (1, 1.0, 1.0, 0, 0.0, 16, None)
    assert (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (
        p.stop == [] and p.stop_token_ids == [] and p.logprobs is None and p.output_kind is RequestOutputKind.CUMULATIVE
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_at_and_past_their_bounds(name: str):
    low, high = NUMBERS[name]
    extra = {"max_tokens": None} if name == "min_tokens" else {}
    assert getattr(SamplingParams(**{name: low}, **extra), name) in (low, 0)
    if high is not None:
        assert getattr(SamplingParams(**{name: high}), name) == high
    for bad in [low - 1, *([high + 1] if high is not None else []), *HOSTILE]:
        if isinstance(bad, int) and not isinstance(bad, bool) and bad > low and high is None and name == "top_k":
            continue  # any top_k above the vocabulary means all of it
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(**{name: bad}, **extra)
        assert caught.value.param == name and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["top_p", "repetition_penalty"])
def test_zero_is_out_for_open_intervals(name: str):
    for bad in (0, 0.0, -0.0, -1, *HOSTILE):
        with pytest.raises(InvalidRequest, match=name):
            SamplingParams(**{name: bad})


def test_canonical_forms():
    p = SamplingParams(stop="x", top_k=-1, temperature=0.001, seed=-1, logit_bias={"5": 1000, 6: -1000.0})
    assert p.stop == ["x"] and p.top_k == 0 and p.temperature == 0.01 and p.seed == 2**64 - 1
    assert p.logit_bias == {5: 100.0, 6: -100.0}
    assert SamplingParams(temperature=0).greedy and not p.greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", 5), ("stop", [1]), ("stop", [""]), ("stop", ["a"] * 17), ("stop", ["a" * 257]),
        ("stop_token_ids", "abc"), ("stop_token_ids", [-1]), ("stop_token_ids", [2**40]), ("stop_token_ids", ["1"]),
        ("allowed_token_ids", []), ("allowed_token_ids", [-5]), ("bad_words", [""]), ("bad_words", ["a"] * 129),
        ("logit_bias", [1]), ("logit_bias", {1: math.nan}), ("logit_bias", {-1: 1}), ("logit_bias", {"a": 1}),
        ("logit_bias", dict.fromkeys(range(301), 0)), ("ignore_eos", 1), ("seed", 2**64), ("seed", 1.5), ("min_tokens", 17),
    ],
)  # fmt: skip
def test_refused_values_name_the_field(name: str, value: object):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_contradictions():
    with pytest.raises(InvalidRequest, match="temperature 0"):
        SamplingParams(n=2, temperature=0)
    with pytest.raises(InvalidRequest, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_clone_validates_and_leaves_the_original():
    p = SamplingParams(seed=1)
    assert p.clone(max_tokens=5).max_tokens == 5 and p.max_tokens == 16
    with pytest.raises(InvalidRequest):
        p.clone(top_p=2)


def test_beam_search_params():
    assert BeamSearchParams(beam_width=3, max_tokens=5).length_penalty == 1.0
    for bad in ({"beam_width": 0}, {"max_tokens": 0}, {"temperature": math.nan}, {"length_penalty": "a"}):
        with pytest.raises(InvalidRequest):
            BeamSearchParams(**bad)
