"""`quire COMMAND ...`: each command is one module of this folder with HELP and main(argv) -> exit code."""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import quire.cli
from quire.errors import QuireError
from quire.version import __version__

NOT_COMMANDS = ("args", "main", "remote")
OTHER_NAMES = {"collect-env": "env", "run_batch": "run-batch"}  # what users of vLLM type


def commands() -> list[str]:
    """Names of the commands, found by listing this folder."""
    found = (m.name for m in pkgutil.iter_modules(quire.cli.__path__) if m.name not in NOT_COMMANDS)
    return sorted(name.replace("_", "-") for name in found)


def module_of(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"quire.cli.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; a QuireError ends it with one line on stderr and exit code 2, never a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-v", "-V", "--version", "version"):
        print(f"quire {__version__}")
        return 0
    name = OTHER_NAMES.get(words[0], words[0])
    if name not in commands():
        near = difflib.get_close_matches(name, commands(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands())}"
        print(f"quire: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        code: int = module_of(name).main(words[1:])
        return code
    except QuireError as error:
        print(f"quire {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `quire env | head`
        sys.stderr.close()
        return 0


def usage() -> str:
    """The top-level help."""
    lines = ["usage: quire COMMAND [options]", "", "commands:"]
    for name in commands():
        lines.append(f"  {name:10} {module_of(name).HELP}")
    return "\n".join([*lines, "", "quire COMMAND --help shows a command's options; quire --version the version"])
