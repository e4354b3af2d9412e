"""The processes of a server, from outside: start, kill, hang, drain, give up. The engine is the one of fake_engine.py."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from fake_engine import CRASH_AT, SLEEP, VOCAB, token_at
from servers import LEAVING_S, Server, fake_model, free_port

from quire.config import EngineArgs
from quire.errors import ConfigError
from quire.server import listen, rundir
from quire.server.options import ServerArgs
from quire.server.supervisor import serve


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fake_model(tmp_path_factory.mktemp("model"), VOCAB)


@pytest.fixture
def server(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, max_engine_deaths=50) as made:
        yield made


def body(name: str, max_tokens: int, **more) -> dict:
    prompt = [int(c) for c in name.encode()]
    return {"prompt": prompt, "max_tokens": max_tokens, "seed": 5, "return_token_ids": True, **more}


def expected(name: str, max_tokens: int) -> list[int]:
    return [token_at([int(c) for c in name.encode()], 5, 0, k) for k in range(max_tokens)]


async def stream_tokens(client: httpx.AsyncClient, request: dict, on_tokens=lambda ids: None) -> list[int]:
    """All token ids of a streamed completion; raises AssertionError unless it ends as it should."""
    got: list[int] = []
    async with client.stream("POST", "/v1/completions", json={**request, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        last = ""
        async for line in response.aiter_lines():
            if line:
                last = line
                if line != "data: [DONE]":
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    got += event["choices"][0]["token_ids"]
                    on_tokens(got)
        assert last == "data: [DONE]"
    return got


def test_streams_go_on_exactly_where_a_killed_engine_left_them(server):
    """Three kills under 32 streams; every stream gets the undisturbed tokens, nothing missing or twice."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            for number in range(3):
                names = [f"{number}-{i}" for i in range(32)]
                tasks = [asyncio.ensure_future(stream_tokens(client, body(n, 150 + 10 * number))) for n in names]
                await asyncio.sleep(0.1 + 0.1 * number)
                os.kill(server.engine_pid(), signal.SIGKILL)
                for name, task in zip(names, tasks, strict=True):
                    assert await task == expected(name, 150 + 10 * number), name
                server.wait_ready()

    asyncio.run(main())
    assert server.metric("engine_deaths_total") == 3


def test_requests_that_wait_while_no_engine_is_there_are_answered(server):
    os.kill(server.engine_pid(), signal.SIGKILL)
    response = httpx.post(server.url + "/v1/completions", json=body("a", 4), timeout=60)
    assert response.json()["choices"][0]["token_ids"] == expected("a", 4)


def test_a_hanging_engine_is_replaced(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, engine_step_timeout=2.0) as server:
        pid = server.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        server.wait_for(lambda: server.health() == 503)
        response = httpx.post(server.url + "/v1/completions", json=body("a", 4), timeout=60)
        assert response.json()["choices"][0]["token_ids"] == expected("a", 4)
        assert not psutil.pid_exists(pid)
        server.wait_ready()


def test_a_poisonous_request_fails_alone_and_is_not_tried_again_by_the_sdk(server):
    poison = {"prompt": [7, CRASH_AT, 5], "max_tokens": 20, "seed": 5}
    good = dict.fromkeys("abcd")

    def ask(name: str) -> None:
        good[name] = httpx.post(server.url + "/v1/completions", json=body(name, 400), timeout=60)

    threads = [threading.Thread(target=ask, args=(name,)) for name in good]
    for thread in threads:
        thread.start()
    response = httpx.post(server.url + "/v1/completions", json=poison, timeout=60)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "request_poisoned"
    assert response.headers["x-should-retry"] == "false"
    for thread, name in zip(threads, good, strict=True):
        thread.join()
        assert good[name].json()["choices"][0]["token_ids"] == expected(name, 400)
    deaths = server.metric("engine_deaths_total")
    assert deaths <= 3
    again = httpx.post(server.url + "/v1/completions", json=poison, timeout=60)
    assert again.json()["error"]["code"] == "request_poisoned"
    assert server.metric("engine_deaths_total") == deaths


def test_a_request_that_hangs_the_engine_fails_alone(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, engine_step_timeout=1.5) as server:
        hanging = {"prompt": [7, SLEEP], "max_tokens": 20, "seed": 5}
        response = httpx.post(server.url + "/v1/completions", json=hanging, timeout=60)
        assert response.json()["error"]["code"] == "request_poisoned"
        server.wait_ready()
        response = httpx.post(server.url + "/v1/completions", json=body("a", 4), timeout=60)
        assert response.json()["choices"][0]["token_ids"] == expected("a", 4)
        assert server.text().count("a step has taken") == 2


