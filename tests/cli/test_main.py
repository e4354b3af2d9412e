"""`quire` itself: help, version, mistakes. Run as users run it, in a process of its own where that matters."""

import subprocess
import sys

import pytest

from quire.cli import main as command_line
from quire.version import __version__

COMMANDS = ("bench", "chat", "complete", "env", "run-batch", "serve")
LIGHT = "import sys; from quire.cli.main import main; main(sys.argv[1:]); print([m for m in ('torch', 'transformers') if m in sys.modules])"


def quire(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "quire", *argv], capture_output=True, text=True, timeout=60)


def test_help_names_every_command_with_a_line():
    done = quire("--help")
    assert done.returncode == 0 and not done.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert quire().returncode == 2


def test_version():
    done = quire("--version")
    assert (done.returncode, done.stdout) == (0, f"quire {__version__}\n")


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["serve", "--help"], ["chat", "--help"]])
def test_words_about_the_program_need_no_torch(argv: list[str]):
    code = LIGHT.replace("main(sys.argv[1:])", "exec('try: main(sys.argv[1:])\\nexcept SystemExit: pass')")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sevre"], "did you mean serve?"),
        (["frobnicate"], "there are bench, chat, complete"),
        (["serve", "--prot", "8001"], "did you mean --port?"),
        (["serve", "--max-model-length", "16k"], "did you mean --max-model-len?"),
        (["chat", "--temprature", "0"], "did you mean --temperature?"),
        (["env", "--devise", "cpu"], "unrecognized arguments: --devise"),
        (["bench", "speed"], "latency, throughput"),
        (["bench", "latency", "--batch-sice", "2"], "did you mean --batch-size?"),
        (["serve", "--port", "http"], "http"),
        (["serve", "--task", "embed"], "--runner"),
        (["chat", "-q", "hi", "--model", "/no/such/folder"], "there is no such folder"),
        (["chat", "-q", "hi", "builtin:huge"], "builtin:tiny"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(argv: list[str], words: str, capfd: pytest.CaptureFixture[str]):
    assert command_line.main(argv) == 2
    captured = capfd.readouterr()
    last = captured.err.splitlines()[-1]
    assert words in last and last.startswith("quire")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("argv", [["serve", "--help"], ["bench", "latency", "--help"]])
def test_help_of_a_command_shows_flags_with_defaults(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command_line.main(argv)
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--max-model-len" in text and "(default: 0.9)" in text and "Any" not in text


def test_a_reader_that_leaves_early_is_no_error():
    head = f"{sys.executable} -m quire env --device cpu | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", head], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout) == (0, "quire")
    assert not done.stderr


def test_collect_env_is_another_name_of_env(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["collect-env", "--help"])
    assert ended.value.code == 0
    assert "usage: quire env" in capsys.readouterr().out
