"""Bytecode of what a start imports: kept in our cache where the installation has none, and never older than its source."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def run(folder, *arguments, **environment):
    """What the script printed."""
    added = {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    path = os.pathsep.join([str(SRC), str(folder / "site")])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, str(folder / "script.py"), *arguments]
    done = subprocess.run(
        command, env={**clean, "PYTHONPATH": path, **added}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


def kept(folder):
    return sorted(path.name for path in (folder / "cache").rglob("*.pyc") if "watched" in str(path))


def wait_until_kept(folder):
    end = time.monotonic() + 20
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
    assert run(installation)[0] == "1"
    assert run(installation)[0] == "1"
