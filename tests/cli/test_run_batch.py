"""`quire run-batch`: a file of requests in, a file of answers out, in order; what is wrong with a line stays on its line."""

import json
import subprocess
import sys

import pytest

from quire.cli.main import main
from quire.errors import EngineUnavailable
from quire.server.batch import Counts, Poster, answer, answer_all

CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "max_tokens": 20}


def line(number, url="/v1/chat/completions", body=None, **more):
    request = {"custom_id": f"r{number}", "method": "POST", "url": url, "body": CHAT if body is None else body}
    return json.dumps({**request, **more})


LINES = [
    line(0), line(1, "/v1/completions", {"prompt": "Hello", "max_tokens": 5, "seed": 1}), "", "not json", line(2, body={"messages": []}),
    line(3, url="/v1/audio"), line(4, body={**CHAT, "stream": True}), line(5, "/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
    line(6, "/v1/messages", {"messages": CHAT["messages"], "max_tokens": 3}), line(7, "/v1/embeddings", {"input": "a"}), line(8, method="GET"), '{"url": 1}',
    *(line(n, body={**CHAT, "seed": n, "temperature": 1}) for n in range(9, 30)), line(30, body={**CHAT, "max_tokens": -1}),
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    (folder / "in.jsonl").write_text("\n".join(LINES) + "\n")
    (folder / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "quire", "run-batch", "-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"),
         "--output-tmp-dir", str(folder / "tmp"), "--dtype", "float32", "--max-model-len", "512"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "25 requests answered, 8 refused" in done.stdout and not list((folder / "tmp").iterdir())
    return [json.loads(text) for text in (folder / "out.jsonl").read_text().splitlines()]


def test_every_line_has_its_answer_in_its_place(rows):
    assert [row["custom_id"] for row in rows] == [
        json.loads(x).get("custom_id") if x.startswith("{") else None for x in LINES if x
    ]
    assert len({row["id"] for row in rows}) == len(rows)
    assert "Paris" in rows[0]["response"]["body"]["choices"][0]["message"]["content"]
    bodies = {row["custom_id"]: row["response"]["body"] for row in rows if row["error"] is None}
    assert len(bodies["r1"]["choices"][0]["text"]) > 0 and bodies["r5"]["object"] == "response"
    assert bodies["r6"]["type"] == "message" and len(bodies) == 25
    assert all(
        row["response"]["status_code"] == 200 and row["response"]["request_id"] for row in rows if row["error"] is None
    )


def test_what_is_wrong_with_a_line_is_said_on_it(rows):
    errors = {row["custom_id"]: row for row in rows if row["error"] is not None and row["custom_id"]}
    assert errors["r2"]["response"]["status_code"] == 400 and "messages" in errors["r2"]["error"]["message"]
    assert errors["r7"]["error"]["message"] == "The model does not support Embeddings API"
    for name, word in (("r3", "/v1/audio"), ("r4", "stream"), ("r8", "POST")):
        assert errors[name]["response"] is None and word in errors[name]["error"]["message"]
    codes = [row["error"]["code"] for row in rows if row["custom_id"] is None]
    assert codes == ["invalid_json_line", "invalid_request"]


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "--input-file is needed"), (["-i", "x"], "--output-file is needed"), (["-i", "/no/such", "-o", "x"], "no such file"),
        (["-i", "https://host/x", "-o", "y"], "files of the web"), (["-i", "x", "-o", "http://host/x"], "files of the web"),
        (["-i", "x", "-o", "y", "--output-tmp"], "did you mean --output-tmp-dir"),
        (["-i", "x", "-o", "y", "--port", "9"], "--enable-metrics"),
    ],
)  # fmt: skip
def test_mistakes(argv, word, capsys):
    assert main(["run-batch", *argv]) == 2
    assert word in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_it(tmp_path, capfd):
    (tmp_path / "in").write_text(line(0))
    assert (
        main(["run-batch", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", "/no/such/folder"]) == 2
    )
    assert "there is no such folder" in capfd.readouterr().err


def test_order_and_a_bounded_window():
    begun = []

    def post(path, body):
        begun.append(body["n"])
        return {"status_code": 200, "request_id": "x", "body": {"n": body["n"]}}

    counts = Counts()
    lines = (line(n, body={"n": n}) for n in range(200))
    rows = answer_all(lines, post, 4, counts)
    first = next(rows)
    assert first["response"]["body"]["n"] == 0 and len(begun) <= 16
    assert [row["response"]["body"]["n"] for row in rows] == list(range(1, 200)) and counts.answered == 200


def test_a_server_that_goes_away():
    with pytest.raises(EngineUnavailable):
        answer(line(0), 1, Poster("http://127.0.0.1:9", "k").post)
    with pytest.raises(EngineUnavailable):
        Poster("http://127.0.0.1:9", "k").wait_ready(lambda: True)
