"""Each example does what its first line says, with real answers."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Check = Callable[[list[str]], None]


def async_engine(lines: list[str]) -> None:
    assert len(lines) == 2
    answers = dict(re.match(r"'(.*)' -> '(.*)'", line).groups() for line in lines)
    assert "Rome" in answers["The capital of Italy is"] and "罗马" in answers["意大利的首都是"]


def beam_search(lines: list[str]) -> None:
    for prompt, capital, beams in (
        ("The capital of Japan is", "Tokyo", lines[1:4]),
        ("日本的首都是", "东京", lines[5:8]),
    ):
        assert prompt in lines and capital in beams[0]
        scores = [float(line.split()[0]) for line in beams]
        assert scores == sorted(scores, reverse=True) and scores[0] <= 0
        assert len({line.split(maxsplit=1)[1] for line in beams}) == 3


def chat(lines: list[str]) -> None:
    assert len(lines) == 2 and "杭州" in lines[0]
    assert "西湖醋鱼" in lines[1] or "东坡肉" in lines[1]


def offline_generate(lines: list[str]) -> None:
    assert "Paris" in lines[0] and "巴黎" in lines[1]


def sampling(lines: list[str]) -> None:
    assert len(lines) == 6 and lines[:3] == lines[3:]
    assert [line.split(":")[0] for line in lines[:3]] == ["0", "1", "2"]
    assert all(float(line.split()[1]) < 0 for line in lines)


def stream(lines: list[str]) -> None:
    assert re.findall(r"\d+", lines[0]) == [str(i) for i in range(1, 11)]


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (async_engine, beam_search, chat, offline_generate, sampling, stream)
}


def run(name: str, *argv: str) -> list[str]:
    """Lines of what the example prints, as a user would start it: from another folder, with nothing prepared."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *argv], capture_output=True, text=True, timeout=110, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_checked():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*CHECKS, "openai_client"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_say_what_they_show(path: Path):
    text = path.read_text(encoding="utf-8")
    assert 10 <= len(text.splitlines()) <= 40
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", CHECKS)
def test_example(name: str):
    CHECKS[name](run(name))


def test_another_model_can_be_named():
    assert "Paris" in run("offline_generate", "builtin:tiny")[0]


def test_openai_client(server: Server):
    whole, streamed = run("openai_client", server.url + "/v1")
    assert "Paris" in whole and whole == streamed


def test_the_chatml_template_renders_as_qwen_s_does(server: Server):
    """examples/template_chatml.jinja, for base models and old tutorials: what the bundled model's own template gives."""
    from quire.text.chat import render

    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    text = render(messages, (EXAMPLES / "template_chatml.jinja").read_text(encoding="utf-8"))
    assert (
        text
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>assistant\n"
    )
