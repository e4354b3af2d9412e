"""Tokenizer against transformers on every kind of tokenizer, and its own promises."""

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizer_kinds import CORPUS, KINDS, PROBES, llama, opt, qwen2

from quire.errors import CheckpointError, InvalidRequest
from quire.text.tokenizer import Tokenizer

KIND_NAMES = sorted(KINDS)


@pytest.fixture(scope="module")
def hf_tokenizers(folders):
    from transformers import AutoTokenizer

    return {kind: AutoTokenizer.from_pretrained(folders(kind)) for kind in KIND_NAMES}


def random_ids(tokenizer, num, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(16))] for _ in range(num)]


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_encodes_and_decodes_as_transformers_does(kind, tokenizers, hf_tokenizers):
    ours, theirs = tokenizers(kind), hf_tokenizers[kind]
    for probe in PROBES:
        for add in (True, False):
            ids = ours.encode(probe, add)
            assert ids == theirs.encode(probe, add_special_tokens=add), probe
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), probe
    for ids in random_ids(ours, 300):
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), ids


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_names_the_special_tokens_transformers_names(kind, tokenizers, hf_tokenizers):
    ours, theirs = tokenizers(kind), hf_tokenizers[kind]
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens_map == {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.special_ids >= set(theirs.all_special_ids)


@pytest.mark.parametrize("kind", ["qwen2", "opt", "llama"])
def test_text_survives_the_round_trip(kind, tokenizers):
    tokenizer = tokenizers(kind)
    for probe in PROBES:
        if kind != "qwen2" or probe.isascii():  # Qwen2 normalises to NFC
            ids = tokenizer.encode(probe, add_special_tokens=False)
            expected = probe.replace("▁", " ") if kind == "llama" else probe
            assert b"".join(map(tokenizer.token_bytes, ids)).decode().lstrip(" ") == expected.lstrip(" ")


def test_flags_of_llama_classes_count(tmp_path):
    """DeepSeek-R1-Distill-Qwen: tokenizer.json adds no bos, its config says add_bos_token; it was published with bos."""
    folder = qwen2(tmp_path)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    plain = Tokenizer.from_dir(folder).encode("hello")
    config |= {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<|im_start|>", "add_bos_token": True}
    path.write_text(json.dumps(config))
    flagged = Tokenizer.from_dir(folder)
    assert flagged.encode("hello") == [flagged.bos_token_id, *plain]
    assert flagged.encode("hello", add_special_tokens=False) == plain
    path.write_text(json.dumps(config | {"add_eos_token": True, "add_bos_token": False}))
    assert Tokenizer.from_dir(folder).encode("hello") == [*plain, flagged.eos_token_id]
    path.write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    assert Tokenizer.from_dir(folder).encode("hello") == plain


def test_llama_without_bos(tmp_path):
    folder = llama(tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": False}))
    assert 1 not in Tokenizer.from_dir(folder).encode("hello")


def test_the_normaliser_of_older_llama_files_counts(tmp_path):
    """transformers 5 replaces it by Metaspace, which drops one of the spaces a text begins with; 4.57 kept it as we do."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = llama(tmp_path, legacy=True)
    ours, theirs = Tokenizer.from_dir(folder), AutoTokenizer.from_pretrained(folder)
    as_the_file_says = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), legacy=True)
    for probe in PROBES:
        assert ours.encode(probe) == as_the_file_says.encode(probe), probe
        if probe[:1] not in (" ", "▁") and "<s>" not in probe:
            assert ours.encode(probe) == theirs.encode(probe), probe


def test_side_files_of_old_checkpoints_add_tokens(tmp_path):
    from transformers import AutoTokenizer

    folder = opt(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<new>": 380, "<sys>": 381}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "</s>", "lstrip": False}, "additional_special_tokens": ["<sys>"]})
    )
    ours, theirs = Tokenizer.from_dir(folder), AutoTokenizer.from_pretrained(folder)
    text = "a<new> b<sys> c</s>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == len(theirs) == 382
    assert ours.decode(ours.encode(text)) == "a<new> b c"  # transformers 5 forgets that <sys> is special
    assert ours.eos_token_id == 2


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path):
    folder = opt(tmp_path)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert len(Tokenizer.from_dir(folder).encode("1 2 3 4 5 6 7 8 9")) > 9


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_text_that_is_no_unicode_is_refused(kind, tokenizers):
    for text in ("\ud800", "a\udfffb", "ok \ud83d"):
        with pytest.raises(InvalidRequest, match="surrogate"):
            tokenizers(kind).encode(text)
    for text in (None, 3, b"bytes", ["a"]):
        with pytest.raises(InvalidRequest, match="must be a string"):
            tokenizers(kind).encode(text)


def test_long_text_is_refused_before_it_is_tokenised(tokenizers):
    tokenizer = tokenizers("qwen2")
    assert tokenizer.encode("你" * 10, max_bytes=30)
    with pytest.raises(InvalidRequest, match="33 bytes; at most 30"):
        tokenizer.encode("你" * 11, max_bytes=30)


def test_ids_without_a_token_give_nothing(tokenizers):
    for kind in KIND_NAMES:
        tokenizer = tokenizers(kind)
        assert tokenizer.decode([tokenizer.vocab_size + 7]) == ""
        assert tokenizer.token_bytes(tokenizer.vocab_size + 7) == b""
        assert tokenizer.piece(tokenizer.vocab_size + 7) is None


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5], [None]])
def test_ids_that_cannot_be_are_refused(ids, tokenizers):
    with pytest.raises(InvalidRequest, match="token ids"):
        tokenizers("qwen2").decode(ids)


def test_token_texts_show_a_token_as_it_stands_in_a_sentence(tokenizers):
    qwen, lama = tokenizers("qwen2"), tokenizers("llama")
    assert [qwen.token_text(i) for i in qwen.encode("hello world")] == ["hello", " world"]
    assert [lama.token_text(i) for i in lama.encode("hello world")] == ["<s>", " hello", " world"]
    assert qwen.token_text(qwen.token_to_id("<|im_end|>")) == "<|im_end|>"
    ids = lama.encode("😀", add_special_tokens=False)[1:]
    assert [lama.token_text(i) for i in ids] == ["\ufffd"] * 4
    assert b"".join(map(lama.token_bytes, ids)).decode() == "😀"
    assert b"".join(map(qwen.token_bytes, qwen.encode("😀"))).decode() == "😀"


def test_many_threads_may_use_one_tokenizer(tokenizers):
    tokenizer = tokenizers("llama")
    expected = [tokenizer.encode(p) for p in PROBES]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(tokenizer.encode, PROBES)) == expected


def test_broken_files_are_named(tmp_path):
    folder = qwen2(tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer_config.json cannot be read"):
        Tokenizer.from_dir(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_dir(folder)


def test_a_folder_without_any_tokenizer_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no sentencepiece model")
    with pytest.raises(CheckpointError, match="no tokenizer can be read"):
        Tokenizer.from_dir(tmp_path)


def test_vocab_and_merges_files_will_do(tmp_path, tokenizers, folders):
    """facebook/opt-125m has no tokenizer.json; the flags of its config then count in transformers too."""
    model = json.loads((folders("opt") / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text((folders("opt") / name).read_text())
    ours, expected = Tokenizer.from_dir(tmp_path), tokenizers("opt")
    for probe in PROBES:
        if "<s>" not in probe and "<unk>" not in probe:  # special in tokenizer.json alone
            assert ours.encode(probe) == expected.encode(probe)
    assert ours.eos_token_id == expected.eos_token_id


def test_a_sentencepiece_model_will_do(tmp_path):
    """lmsys/vicuna-7b-v1.5 has tokenizer.model alone; sentencepiece itself says what its ids are."""
    import sentencepiece

    (tmp_path / "corpus").write_text("\n".join(line.replace("\n", " ") for line in CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=350, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ours = Tokenizer.from_dir(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for probe in PROBES:
        if probe[:1] not in (" ", "▁") and "<" not in probe:
            ids = reference.encode(probe)
            assert ours.encode(probe) == [1, *ids], probe
            assert ours.decode(ids) == reference.decode(ids)
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    canary = tmp_path / "ran"
    (tmp_path / "config.json").write_text('{"model_type": "custom", "auto_map": {"AutoConfig": "evil.C"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}')
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nC = T = object\n")
    with pytest.raises(CheckpointError):
        Tokenizer.from_dir(tmp_path)
    assert not canary.exists()


def test_transformers_tokenizer_is_there_when_asked_for(tokenizers):
    hf = tokenizers("qwen2").hf
    assert hf.encode("hello") == tokenizers("qwen2").encode("hello")
    assert tokenizers("qwen2").hf is hf


def test_the_normal_path_loads_neither_transformers_nor_torch(folders):
    code = (
        "import sys; from quire.text.tokenizer import Tokenizer; "
        f"Tokenizer.from_dir({str(folders('llama'))!r}).encode('hello'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
