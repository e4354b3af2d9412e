"""Streams of text: joined they are the whole, no half characters, whatever the ids and however they are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, PROBES

from quire.text.detokenizer import IncrementalDetokenizer

KIND_NAMES = sorted(KINDS)


def stream(detokenizer, ids, cuts=()):
    """Pushes the ids in the pieces that `cuts` makes; one by one without."""
    bounds = sorted({0, len(ids), *cuts}) if cuts else range(len(ids) + 1)
    deltas = [detokenizer.push(ids[a:b]) for a, b in zip(bounds, list(bounds)[1:])]
    return [*deltas, detokenizer.flush()]


@st.composite
def sequences(draw):
    """Ids of a vocabulary of unknown size (taken modulo), biased to single bytes, and where to cut them."""
    ids = draw(st.lists(st.integers(0, 10**6) | st.integers(0, 280), max_size=40))
    return ids, draw(st.lists(st.integers(0, 40), max_size=5))


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("skip", [True, False])
@given(sequence=sequences())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_joined_deltas_are_the_decoded_whole(kind, skip, tokenizers, sequence):
    tokenizer = tokenizers(kind)
    ids = [i % (tokenizer.vocab_size + 3) for i in sequence[0]]
    cuts = [c for c in sequence[1] if c < len(ids)]
    deltas = stream(IncrementalDetokenizer(tokenizer, skip), ids, cuts)
    assert "".join(deltas) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "opt"])
def test_half_characters_are_held_back(kind, tokenizers):
    tokenizer = tokenizers(kind)
    for probe in PROBES:
        if "\ufffd" in probe:
            continue
        ids = tokenizer.encode(probe, add_special_tokens=False)
        detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        deltas = [detokenizer.push([i]) for i in ids]
        assert not any("\ufffd" in delta for delta in deltas), probe
        assert "".join(deltas) + detokenizer.flush() == tokenizer.decode(ids, False)


def test_a_cut_off_character_shows_at_the_end(tokenizers):
    tokenizer = tokenizers("qwen2")
    ids = tokenizer.encode("ok 😀")[:-1]
    deltas = stream(IncrementalDetokenizer(tokenizer), ids)
    assert deltas[-1] == "\ufffd" and "".join(deltas) == tokenizer.decode(ids) == "ok \ufffd"


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_after_a_prompt_the_first_token_keeps_its_space(kind, tokenizers):
    tokenizer = tokenizers(kind)
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    ids = tokenizer.encode("hello world the capital", add_special_tokens=False)[len(prompt) :]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt)
    assert "hello" + "".join(stream(detokenizer, ids)) == tokenizer.decode(prompt + ids)


def test_after_skipped_special_tokens_the_first_token_is_the_first(tokenizers):
    tokenizer = tokenizers("llama")
    ids = tokenizer.encode("world", add_special_tokens=False)
    assert "".join(stream(IncrementalDetokenizer(tokenizer, prompt_token_ids=[1, 2, 1]), ids)) == "world"
    shown = IncrementalDetokenizer(tokenizer, skip_special_tokens=False, prompt_token_ids=[1])
    assert "".join(stream(shown, ids)) == " world"


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_character_begun_in_the_prompt_is_completed(kind, tokenizers):
    tokenizer = tokenizers(kind)
    ids = tokenizer.encode("x😀y", add_special_tokens=False)
    for cut in range(2, len(ids)):
        detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=ids[:cut])
        text = "".join(stream(detokenizer, ids[cut:]))
        assert text == ("😀y" if "😀" not in tokenizer.decode(ids[:cut]) else "y"), cut


def test_special_tokens_can_be_joined_without_spaces(tokenizers):
    tokenizer = tokenizers("wordpiece")
    ids = [tokenizer.encode("hello", False)[0], 2, 3, 4, *tokenizer.encode("world", False)]
    spaced = "".join(stream(IncrementalDetokenizer(tokenizer, False, True), ids))
    joined = "".join(stream(IncrementalDetokenizer(tokenizer, False, False), ids))
    assert "[CLS] [SEP] [MASK]" in spaced and "[CLS][SEP][MASK]" in joined
    assert joined == spaced.replace("[CLS] [SEP] [MASK]", "[CLS][SEP][MASK]")


class CountingBackend:
    """Counts the tokens that are given to decode()."""

    def __init__(self, backend):
        self.backend, self.num_decoded_tokens = backend, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def decode(self, ids, **options):
        self.num_decoded_tokens += len(ids)
        return self.backend.decode(ids, **options)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_work_grows_with_the_number_of_tokens_alone(kind, folders, monkeypatch):
    from quire.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(folders(kind))
    counting = CountingBackend(tokenizer._backend)
    monkeypatch.setattr(tokenizer.token_texts, "_backend", counting)
    ids = tokenizer.encode("hello 你好 😀 " * 500, add_special_tokens=False)
    stream(IncrementalDetokenizer(tokenizer), ids)
    assert counting.num_decoded_tokens <= 2 * len(ids)
