"""Code in the READMEs and the guide that says what it prints (<!-- prints: ... --> on the line before) prints it."""

import json
import shlex

import httpx
import pytest
from markdown import USER_DOCS, Block, blocks, shell_lines
from servers import Server

ADDRESS = "http://127.0.0.1:8000"
MARKED = [block for block in blocks(*USER_DOCS) if block.marker and block.marker[0] == "prints"]
PYTHON = [block for block in MARKED if block.language == "python"]
CURL = [block for block in MARKED if block.language == "bash"]


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
    assert len(PYTHON) >= 8 and len(CURL) >= 4


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, server: Server, capsys: pytest.CaptureFixture[str]):
    exec(compile(block.text.replace(ADDRESS, server.url), str(block), "exec"), {"__name__": "__main__"})
    assert block.marker[1] in capsys.readouterr().out


@pytest.mark.parametrize("block", CURL, ids=str)
def test_curl(block: Block, server: Server):
    (line,) = shell_lines(block.text)
    words = shlex.split(line)
    assert words[0] == "curl"
    response = send(words, server)
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(part[6:]) for part in response.text.split("\n\n") if part.startswith("data: {")]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    else:
        choice = response.json()["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert block.marker[1] in text
