"""`quire chat --url` and `quire complete --url`: against a server of ours, and against what else may answer there."""

import http.server
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from servers import Server, fake_model, free_port
from tiny_checkpoints import VOCAB_SIZE

from quire.cli.main import main
from quire.cli.remote import Server as Remote
from quire.errors import ConfigError

QUESTION = ["-q", "hello", "--max-tokens", "6"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("remote")
    with Server(
        folder / "log",
        fake_model(folder / "model", VOCAB_SIZE),
        fake=True,
        api_key=["key-1"],
        served_model_name=["m:1"],
    ) as made:
        yield made


class StandIn(http.server.ThreadingHTTPServer):
    """Answers every request with `reply`, byte for byte, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StandInHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.reply = b""
        self.requests: list[tuple[str, str, dict[str, Any]]] = []


class StandInHandler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.wfile.write(self.server.reply)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        self.wfile.write(self.server.reply)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


def sse(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


def failing(capsys, *argv: str) -> str:
    assert main(argv) == 2
    err: str = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", ["chat", "complete"])
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_streams_the_answer_of_a_server(server, capsys, command, path):
    before = server.metric("generation_tokens_total")
    assert main([command, "--url", server.url + path, "--api-key", "key-1", *QUESTION]) == 0
    assert len(capsys.readouterr().out) > 1
    assert server.metric("generation_tokens_total") - before == 6


def test_chat_sends_all_that_was_said_and_prints_what_comes(stand_in, capsys, monkeypatch):
    deltas = [{"role": "assistant", "content": ""}, {"content": "杭"}, {"content": "州"}, {}]
    events = [{"choices": [{"delta": delta}]} for delta in deltas] + [{"choices": [], "usage": {}}]
    stand_in.reply = b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(sse(event) for event in events) + b"data: [DONE]\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert (
        main(["chat", "--url", stand_in.url, "--model-name", "m", "--temperature", "0.5", "--system-prompt", "S"]) == 0
    )
    assert capsys.readouterr().out.count("杭州\n") == 2
    path, key, body = stand_in.requests[1]
    said = [("system", "S"), ("user", "one"), ("assistant", "杭州"), ("user", "two")]
    assert (path, key) == ("/v1/chat/completions", "Bearer EMPTY")
    assert body == {
        "model": "m", "messages": [{"role": role, "content": text} for role, text in said], "max_tokens": 512,
        "temperature": 0.5, "stream": True,
    }  # fmt: skip


def test_complete_sends_each_line_and_prints_what_comes(stand_in, capsys, monkeypatch):
    events = [{"choices": [{"text": text}]} for text in (" 杭", "州", "")]
    stand_in.reply = b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(sse(event) for event in events) + b"data: [DONE]\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("浙江 ->\n\n"))
    assert main(["complete", "--url", stand_in.url, "--model-name", "m", "--max-tokens", "3", "--api-key", "k"]) == 0
    assert capsys.readouterr().out == " 杭州\n"
    body = {"model": "m", "max_tokens": 3, "prompt": "浙江 ->", "stream": True}
    assert stand_in.requests == [("/v1/completions", "Bearer k", body)]


@pytest.mark.parametrize("name", ["QUIRE_API_KEY", "VLLM_API_KEY"])
def test_takes_the_key_from_the_environment(server, capsys, monkeypatch, name):
    monkeypatch.setenv(name, "key-1")
    assert main(["chat", "--url", server.url, *QUESTION]) == 0


def test_needs_no_torch(server):
    code = (
        "import sys; from quire.cli.main import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    words = ["chat", "--url", server.url, "--api-key", "key-1", *QUESTION]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_refusal_is_passed_on_in_the_server_s_words(server, capsys):
    assert "401" in failing(capsys, "chat", "--url", server.url, "--api-key", "wrong", *QUESTION)
    err = failing(capsys, "chat", "--url", server.url, "--api-key", "key-1", "--temperature", "9", *QUESTION)
    assert "400" in err and "temperature must be a number" in err


def test_no_server_there(capsys):
    err = failing(capsys, "chat", "--url", f"http://127.0.0.1:{free_port()}/v1", *QUESTION)
    assert "no server answers" in err and "quire serve" in err


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://", "nonsense"])
def test_addresses_that_are_none(url):
    with pytest.raises(ConfigError, match="http://127.0.0.1:8000/v1"):
        Remote.at(url, None)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>hello</html>", "does not list models"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "does not list models"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n<html>bad gateway</html>", "502"),
        (b"", "no server answers"),
        (b"not http at all\r\n\r\n", "no server answers"),
    ],
)
def test_something_else_answers(stand_in, capsys, reply, words):
    stand_in.reply = reply
    assert words in failing(capsys, "chat", "--url", stand_in.url, *QUESTION)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b'data: {"choices": [{"text": "half"}]}\n\n', "broke off"),
        (b'data: {"choices": [{"te', "broke off"),
        (b'data: {"error": {"message": "the engine is gone"}}\n\n', "the engine is gone"),
    ],
)
def test_an_answer_that_breaks_off_or_fails_is_told(stand_in, capsys, stream, words):
    stand_in.reply = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + stream
    assert words in failing(capsys, "complete", "--url", stand_in.url, "--model-name", "m", *QUESTION)


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_options_for_the_other_place_are_refused(stand_in, capsys, command):
    for words, flag in (
        (["some/model"], "--model"),
        (["--dtype", "half"], "--dtype"),
        (["--no-enforce-eager"], "--enforce-eager"),
    ):
        err = failing(capsys, command, *words, "--url", stand_in.url, *QUESTION)
        assert f"{flag} is for a model that is loaded here" in err and "--model-name" in err
    for words in (["--model-name", "m"], ["--api-key", "k"]):
        err = failing(capsys, command, *words, *QUESTION)
        assert f"{words[0]} is for a server" in err and "--url" in err
