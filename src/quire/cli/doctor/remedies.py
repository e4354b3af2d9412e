"""From a fault to changes that may mend it, the best first. Whoever asks tries each and keeps the first that does."""

import difflib
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from quire.cli.args import REMOVED_FLAGS
from quire.cli.doctor.checks import PROXIES, Fault, Patient, cache_folder
from quire.cli.doctor.edits import Edit, flags_in, spelled, with_flag, with_model, without
from quire.config import EngineArgs
from quire.errors import SetupError
from quire.server.listen import is_loopback
from quire.server.options import ServerArgs

Remedy = Callable[[str, Patient], Iterator[Edit]]
DTYPE_WORDS = {"bf16": "bfloat16", "fp16": "half", "f16": "half", "fp32": "float", "f32": "float"}
SMALLEST_LENGTH = 512
MAX_PORTS_TRIED = 50


def remedies(fault: SetupError, patient: Patient) -> Iterator[Edit]:
    """Changes to try. They come from the fault's own words, so that what a start says and what is tried never part."""
    if isinstance(fault, Fault):
        yield from fault.edits
    text = str(fault)
    for remedy in (
        _pip,
        _port,
        _flags,
        _choice,
        _model,
        _hub,
        _files,
        _tracing,
        _length,
        _device,
        _reader,
        _memory,
        _leave_out,
    ):
        yield from remedy(text, patient)


def _pip(text: str, patient: Patient) -> Iterator[Edit]:
    """A package is missing."""
    if found := re.search(r"pip install(?: [\w.]+-[\w.-]*\w)+", text):
        yield Edit(shell=found[0])


def _port(text: str, patient: Patient) -> Iterator[Edit]:
    if re.search(r"\bport\b", text) and ("in use" in text or "must be between" in text or "cannot listen" in text):
        first = patient.server_args.port + 1 if 1024 <= patient.server_args.port < 65000 else 8000
        free = next((port for port in range(first, first + MAX_PORTS_TRIED) if _is_free(port)), None)
        if free is not None:
            yield Edit(words=with_flag(patient.words, "--port", str(free)))


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def _flags(text: str, patient: Patient) -> Iterator[Edit]:
    """A flag that is not known, or that nobody needs any more; a model that a flag has swallowed."""
    words = patient.words
    if found := re.search(r"unknown flag (\S+?)[;:]? .*did you mean (\S+)\?", text):
        wrong, right = found[1].rstrip(";"), found[2]
        yield Edit(
            words=[re.sub(rf"^{re.escape(w.partition('=')[0])}", right, w) if _same(w, wrong) else w for w in words]
        )
    if found := re.search(r"^(?:unknown flag )?(--[\w-]+)(?: is not taken here|)", text):
        yield Edit(words=without(words, found[1]))
    if "takes all words after it" in text and words and not words[-1].startswith("-"):
        yield Edit(words=[words[-1], *words[:-1]])
    if found and "--config" in flags_in(words) and found[1] not in flags_in(words):
        name = re.sub("[-_]", "[-_]", found[1].lstrip("-"))
        path = words[[spelled(word) for word in words].index("--config") + 1]
        yield Edit(shell=f"sed -i -E '/^{name} *:/d' {shlex.quote(path)}")
    if "two models are given" in text:
        yield Edit(words=without(words, "--model"))


def _same(word: str, flag: str) -> bool:
    return word.partition("=")[0].replace("_", "-") == flag


def _choice(text: str, patient: Patient) -> Iterator[Edit]:
    """A value that is not among those there are."""
    found = re.search(r"argument (\S+?)(?:/\S+)?: invalid choice: '([^']*)' \(choose from (.*?)\)", text)
    if found is None:
        return
    flag, given, choices = found[1], found[2], re.findall(r"[\w.-]+", found[3])
    near = DTYPE_WORDS.get(given.lower()) or next(iter(difflib.get_close_matches(given, choices, 1)), None)
    if near in choices:
        yield Edit(words=with_flag(patient.words, flag, str(near)))


def _model(text: str, patient: Patient) -> Iterator[Edit]:
    """A path that is not quite right."""
    given = patient.engine_args.model
    if given is None or not text.startswith("model "):
        return
    path = Path(given).expanduser()
    if path.is_file() and (path.parent / "config.json").is_file():
        yield Edit(words=with_model(patient.words, str(path.parent)))
    if path.parent.is_dir():
        names = [p.name for p in path.parent.iterdir() if (p / "config.json").is_file()]
        for name in difflib.get_close_matches(path.name, names, 1, cutoff=0.5):
            yield Edit(words=with_model(patient.words, str(Path(given).parent / name)))
    if given.startswith("builtin:"):
        yield Edit(words=with_model(patient.words, "builtin:tiny"))


