"""Code in the READMEs and the guide does what the comment on the line before says.

<!-- prints: text -->  Python that prints it, or a curl command whose answer holds it
<!-- runs: text -->    commands of quire that print it
<!-- serves -->        commands that start a server; here with the bundled model, whatever they name

The Chinese pages have the same code (tests/docs).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from markdown import ROOT, RUN_DOCS, Block, blocks, shell_lines
from servers import Server, free_port

ADDRESS = "http://127.0.0.1:8000"
BUNDLED = ROOT / "src" / "quire" / "_builtin" / "tiny"
COMMAND_S = 120


def marked(kind: str, language: str) -> list[Block]:
    return [block for block in blocks(*RUN_DOCS, language=language) if block.marker and block.marker[0] == kind]


PYTHON = marked("prints", "python")
CURL = marked("prints", "bash")
RUNS = marked("runs", "bash")
SERVES = marked("serves", "bash")


def send(words: list[str], server: Server) -> httpx.Response:
    """What curl would do; other options than these are not in the documents."""
    url, headers, data = "", {}, None
    words = words[1:]
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(":")
            headers[name] = value.strip()
        elif word == "-d":
            data = words.pop(0)
        else:
            assert word.startswith(ADDRESS), word
            url = word.replace(ADDRESS, server.url)
    return httpx.request("POST" if data else "GET", url, headers=headers, content=data, timeout=60)


def test_there_is_something_to_run():
    assert len(PYTHON) >= 15 and len(CURL) >= 6 and RUNS and SERVES


def test_what_can_be_run_is():
    """Every Python block and every curl or measuring command of the documents is marked, and so is run by this file."""
    for block in blocks(*RUN_DOCS, language="python"):
        if block.path.name not in ("python-api.md",):  # signatures
            assert block.marker and block.marker[0] == "prints", f"{block} is not run"
    for block in blocks(*RUN_DOCS, language="bash"):
        if re.search(r"^(curl|quire (bench|env|complete))\b", block.text, re.M):
            assert block.marker, f"{block} is not run"


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, server: Server, capsys: pytest.CaptureFixture[str]):
    exec(compile(block.text.replace(ADDRESS, server.url), str(block), "exec"), {"__name__": "__main__"})
    assert block.marker[1] in capsys.readouterr().out


def text_of(response: httpx.Response) -> str:
    """What a person reads of an answer: the text of a chat or completion, streamed or not, or else all of it."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        events = [json.loads(part[6:]) for part in response.text.split("\n\n") if part.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    if "/completions" not in str(response.url):
        return response.text
    choice = response.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("block", CURL, ids=str)
def test_curl(block: Block, server: Server):
    words = shlex.split(re.sub(r"\\\n\s*", " ", block.text))
    assert words[0] == "curl"
    response = send(words, server)
    assert response.status_code == 200, response.text
    wanted = "" if block.marker[1] == "nothing" else block.marker[1]
    assert wanted in text_of(response) and (wanted or not response.text)


@pytest.mark.parametrize("block", RUNS, ids=str)
def test_commands(block: Block, server: Server, tmp_path: Path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in shell_lines(block.text):
        words = [word.replace(ADDRESS, server.url) for word in shlex.split(line)]
        assert words.pop(0) == "quire"
        done = subprocess.run(
            [sys.executable, "-m", "quire", *words], capture_output=True, text=True, timeout=COMMAND_S, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert block.marker[1] in done.stdout + done.stderr


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, said to be made for 32,768 tokens, as those are whose names the documents have."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in BUNDLED.glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32_768}))
    return folder


@pytest.mark.parametrize("block", SERVES, ids=str)
def test_servers_start(block: Block, long_model: Path, tmp_path: Path):
    """With the words of the document, but for the model and the port."""
    for line in shell_lines(block.text):
        found = re.match(r"((?:\w+=\S+ )*)quire serve (\S+/\S+)(.*)", line)
        assert found, line
        environ = dict(word.split("=", 1) for word in found[1].split())
        port = str(free_port())
        command = [sys.executable, "-m", "quire", "serve", str(long_model), *shlex.split(found[3]), "--port", port]
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environ})
        try:
            wait_ready(f"http://127.0.0.1:{port}/ready", process, tmp_path / "log")
        finally:
            process.terminate()
            assert process.wait(60) == 0, (tmp_path / "log").read_text()


def wait_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=60).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())
