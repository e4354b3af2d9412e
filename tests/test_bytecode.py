"""Bytecode of what a start imports: kept in our cache where the installation has none, and never older than its source."""

import os
import py_compile
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quire import bytecode

SRC = Path(__file__).parents[1] / "src"
SCRIPT = """
import sys
from quire import bytecode
bytecode.WATCHED = "watched"
try:
    with bytecode.kept_apart():
        prefix = sys.pycache_prefix
        import watched.inner
        if sys.argv[1:]:
            raise KeyError
except KeyError:
    pass
print(watched.inner.VALUE, prefix, sys.pycache_prefix, sys.dont_write_bytecode)
"""


@pytest.fixture
def installation(tmp_path):
    """A package without bytecode."""
    package = tmp_path / "site" / "watched"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("VALUE = 1\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def run(folder, *arguments, python=(), warning="", **environment):
    """What the script printed. warning: a piece of what it said beside; "" = nothing."""
    added = {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    path = os.pathsep.join([str(SRC), str(folder / "site")])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, *python, str(folder / "script.py"), *arguments]
    done = subprocess.run(
        command, env={**clean, "PYTHONPATH": path, **added}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and warning in done.stderr and len(done.stderr.splitlines()) == bool(warning), (
        done.stderr
    )
    return done.stdout.split()


def kept(folder):
    return sorted(path.name for path in (folder / "cache").rglob("*.pyc") if "watched" in str(path))


def wait_until_kept(folder):
    end = time.monotonic() + 60
    while len(kept(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert [name.split(".")[0] for name in kept(folder)] == ["__init__", "inner"]


def replace(path, text, age_ns=0):
    """Other source of the same size; age_ns: how much older or newer it says it is."""
    at = path.stat().st_mtime_ns + age_ns
    path.write_text(text)
    os.utime(path, ns=(at, at))


def test_the_second_start_reads_what_the_first_had_compiled(installation):
    prefix = str(installation / "cache" / "quire" / "bytecode")
    assert run(installation) == ["1", prefix, "None", "True"]
    wait_until_kept(installation)
    source = installation / "site" / "watched" / "inner.py"
    replace(source, "VALUE = 2\n")
    assert run(installation)[0] == "1", "Python finds the bytecode, and by time and size it is this source's"
    replace(source, "VALUE = 3\n", age_ns=5 * 10**9)
    assert run(installation)[0] == "3", "a newer source counts"
    assert not list((installation / "site").rglob("*.pyc")), "nothing is written beside the sources"


def test_what_a_failing_start_had_imported_is_kept_too(installation):
    assert run(installation, "fail")[2:] == ["None", "True"]
    wait_until_kept(installation)


def test_installations_that_have_bytecode_or_get_it_are_left_alone(installation):
    assert run(installation, PYTHONDONTWRITEBYTECODE="") == ["1", "None", "None", "False"], "Python writes it itself"
    assert list((installation / "site").rglob("inner.*.pyc"))
    assert run(installation) == ["1", "None", "None", "True"]
    time.sleep(0.2)
    assert kept(installation) == []


def test_a_place_that_the_user_chose_stays(installation):
    assert run(installation, PYTHONPYCACHEPREFIX=str(installation / "own"))[1:3] == [str(installation / "own")] * 2
    assert kept(installation) == []


def test_a_cache_that_cannot_be_written_costs_no_start(installation):
    (installation / "cache").write_text("a file where a folder should be")
    assert run(installation, warning="XDG_CACHE_HOME")[0] == "1"


def plant(installation):
    """What another user's bytecode would be: of other source, and by time and size of the one that is imported."""
    source = installation / "site" / "watched" / "inner.py"
    other = installation / "inner.py"
    other.write_text("VALUE = 6\n")
    os.utime(other, ns=(source.stat().st_mtime_ns,) * 2)
    kept_apart = installation
    for name in ("cache", "quire", "bytecode"):
        kept_apart /= name
        kept_apart.mkdir(mode=0o700)
    below = kept_apart / str(source.parent)[1:]
    py_compile.compile(str(other), str(below / f"inner.{sys.implementation.cache_tag}.pyc"))
    return kept_apart


def test_bytecode_is_run_from_folders_that_nobody_else_can_write(installation):
    folder = plant(installation)
    assert run(installation)[0] == "6", "in a folder of our own it is what Python takes"
    for path, mode in ((folder, 0o1777), (folder.parent, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert run(installation, warning=f"{path};")[:2] == ["1", "None"], f"{path.name} {mode:o}"
        path.chmod(before)
    (installation / "cache").chmod(0o1777)
    assert run(installation)[0] == "6", "of a sticky folder others cannot take ours"


def test_what_is_compiled_is_for_us_alone(installation):
    run(installation)
    wait_until_kept(installation)
    made = list((installation / "cache").rglob("*"))
    assert {path.stat().st_mode & 0o077 for path in made} == {0}


def test_bytecode_has_the_optimisation_of_the_start_that_asked(installation):
    (installation / "site" / "watched" / "inner.py").write_text("VALUE = __debug__\n")
    assert run(installation, python=["-O"])[0] == "False"
    wait_until_kept(installation)
    assert run(installation, python=["-O"])[0] == "False"


def test_starts_at_once_leave_python_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    both = threading.Barrier(2)
    monkeypatch.setattr(bytecode, "is_missing", lambda package: both.wait(60) >= 0)
    monkeypatch.setattr(bytecode, "compile_beside", lambda pairs: None)

    def start(seconds):
        with bytecode.kept_apart():
            time.sleep(seconds)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(start, seconds) for seconds in (0.05, 0.2)]:
            done.result()
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (None, False)


def test_nobody_waits_for_the_process_that_compiles_and_nothing_is_left_of_it(tmp_path):
    code = """
import os, time
import psutil
from quire import bytecode
bytecode.COMMAND = "import time; time.sleep(600)"
bytecode.compile_beside([("a" * 100, "b" * 200)] * 2000)
(child,) = psutil.Process().children()
child.kill()
while True:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        break
    time.sleep(0.02)
"""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_frozen_applications_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(bytecode, "is_missing", lambda package: True)
    monkeypatch.setattr(bytecode, "compile_beside", lambda pairs: pytest.fail("it was run"))
    with bytecode.kept_apart():
        assert sys.pycache_prefix is None
