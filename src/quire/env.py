"""Every environment variable that quire reads, in one table. Read when needed, never kept: setting one after `import quire` counts.

names of the Hugging Face hub and of ModelScope mean what they mean there; VLLM_* are those that vLLM's users have in scripts
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from quire.errors import ConfigError

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Variable:
    """kind: flag (true or false), text, path or url. secret: its value is never shown."""

    name: str
    kind: str
    help: str
    secret: bool = False


VARIABLES = {
    variable.name: variable
    for variable in (
        Variable("XDG_CACHE_HOME", "path", "where caches are; default ~/.cache"),
        Variable("HF_ENDPOINT", "url", "the hub to download from; default https://huggingface.co"),
        Variable("HF_HOME", "path", "where the hub's client keeps its files; default ~/.cache/huggingface"),
        Variable("HF_HUB_CACHE", "path", "where downloaded models are; default HF_HOME/hub"),
        Variable("HF_HUB_OFFLINE", "flag", "use downloaded models only"),
        Variable("TRANSFORMERS_OFFLINE", "flag", "the same"),
        Variable("HF_HUB_DISABLE_XET", "flag", "download over plain HTTP; set by itself when HF_ENDPOINT is a mirror"),
        Variable("HF_TOKEN", "text", "token for gated and private models", secret=True),
        Variable("QUIRE_USE_MODELSCOPE", "flag", "take model names from ModelScope, not from the Hugging Face hub"),
        Variable("VLLM_USE_MODELSCOPE", "flag", "the same"),
        Variable("MODELSCOPE_ENDPOINT", "url", "ModelScope's address; default https://www.modelscope.cn"),
        Variable("MODELSCOPE_CACHE", "path", "where ModelScope's downloads are; default ~/.cache/modelscope"),
        Variable("MODELSCOPE_API_TOKEN", "text", "token for ModelScope's gated and private models", secret=True),
        Variable("QUIRE_API_KEY", "text", "key that clients of the server must send", secret=True),
        Variable("VLLM_API_KEY", "text", "the same", secret=True),
    )
}


def caches() -> Path:
    """Where this user's caches are, those of other programs too. RuntimeError for a user without a home, if the variable is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def flag(name: str) -> bool:
    """A variable that is true or false; unset and empty are false. ConfigError for another value."""
    value = _value(name, "flag").strip().lower()
    if value not in _TRUE + _FALSE:
        raise ConfigError(f"{name}={os.environ[name]!r} in the environment: use 1 or 0 (true/false, yes/no, on/off)")
    return value in _TRUE


def text(name: str) -> str | None:
    """The value of a variable that is text; None when it is unset or empty."""
    return _value(name, "text").strip() or None


def path(name: str) -> str | None:
    """A variable that is a path, with ~ and $NAME filled in; None when it is unset or empty."""
    value = _value(name, "path").strip()
    return os.path.expandvars(os.path.expanduser(value)) if value else None


def url(name: str) -> str | None:
    """A variable that is an http(s) address, without the last slash. ConfigError for something else."""
    value = _value(name, "url").strip().rstrip("/")
    if not value:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{name}={value!r} in the environment: an address such as https://hf-mirror.com is needed")
    return value


def api_key() -> str | None:
    """QUIRE_API_KEY or VLLM_API_KEY."""
    return text("QUIRE_API_KEY") or text("VLLM_API_KEY")


def describe(environ: Mapping[str, str] = os.environ) -> list[str]:
    """NAME=value of those variables that are set, secrets hidden; for bug reports."""
    found = [variable for variable in VARIABLES.values() if environ.get(variable.name)]
    return [f"{variable.name}={'***' if variable.secret else environ[variable.name]}" for variable in found]


def _value(name: str, kind: str) -> str:
    if VARIABLES[name].kind != kind:
        raise TypeError(f"{name} is a {VARIABLES[name].kind}, not a {kind}")
    return os.environ.get(name, "")