def test_engines_that_die_too_often_end_the_server(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, max_engine_deaths=3) as server:
        for i in range(3):
            server.wait_for(lambda: server.metric("engine_deaths_total") == i and server.health() == 200)  # noqa: B023
            os.kill(server.engine_pid(), signal.SIGKILL)
        assert server.wait() == 1
        assert "giving up" in server.text()


def test_the_api_process_is_replaced_and_the_engine_stays(server):
    engine, api = server.engine_pid(), server.pid("quire.server.process")
    os.kill(api, signal.SIGKILL)
    server.wait_for(lambda: server.pid("quire.server.process") != api)
    server.wait_ready()
    assert server.engine_pid() == engine
    response = httpx.post(server.url + "/v1/completions", json=body("a", 4), timeout=60)
    assert response.json()["choices"][0]["token_ids"] == expected("a", 4)


def test_a_hanging_api_process_is_replaced_and_the_engine_stays(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, api_process_timeout=2) as server:
        engine, api = server.engine_pid(), server.pid("quire.server.process")
        os.kill(api, signal.SIGSTOP)
        server.wait_for(lambda: server.pid("quire.server.process") != api)
        server.wait_ready()
        assert server.engine_pid() == engine
        assert "the API process hangs" in server.text()
        assert httpx.post(server.url + "/v1/completions", json=body("again", 3), timeout=60).status_code == 200


def test_a_request_that_takes_too_long_fails_and_leaves_the_engine(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, request_timeout=2.0) as server:
        answer = httpx.post(server.url + "/v1/completions", json=body("long", 4000), timeout=60)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "request_timeout"
        assert "2 s" in answer.json()["error"]["message"] and answer.json()["error"]["type"] == "timeout_error"
        streamed = httpx.post(server.url + "/v1/completions", json=body("long", 4000, stream=True), timeout=60)
        *_, last = filter(None, streamed.text.split("\n\n"))
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert httpx.post(server.url + "/v1/completions", json=body("short", 3), timeout=60).status_code == 200
        server.wait_for(lambda: server.metric("num_requests_running") == 0)


def test_no_child_outlives_the_supervisor(server):
    family = server.family()
    server.process.kill()
    _, alive = psutil.wait_procs(family, timeout=LEAVING_S)
    assert not alive


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(server):
    async def main() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            begun = asyncio.Event()
            task = asyncio.ensure_future(stream_tokens(client, body("a", 600), lambda got: begun.set()))
            await begun.wait()
            server.terminate()
            while (refused := await client.post("/v1/completions", json=body("b", 1))).status_code == 200:
                pass
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "engine_unavailable"
            assert (await client.get("/health")).status_code == 503
            assert await task == expected("a", 600)

    family = server.family()
    directory = run_dir_of(server)
    assert (directory.stat().st_mode & 0o777) == 0o700
    asyncio.run(main())
    assert server.wait() == 0
    _, alive = psutil.wait_procs(family, timeout=LEAVING_S)
    assert not alive
    assert not directory.exists()
    with socket.socket() as sock:
        # connections in TIME_WAIT may be left, a listener not
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", server.port))
        sock.listen()


