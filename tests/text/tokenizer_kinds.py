"""Tokenizer folders of every kind that checkpoints have, trained in a moment on a few lines; no network."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The capital of France is Paris. It's 12345 km from here, isn't it?",
    "浙江的省会在哪里？浙江的省会是杭州。你好，世界！",
    "def main():\n    print('hello world')\n\n\treturn 0\r\n",
    "naïve café, Ünïcödé, русский текст, עברית, العربية, हिन्दी 😀👍🏽",
    "hello hello world world the the of of and and capital capital",
] * 3

PROBES = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \n",
    "a",
    " a",
    "a ",
    "  a  b   c ",
    "Hello, world!",
    "The capital of France is Paris.",
    "it's we'll I'M DON'T",
    "1234567890 3.14159 1,000,000",
    "浙江的省会在哪里？",
    "你好，世界！hello世界",
    "日本語テキスト 한국어",
    "😀 👍🏽 👩‍👩‍👧‍👦 🇨🇳",
    "e\u0301 é \u212b Å",
    "naïve café",
    "tab\tand\r\nnewline\n\n\nend",
    "def f(x):\n    return x ** 2  # squared\n",
    "\u200b\u200d\ufeff zero width",
    "\x00 \x01 \x7f control",
    "\ufffd replacement",
    "∑∫√ αβγ ﷽ 𝕬",
    "मानक हिन्दी",
    "a" * 300,
    "hello " * 50,
    "<s>", "</s>", "<unk>", "[CLS] a [SEP]",
    "<|im_start|>user\nhi<|im_end|>\n",
    "x<|im_end|>y <|im_end|> z",
    "<s> hello</s>world <s>",
    "<0x41><0xE4>",
    "▁under▁score",
    "Ġ byte level Ċ letters",
    "https://example.com/a?b=c&d=%20",
]  # fmt: skip

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save(folder: Path, tokenizer: Tokenizer, config: dict, model_type: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"clean_up_tokenization_spaces": False, "model_max_length": 4096, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def qwen2(folder: Path) -> Path:
    """Byte-level BPE, NFC, single digits; no bos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    decoder = {
        str(i): {"content": t.content, "special": t.special, "normalized": False}
        for i, t in tokenizer.get_added_tokens_decoder().items()
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "unk_token": None, "added_tokens_decoder": decoder, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }  # fmt: skip
    return save(folder, tokenizer, config, "qwen2")


def opt(folder: Path) -> Path:
    """GPT-2's byte-level BPE with </s> put before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    config = {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>",
        "pad_token": "<pad>", "add_bos_token": True,
    }  # fmt: skip
    return save(folder, tokenizer, config, "opt")


def llama(folder: Path, legacy: bool = False) -> Path:
    """Sentencepiece-style BPE with byte fallback; <s> before every text."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), behavior="isolated")  # words, for training alone
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"])
    trained.train_from_iterator([CORPUS[0], CORPUS[1], CORPUS[4]] * 3, trainer)  # other scripts fall back to bytes
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in pieces]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        tokenizer.normalizer = trained.normalizer
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "legacy": legacy,
    }  # fmt: skip
    return save(folder, tokenizer, config, "llama")


def unigram(folder: Path) -> Path:
    """Unigram with a Metaspace decoder; </s> after every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    }  # fmt: skip
    return save(folder, tokenizer, config, "unknown")


def wordpiece(folder: Path) -> Path:
    """BERT's word pieces, [CLS] and [SEP] around every text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {
        "tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]",
        "unk_token": "[UNK]", "mask_token": "[MASK]",
    }  # fmt: skip
    return save(folder, tokenizer, config, "bert")


KINDS = {"qwen2": qwen2, "opt": opt, "llama": llama, "unigram": unigram, "wordpiece": wordpiece}
