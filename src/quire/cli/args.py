"""Command-line flags made from an options dataclass (fields made with config.option), spelled the ways people type them.

--max-model-len, --max_model_len, --flag, --flag true, --flag=false, --no-flag, -tp 2, --config file.yaml, a positional model.
The command line beats the config file. An unknown flag is refused with the nearest name; a flag of older engines that no longer
means anything says what to use instead.
"""

import argparse
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from quire.errors import ConfigError

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")

# Flags that older tutorials use: what to do instead. They are refused, never ignored.
REMOVED_FLAGS = {
    "--task": "use --runner generate (the default)",
    "--speculative-model": "speculative decoding is not implemented yet",
    "--speculative-config": "speculative decoding is not implemented yet",
    "--num-speculative-tokens": "speculative decoding is not implemented yet",
    "--kv-cache-dtype": "the KV cache has the model's dtype",
    "--enable-lora": "LoRA adapters are not implemented yet; serve a merged checkpoint",
    "--lora-modules": "LoRA adapters are not implemented yet; serve a merged checkpoint",
    "--max-seq-len-to-capture": "decode graphs cover every length; leave it out",
    "--guided-decoding-backend": "llguidance constrains every output; leave it out",
    "--tool-call-parser": "the chat template tells how the model writes its calls: as Hermes, Llama 3 or Mistral models, or as plain JSON",
    "--reasoning-parser": "what stands between <think> and </think> is told apart where the chat template has them",
}
# Flags that ask for what quire does anyway: accepted, with a line that says so.
SETTLED_FLAGS = {
    "--disable-log-requests": "requests are not logged unless asked for",
    "--use-v2-block-manager": "there is one block manager",
    "--enable-auto-tool-choice": "requests with tools may leave the choice to the model",
    "--enable-reasoning": "reasoning is told apart from the answer wherever the chat template has it",
    "--disable-async-output-proc": "output is processed in the API process",
}
# Flags of REMOVED_FLAGS with the values that ask for what quire does anyway: accepted like those above.
SETTLED_VALUES = {
    "--task": ("auto", "generate"),
    "--kv-cache-dtype": ("auto",),
    "--tool-call-parser": ("hermes", "llama3_json", "mistral"),
    "--reasoning-parser": ("deepseek_r1", "qwen3"),
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, so that every command reports errors in one way."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """One flag for each field of the dataclass `options`."""
    for field in dataclasses.fields(options):
        flags = ["--" + field.name.replace("_", "-"), *field.metadata.get("aliases", ())]
        help_text = field.metadata.get("help", "").replace("%", "%%")
        settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "type": converter(field)}
        settings["help"] = f"{help_text} (default: {default_of(field)})"
        if choices := field.metadata.get("choices"):
            settings["choices"] = choices
        if _is_list(field):
            settings.update(action="extend", nargs="+")
        settings["metavar"] = None if choices else field.name.upper().split("_")[-1]
        parser.add_argument(*flags, **settings)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], options: Sequence[type], *, positional: str | None = "model"
) -> tuple[list[Any], argparse.Namespace]:
    """Parses `argv` into one instance of each options dataclass, and a namespace of whatever else the parser knows.

    positional  field that a bare argument fills, also reachable as a flag
    Raises ConfigError.
    """
    for kind in options:
        add_options(parser, kind)
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; the command line wins over it")
    if positional:
        parser.add_argument(
            f"{positional}_positional", nargs="?", metavar=positional.upper(), help=f"the same as --{positional}"
        )
    booleans = {
        "--" + f.name.replace("_", "-") for kind in options for f in dataclasses.fields(kind) if converter(f) is to_bool
    }
    words = normalise(_with_config_file(list(argv)), booleans)
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse_unknown(parser, unknown)
    values = vars(namespace)
    if positional and (given := values.pop(f"{positional}_positional")) is not None:
        if positional in values and values[positional] != given:
            raise ConfigError(f"two models are given: {given!r} and --{positional} {values[positional]!r}")
        values[positional] = given
    elif positional and positional not in values:
        _refuse_swallowed(values, options)
    made = [kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}) for kind in options]
    return made, namespace


def refuse_given(given: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises ConfigError for the first of these options that was given: it would not do anything."""
    found = next((name for name in names if hasattr(given, name)), None)
    if found is not None:
        raise ConfigError(f"--{found.replace('_', '-')} {why}")


def names_of(options: type) -> list[str]:
    """Names of the fields of an options dataclass."""
    return [field.name for field in dataclasses.fields(options)]


def normalise(words: list[str], booleans: set[str]) -> list[str]:
    """Brings every flag to its dashed form, every true/false flag to --flag=value, and drops settled ones."""
    out: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if word == "--":
            return out + words[i - 1 :]
        if not word.startswith("--"):
            out.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in SETTLED_FLAGS:
            print(f"{name} is not needed: {SETTLED_FLAGS[name]}")
            continue
        if name in SETTLED_VALUES and (value if equals else "".join(words[i : i + 1])) in SETTLED_VALUES[name]:
            print(f"{name} is not needed: {REMOVED_FLAGS[name]}")
            i += not equals
            continue
        if name.startswith("--no-") and "--" + name[5:] in booleans:
            name, equals, value = "--" + name[5:], "=", "false"
        elif name in booleans and not equals:
            takes_next = i < len(words) and words[i].lower() in TRUE_WORDS + FALSE_WORDS
            equals, value = "=", words[i] if takes_next else "true"
            i += takes_next
        out.append(name + equals + value)
    return out


def converter(field: "dataclasses.Field[Any]") -> Any:
    """The function that turns a flag's text into the field's type."""
    kinds = [k for k in _kinds(field.type) if k is not type(None)]
    kind = kinds[0]
    if kind is bool:
        return to_bool
    if typing.get_origin(kind) is dict or kind is dict:
        return to_json
    if typing.get_origin(kind) is list:
        return str
    if field.name in ("max_model_len", "kv_cache_memory_bytes"):
        return str  # "16k" and "12GiB" are read by quire.resolve
    return {int: int, float: float}.get(kind, str)


def to_bool(text: str) -> bool:
    """true/false in the words people use."""
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def to_json(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default to show in help."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _is_list(field: "dataclasses.Field[Any]") -> bool:
    return any(typing.get_origin(k) is list for k in _kinds(field.type))


def _with_config_file(words: list[str]) -> list[str]:
    """The flags of --config FILE, put before the others so that these win."""
    paths = []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--config":
            paths.append(value if equals else (words[i + 1] if i + 1 < len(words) else ""))
    if len(paths) > 1:
        raise ConfigError(f"--config is given {len(paths)} times: put all flags into one file")
    return _config_flags(paths[0], words) + words if paths else words


def _config_flags(path: str, words: list[str]) -> list[str]:
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from None
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected one `flag: value` a line")
    flags = []
    for key, value in content.items():
        name = "--" + str(key).replace("_", "-")
        if name == "--model" and words and not words[0].startswith("-"):
            continue  # the model on the command line wins
        if value is None:
            raise ConfigError(f"--config {path}: {key} has no value; leave the line out for the default")
        for item in value if isinstance(value, list) else [value]:
            text = json.dumps(item) if isinstance(item, dict | bool) else str(item)
            flags.append(f"{name}={text}")
    return flags


def _refuse_swallowed(values: dict[str, Any], options: Sequence[type]) -> None:
    """`--served-model-name a MODEL` gives two names and no model: say so rather than serve something else."""
    for field in (f for kind in options for f in dataclasses.fields(kind) if _is_list(f)):
        if len(values.get(field.name, ())) > 1:
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(f"{flag} takes all words after it, {values[field.name]}: put the model before it")


def _refuse_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> NoReturn:
    word = next((w for w in unknown if w.startswith("-")), unknown[0])
    name = word.partition("=")[0]
    if name in REMOVED_FLAGS:
        raise ConfigError(f"{name} is not taken here: {REMOVED_FLAGS[name]}")
    known = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; see {parser.prog} --help"
    raise ConfigError(f"unknown {'flag' if word.startswith('-') else 'argument'} {name}{hint}")