def _hub(text: str, patient: Patient) -> Iterator[Edit]:
    """The hub is not asked, or cannot be, or asks for a token."""
    url = re.match(r"(\w+)='([^']*)' in the environment: an address", text)
    if url and url[2] and "://" not in url[2]:
        here = is_loopback(url[2].partition(":")[0])
        yield Edit(environ={url[1]: f"http://{url[2]}" if here else f"https://{url[2]}"})
    if flag := re.match(r"(\w+)=.* in the environment: ", text):
        yield Edit(environ={flag[1]: None})
    if "HF_HUB_OFFLINE" in text or "TRANSFORMERS_OFFLINE" in text:
        yield Edit(environ={name: None for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)})
    if "hub" in text and patient.engine_args.revision is not None:
        yield Edit(words=without(patient.words, "--revision"))
    if "cannot be reached" in text or "broke off" in text:
        for names in (("HF_ENDPOINT",), PROXIES):
            if given := {name: None for name in names if os.environ.get(name)}:
                yield Edit(environ=dict(given))
        yield Edit(environ={"HF_ENDPOINT": "https://hf-mirror.com"})
    if "HF_TOKEN" in text:
        if os.environ.get("HF_TOKEN"):
            yield Edit(environ={"HF_TOKEN": None})
        yield Edit(shell="hf auth login")


def _files(text: str, patient: Patient) -> Iterator[Edit]:
    """A file of the checkpoint is missing or bad. From a hub's cache it is removed, and comes again; elsewhere git may have it."""
    folder = patient.folder
    if folder is None or patient.config is None and "config.json" not in text:
        return
    cache = cache_folder(patient.engine_args)
    if folder.is_relative_to(cache):
        repository = cache / folder.relative_to(cache).parts[0]
        named = [Path(found) for found in re.findall(r"(/\S+?)[:,]? ", text) if Path(found).is_file()]
        whole = [str(path) for file in named for path in {file, file.resolve()}]
        yield Edit(shell=shlex.join(["rm", "-rf", *(whole or [str(repository)])]))
    elif "git-lfs pointer" in text:
        yield Edit(shell=f"git -C {shlex.quote(str(folder))} lfs pull")
    if "pickle" in text and "--load-format pt" in text:
        yield Edit(words=with_flag(patient.words, "--load-format", "pt"))


def _tracing(text: str, patient: Patient) -> Iterator[Edit]:
    """A collector's address without its beginning or its path."""
    endpoint = patient.server_args.otlp_traces_endpoint or ""
    if text.startswith("--otlp-traces-endpoint is"):
        yield Edit(words=with_flag(patient.words, "--otlp-traces-endpoint", f"http://{endpoint.rstrip('/')}/v1/traces"))


def _length(text: str, patient: Patient) -> Iterator[Edit]:
    if found := re.search(r"max_model_len \d+ is above the (\d+) tokens", text):
        yield Edit(words=with_flag(patient.words, "--max-model-len", found[1]))


def _device(text: str, patient: Patient) -> Iterator[Edit]:
    """A device that is not there, or does not compute in that type."""
    if "none is visible" in text:
        if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
            yield Edit(environ={"CUDA_VISIBLE_DEVICES": None})
        yield Edit(words=with_flag(patient.words, "--device", "cpu"))
    if "does not compute in" in text:
        for dtype in ("half", "float"):
            yield Edit(words=with_flag(patient.words, "--dtype", dtype))


def _reader(text: str, patient: Patient) -> Iterator[Edit]:
    """Tokenizer, sampling defaults, chat template."""
    if "generation_config" in text:
        yield Edit(words=with_flag(patient.words, "--generation-config", "vllm"))
    if "tokenizer" in text:
        for name in ("--tokenizer", "--tokenizer-revision"):
            if name in flags_in(patient.words):
                yield Edit(words=without(patient.words, name))
        yield Edit(words=[*patient.words, "--skip-tokenizer-init"])


def _memory(text: str, patient: Patient) -> Iterator[Edit]:
    """Too little room: first without what the user fixed, then shorter, then with fewer at once."""
    if "does not fit" not in text and "KV blocks" not in text:
        return
    for name in (
        "--num-gpu-blocks-override",
        "--kv-cache-memory-bytes",
        "--max-num-batched-tokens",
        "--gpu-memory-utilization",
    ):
        if name in flags_in(patient.words):
            yield Edit(words=without(patient.words, name))
    length = patient.config.max_model_len // 2 if patient.config else 0
    while length >= SMALLEST_LENGTH:
        yield Edit(words=with_flag(patient.words, "--max-model-len", str(length)))
        length //= 2
    for number in (16, 1):
        yield Edit(words=with_flag(patient.words, "--max-num-seqs", str(number)))


def _leave_out(text: str, patient: Patient) -> Iterator[Edit]:
    """Last of all: any flag that the fault names, by its flag or its field, is left out; its default is known to work."""
    given = flags_in(patient.words)
    for option in [*fields(EngineArgs), *fields(ServerArgs)]:
        spellings = ["--" + option.name.replace("_", "-"), *option.metadata.get("aliases", ())]
        named = any(re.search(rf"(?<![\w-]){re.escape(s)}(?![\w-])", text) for s in (*spellings, option.name))
        here = [spelling for spelling in spellings if spelling in given]
        if here and named:
            yield Edit(words=without(patient.words, *here))
    for flag, value in zip(patient.words, patient.words[1:]):
        if flag.startswith("--") and not value.startswith("-") and repr(value) in text:
            yield Edit(words=without(patient.words, spelled(flag)))
    for flag in given:
        if flag in text and (flag in REMOVED_FLAGS or flag == "--config"):
            yield Edit(words=without(patient.words, flag))
