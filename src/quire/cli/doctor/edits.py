"""Edit: one change that may mend a start: other flags, another environment, or a command of the shell."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from quire.cli.args import normalise


@dataclass(frozen=True)
class Edit:
    """What to change. words: of `quire serve` from now on; environ: variables to set, None = to unset; shell: a command to run first,
    whose effect cannot be foreseen.
    """

    words: list[str] | None = None
    environ: Mapping[str, str | None] = field(default_factory=dict)
    shell: str | None = None

    def lines(self) -> list[str]:
        """As a shell takes it."""
        if self.words is not None:
            return [shlex.join(["quire", "serve", *self.words])]
        if self.shell is not None:
            return [self.shell]
        unset = [name for name, value in self.environ.items() if value is None]
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environ.items() if value is not None]
        return exports + ([f"unset {' '.join(unset)}"] if unset else [])


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """The environment with these changes, for a while."""
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def without(words: Sequence[str], *flags: str) -> list[str]:
    """The words without these flags and their values."""
    kept: list[str] = []
    skipping = False
    for word in words:
        if word.startswith("-") and not _is_number(word):
            skipping = spelled(word) in flags
            if skipping:
                skipping = "=" not in word
                continue
        elif skipping:
            continue
        kept.append(word)
    return kept


def with_flag(words: Sequence[str], flag: str, value: str) -> list[str]:
    """The words with this flag at that value."""
    return [*without(words, flag), flag, value]


def with_model(words: Sequence[str], model: str) -> list[str]:
    """The words with another model."""
    rest = without(words, "--model")
    return [model, *(rest[1:] if rest and not rest[0].startswith("-") else rest)]


def flags_in(words: Sequence[str]) -> list[str]:
    """Flags among the words, dashed, each once."""
    return list(dict.fromkeys(spelled(word) for word in words if word.startswith("-") and not _is_number(word)))


def spelled(word: str) -> str:
    """A flag as the parser spells it, without its value."""
    name = word.partition("=")[0]
    return normalise([name], set())[0] if name.startswith("--") and len(name) > 2 and normalise([name], set()) else name


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdigit()


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