def test_requests_that_take_longer_than_the_drain_time_get_an_error_not_silence(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, shutdown_timeout=0.5) as server:
        with httpx.stream(
            "POST", server.url + "/v1/completions", json=body("a", 4000, stream=True), timeout=60
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.terminate()
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert server.wait() == 0


def test_a_second_sigterm_ends_at_once(server):
    with httpx.stream(
        "POST", server.url + "/v1/completions", json=body("a", 4000, stream=True), timeout=60
    ) as response:
        lines = response.iter_lines()  # kept: when it is dropped, httpx closes the connection
        next(lines)
        family = server.family()
        server.terminate()
        server.wait_for(lambda: server.health() == 503)
        server.terminate()
        assert server.wait() == 0
        with contextlib.suppress(httpx.HTTPError):
            assert sum(line.startswith("data: {") for line in lines) < 3000  # it did not wait for the rest
    _, alive = psutil.wait_procs(family, timeout=LEAVING_S)
    assert not alive


def test_ctrl_c_stops_like_sigterm(server):
    server.process.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_a_port_in_use_is_said_at_once_with_its_holder(tmp_path, model):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        server = Server(tmp_path / "log", model, fake=True, wait=False, port=sock.getsockname()[1])
        assert server.wait() == 2
        assert f"in use by process {os.getpid()}" in server.text()
        assert "Traceback" not in server.text()


@pytest.mark.parametrize(
    ("args", "message"),
    [({"port": 70000}, "port is 70000"), ({"host": "no.such.host.invalid"}, "no.such.host.invalid"), ({"host": "192.0.2.1"}, "192.0.2.1")],
)  # fmt: skip
def test_an_address_that_cannot_be_had_is_refused(args, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        serve(EngineArgs(), ServerArgs(**args))


@pytest.mark.parametrize(
    "args",
    [{"api_key": ["a", ""]}, {"shutdown_timeout": -1}, {"engine_step_timeout": 0}, {"max_engine_deaths": 0},
     {"max_logprobs": -1}, {"allowed_origins": ["[1]"]}, {"allowed_origins": ["["]}, {"engine_step_timeout": float("nan")}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(args):
    with pytest.raises(ConfigError, match=f"--{next(iter(args)).replace('_', '-')}"):
        ServerArgs(**args)


def test_origins_may_be_given_as_json():
    assert ServerArgs(allowed_origins=['["*"]']).allowed_origins == ["*"]
    assert ServerArgs(allowed_origins=["http://a", "http://b"]).allowed_origins == ["http://a", "http://b"]


def test_stopping_while_it_starts(tmp_path, model):
    server = Server(tmp_path / "log", model, fake=True, wait=False)
    while "Started server process" not in server.text():
        time.sleep(0.01)
    family = server.family()
    server.terminate()
    assert server.wait() == 0
    _, alive = psutil.wait_procs(family, timeout=LEAVING_S)
    assert not alive


def test_a_model_that_is_not_there_ends_the_start_with_its_message(tmp_path):
    server = Server(tmp_path / "log", tmp_path / "nothing", fake=True, wait=False)
    assert server.wait() == 2
    last = server.text().strip().splitlines()[-1]
    assert last.startswith("quire serve: ") and "nothing" in last
    assert "Traceback" not in server.text()


def test_a_model_without_tokenizer_ends_the_start_with_its_message(tmp_path, model):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text())
    (folder / "tokenizer.json").write_text("{")
    server = Server(tmp_path / "log", folder, fake=True, wait=False)
    assert server.wait() == 2
    assert "tokenizer.json" in server.text().strip().splitlines()[-1]


def test_only_the_http_port_listens_and_secrets_are_in_no_command_line(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, api_key=["sk-secret-1"]) as server:
        family = server.family()[1:]
        tcp = {c.laddr.port for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert tcp == {server.port}
        assert not any("sk-secret-1" in word for p in family for word in p.cmdline())
        assert "sk-secret-1" not in server.text()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot leave the current folder out")
def test_modules_of_the_current_folder_are_not_imported(tmp_path, model, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path / "log", model, fake=True) as server:
        assert server.health() == 200


def test_what_people_look_for_is_in_the_log(server):
    text = server.text()
    assert "Application startup complete." in text
    assert f"Uvicorn running on {server.url}" in text
    assert "float32" in text and "1,024 tokens" in text
    curl = next(line for line in text.splitlines() if "curl http" in line)
    command = curl[curl.index("curl ") :]
    result = subprocess.run(["bash", "-c", f"{command} -s"], capture_output=True, text=True)
    assert json.loads(result.stdout)  # a well-formed request: the answer is an object of ours


def test_another_host_without_a_key_starts_with_one_loud_line(tmp_path, model):
    with Server(tmp_path / "log", model, fake=True, host="0.0.0.0") as server:
        assert server.text().count("ANYONE WHO CAN REACH") == 1


def test_run_directories_of_dead_servers_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    uid, boot = os.getuid(), rundir.boot_id()
    gone = [tmp_path / f"quire-{uid}-{boot}-{dead.pid}-ab", tmp_path / f"quire-{uid}-otherone-{os.getpid()}-ab"]
    kept = [
        tmp_path / f"quire-{uid}-{boot}-{os.getpid()}-ab",
        tmp_path / "quire-notes",
        tmp_path / f"quire-{uid + 1}-x-1-ab",
    ]
    for path in gone + kept:
        path.mkdir()
        (path / "engine.sock").touch()
    rundir.sweep(tmp_path)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)


def test_a_server_that_was_killed_leaves_nothing_to_the_next(tmp_path, model):
    port = free_port()
    first = Server(tmp_path / "log", model, fake=True, port=port)
    directory = run_dir_of(first)
    family = first.family()
    first.process.kill()
    first.process.wait()
    psutil.wait_procs(family, timeout=LEAVING_S)
    assert directory.exists()
    with Server(tmp_path / "log", model, fake=True, port=port):
        assert not directory.exists()


def test_the_holder_of_a_port_is_found():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert listen.holder_of(sock.getsockname()[1]) is None
        sock.listen()
        assert listen.holder_of(sock.getsockname()[1]) == os.getpid()


def run_dir_of(server: Server) -> Path:
    """The private directory whose socket the API process listens at."""
    connections = psutil.Process(server.pid("quire.server.process")).net_connections("unix")
    path = next(c.laddr for c in connections if c.laddr and c.laddr.endswith("engine.sock"))
    return Path(path).parent
