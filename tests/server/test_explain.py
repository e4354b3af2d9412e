"""Where a request's time went, as a client sees it: the parts against the client's own clock, and against other requests."""

import concurrent.futures
import time

import httpx
import pytest
from servers import Server, fake_model

from quire.server.history import History, Trace

CHAT = "/v1/chat/completions"
PARTS = {"tokenize", "queue", "prefill", "decode", "interrupted", "recompute", "stream"}


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("explain") / "log", None, max_num_seqs=1, max_model_len=2048) as server:
        yield server


def ask(server, **fields) -> tuple[httpx.Response, float]:
    """An answer, and the seconds that it took on the client's clock."""
    body = {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 200,
        "ignore_eos": True,
        **fields,
    }
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.get("/version")  # so that the connection is there
        began = time.monotonic()
        response = client.post(CHAT, json=body)
        return response, time.monotonic() - began


def explained(server, name: str) -> dict:
    response = httpx.get(f"{server.url}/v1/requests/{name}/explain", timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("stream", [False, True])
def test_parts_sum_to_what_the_client_measured(bundled, stream):
    for _ in range(20):  # on a busy machine a client may be woken late, which no server can know of
        response, measured_s = ask(bundled, stream=stream)
        found = explained(bundled, response.headers["x-request-id"])
        if found["total_s"] == pytest.approx(measured_s, rel=0.1, abs=0.05):
            break
    assert found["object"] == "request.explanation" and found["status"] == "ended"
    (prompt,) = found["prompts"]
    assert set(prompt["parts_s"]) == PARTS and min(prompt["parts_s"].values()) >= 0
    assert sum(prompt["parts_s"].values()) == pytest.approx(found["total_s"], rel=0.02)
    assert found["total_s"] == pytest.approx(measured_s, rel=0.1, abs=0.05)
    assert prompt["parts_s"]["decode"] > 0.5 * found["total_s"]
    assert prompt["num_generated_tokens"] == [200] and prompt["finish_reasons"] == ["length"]
    if not stream:
        assert explained(bundled, response.json()["id"]) == found


def test_waiting_shows_as_queue(bundled):
    """One sequence at a time: while a long answer runs, another one waits."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", bundled.url + CHAT, json=body, timeout=60) as first:
        lines = first.iter_lines()
        next(lines)
        running = explained(bundled, first.headers["x-request-id"])
        assert running["status"] == "running" and running["prompts"][0]["finish_reasons"] == [None]
        second, measured_s = ask(bundled, max_tokens=1)
    parts = explained(bundled, second.json()["id"])["prompts"][0]["parts_s"]
    assert parts["queue"] > 0.5 * measured_s and parts["decode"] < 0.1 * measured_s


def test_an_engine_that_dies_shows_as_an_interruption(tmp_path):
    with Server(tmp_path / "log", fake_model(tmp_path / "model"), fake=True) as server:
        body = {"prompt": [250, 20], "max_tokens": 40, "stream": True}  # dies when it would get its 20th token
        response = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
        (prompt,) = explained(server, response.headers["x-request-id"])["prompts"]
        assert prompt["num_interruptions"] >= 1 and prompt["parts_s"]["interrupted"] > 0.05


def test_preemptions_show_as_interruptions(tmp_path):
    """Four answers of 19 blocks or more, and 39 blocks for all of them."""
    with Server(tmp_path / "log", None, num_gpu_blocks_override=40, max_model_len=512) as server:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ask(server, max_tokens=300)[0].json(), range(4)))
        prompts = [explained(server, answer["id"])["prompts"][0] for answer in answers]
        num_preemptions = server.metric("num_preemptions_total")
    assert sum(prompt["num_interruptions"] for prompt in prompts) == num_preemptions > 0
    for prompt in prompts:
        parts = prompt["parts_s"]
        assert min(parts.values()) >= 0 and sum(parts.values()) == pytest.approx(prompt["total_s"], rel=0.02)
        assert (parts["interrupted"] > 0) == (parts["recompute"] > 0) == (prompt["num_interruptions"] > 0)


def test_unknown_requests(bundled):
    response = httpx.get(f"{bundled.url}/v1/requests/nobody/explain", timeout=60)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "request_not_found" and "nobody" in response.json()["error"]["message"]


def test_the_history_is_bounded():
    history = History(max_traces=3)
    for number in range(5):
        history.add(Trace(f"id-{number}", "same", "m", 0, 0.0))
    assert [history.find(f"id-{number}") is not None for number in range(5)] == [False, False, True, True, True]
    assert history.find("same").id == "id-4" and history.find("other") is None
