"""Environments of what tests run beside quire: a virtual environment or an npm project, made when first needed, kept in .cache.

One is made anew when its requirements.txt or package-lock.json changes. Its packages come from where pip and npm are set up to look.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "tests"
DONE = "made"
INSTALL_S = 1500
# As in scripts/install.sh: where PyTorch's CPU wheels are, if pip is not set up to look there.
TORCH_INDEX = ["--extra-index-url", os.environ["QUIRE_TORCH_INDEX"]] if "QUIRE_TORCH_INDEX" in os.environ else []


class NoEnvironment(RuntimeError):
    """The environment could not be made; the text is what pip or npm said."""


def python_of(source: Path) -> Path:
    """Python of the environment with the folder's requirements.txt. Raises NoEnvironment."""
    wanted = source / "requirements.txt"
    folder = _folder(source.name, wanted.read_bytes() + sys.version.encode())
    python = folder / "bin" / "python"
    if not (folder / DONE).exists():
        _anew(folder)
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", "--retries", "2", *TORCH_INDEX, "-r", str(wanted)])
        (folder / DONE).touch()
    return python


def node_project(source: Path) -> Path:
    """A folder with the packages of the given one's package-lock.json and its programs. Raises NoEnvironment."""
    folder = _folder(source.name, (source / "package-lock.json").read_bytes())
    if not (folder / DONE).exists():
        _anew(folder)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(source / file, folder)
        _call([shutil.which("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)
        (folder / DONE).touch()
    for program in source.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


def _folder(name: str, content: bytes) -> Path:
    return CACHE / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def _anew(folder: Path) -> None:
    """An empty folder; those of earlier requirements go."""
    for old in CACHE.glob(folder.name.rpartition("-")[0] + "-*"):
        shutil.rmtree(old)
    folder.mkdir(parents=True)


def _call(command: list[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S, env=bare_environ())
    except OSError as error:
        raise NoEnvironment(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NoEnvironment(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def bare_environ() -> dict[str, str]:
    """The environment variables without those that would let this Python's packages into another's."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
