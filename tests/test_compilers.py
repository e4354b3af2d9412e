"""The process that compiles kernels: answers for each request, outlives none of those who started it, and is never waited for in vain."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quire import cgroup, compilers
from quire.compilers import Compilers

FAKE = """
import os, sys, time
from pathlib import Path

def prepare():
    sys.stdout.write("what a compiler prints is no answer\\n")
    sys.stdout.flush()

def compile(do, file=None):
    if do == "write":
        Path(file).write_text("done")
    elif do == "print":
        os.system("echo noise")
    elif do == "sleep":
        Path(file).write_text(str(os.getpid()))
        time.sleep(600)
    elif do == "crash":
        os.abort()
    else:
        raise RuntimeError(do)
"""
SCRIPT = """
import sys, time
from quire.compilers import Compilers
print("main runs", flush=True)
found = Compilers("fake_compiler")
answer = found.ask({"do": "sleep", "file": sys.argv[1]})
print(found.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "fake_compiler.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def other(folder):
    made = Compilers("fake_compiler")
    yield made
    made.close()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def comes_true(check, seconds=60):
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    return check()


def text_of(path):
    assert comes_true(lambda: path.exists() and path.read_text())
    return path.read_text()


def test_each_request_is_answered_for_itself(other, folder):
    files = [folder / str(i) for i in range(40)]
    asked = [other.ask({"do": "write", "file": str(file)}) for file in files]
    bad = [other.ask({"do": "crash"}), other.ask({"do": "nothing that it knows"}), other.ask({"no": "such argument"})]
    last = other.ask({"do": "print"})
    assert all(other.wait(answer) for answer in asked) and all(file.read_text() == "done" for file in files)
    assert not any(other.wait(answer) for answer in bad) and other.wait(last)


def test_it_ends_when_told_also_in_the_middle_of_work(other, folder):
    answer = other.ask({"do": "sleep", "file": str(folder / "pid")})
    worker = int(text_of(folder / "pid"))
    other.close()
    assert not other.wait(answer) and comes_true(lambda: not is_alive(worker) and not is_alive(other.pid))
    assert not other.wait(other.ask({"do": "write", "file": str(folder / "late")}), 0.01), "nobody is waited for"
    other.close()


def test_its_silence_is_waited_for_once(other, folder, caplog):
    answers = [other.ask({"do": "sleep", "file": str(folder / str(i))}) for i in range(3)]
    begun = time.monotonic()
    assert not other.wait(answers[0], 0.2) and not any(other.wait(answer, 300) for answer in answers)
    assert time.monotonic() - begun < 150 and comes_true(lambda: not is_alive(other.pid))


def test_one_that_takes_no_requests_holds_nobody_up(other):
    os.kill(other.pid, signal.SIGSTOP)
    begun = time.monotonic()
    answers = [other.ask({"do": "x" * 100_000}) for _ in range(20)]
    assert not any(other.wait(answer, 300) for answer in answers) and time.monotonic() - begun < 150


def test_a_compiler_that_cannot_be_imported_costs_nobody_anything(folder):
    other = Compilers("no_such_compiler")
    assert not other.wait(other.ask({"do": "write"}))
    assert comes_true(lambda: not is_alive(other.pid))


def test_it_dies_with_who_started_it_and_does_not_run_the_program_again(folder):
    script = folder / "program.py"  # without a test for __main__
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = subprocess.Popen(
        [sys.executable, str(script), str(folder / "pid")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert program.stdout.readline() == "main runs\n"
    pid, worker = int(program.stdout.readline()), int(text_of(folder / "pid"))
    assert is_alive(pid) and is_alive(worker)
    program.send_signal(signal.SIGKILL)
    rest, _ = program.communicate(timeout=60)
    assert rest == "" and comes_true(lambda: not is_alive(pid) and not is_alive(worker))


def test_it_ends_when_nothing_is_asked_for_long(folder, monkeypatch):
    monkeypatch.setattr(compilers, "COMMAND", compilers.COMMAND.replace("; serve", "; import quire.compilers; quire.compilers.IDLE_SECONDS = 0.2; serve"))  # fmt: skip
    other = Compilers("fake_compiler")
    assert comes_true(lambda: not is_alive(other.pid))
    assert not other.wait(other.ask({"do": "write", "file": "x"}))


def test_small_machines_compile_as_they_go(folder, monkeypatch):
    monkeypatch.setattr(compilers, "MODULE", "fake_compiler")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(cpus=3.0))  # a small container on a large machine
    compilers.start()
    assert compilers.take() is None
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(cpus=3.5))
    compilers.start()
    compilers.start()
    other = compilers.take()
    assert other is not None and compilers.take() is None
    other.close()


def test_no_more_compile_at_once_than_the_container_has_processors_for(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(cpus=5.5))
    forks = compilers.Forks(type("Compiler", (), {"prepare": staticmethod(lambda: None)}), answers=-1)
    assert forks._most == 6 - compilers.CORES_LEFT


def test_a_forked_process_has_none_of_its_parents(other, folder):
    compilers._started.append(other)
    if (child := os.fork()) == 0:
        os._exit(compilers.take() is not None)
    assert os.waitpid(child, 0)[1] == 0
    assert compilers.take() is other and other.wait(other.ask({"do": "write", "file": str(folder / "file")}))


def test_frozen_applications_are_not_run_again(monkeypatch):
    monkeypatch.setattr(compilers, "num_cpus", lambda: 8)
    monkeypatch.setattr(compilers, "Compilers", lambda: pytest.fail("it was run"))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    compilers.start()
    monkeypatch.setattr(sys, "frozen", False)
    monkeypatch.setattr(sys, "executable", "")
    compilers.start()
    assert compilers.take() is None


def test_tritons_compiler_needs_no_torch(folder):
    code = "import sys, quire.backends.triton._compile_apart as m, triton\nm.prepare()\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
