"""OpenTelemetry traces as a collector gets them, and log lines as a log shipper does; in neither is there text of requests."""

import json
import logging
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import Server, fake_model
from tiny_checkpoints import VOCAB_SIZE

from quire.cli.main import main
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine.times import Times
from quire.errors import ConfigError
from quire.log import JsonLine
from quire.server.history import PromptTrace, Trace
from quire.server.tracing import attributes, check_endpoint

SECRET = "my secret words"
CHAT = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "temperature": 0.5, "seed": 1}


class Collector:
    """Takes OTLP over HTTP; `spans` are those that came."""

    def __init__(self) -> None:
        self.spans = []
        self.resources = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    collector.resources.append(plain(resource.resource.attributes))
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def plain(attributes) -> dict:
    found = {}
    for item in attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        found[item.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.close()


def test_each_prompt_has_a_span_in_its_clients_trace(tmp_path, collector):
    log = tmp_path / "log"
    with Server(log, fake_model(tmp_path / "m", VOCAB_SIZE), fake=True, otlp_traces_endpoint=collector.url) as server:
        parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        before_ns = time.time_ns()
        answer = httpx.post(
            server.url + "/v1/chat/completions",
            json=CHAT,
            headers={"traceparent": parent, "x-request-id": "mine"},
            timeout=60,
        )
        body = {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as stream:
            stream.read()
        after_ns = time.time_ns()
        server.terminate()
        assert server.wait() == 0
    chat, *texts = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert len(texts) == 2 and {span.name for span in collector.spans} == {"llm_request"}
    assert (chat.trace_id.hex(), chat.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    assert texts[0].parent_span_id == b""
    found = plain(chat.attributes)
    assert found["gen_ai.response.id"] == answer.json()["id"] and found["gen_ai.request.id"] == "mine"
    usage = answer.json()["usage"]
    assert found["gen_ai.usage.input_tokens"] == found["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == found["gen_ai.usage.completion_tokens"] == 5
    assert (found["gen_ai.operation.name"], found["gen_ai.response.finish_reasons"]) == ("chat", ["length"])
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.max_tokens"]) == (0.5, 5)
    assert 0 < found["gen_ai.latency.time_to_first_token"] <= found["gen_ai.latency.e2e"]
    assert before_ns <= chat.start_time_unix_nano < chat.events[0].time_unix_nano <= chat.end_time_unix_nano <= after_ns
    assert collector.resources[0]["service.name"] == "quire"
    assert SECRET not in str(collector.spans) and SECRET not in log.read_text()


def test_parts_of_the_latency_are_those_of_the_explanation():
    times = Times(1.0, started_s=2.0, first_token_s=3.5, last_output_s=5.0)
    prompt = PromptTrace(times, 7, [4], {0: "stop"}, num_cached_tokens=2)
    trace = Trace("chatcmpl-1", "r", "m", 0, arrived_s=0.5, ended_s=5.5, prompts=[prompt])
    found = attributes(trace, prompt, Request("i", [1] * 7, SamplingParams(seed=2**64 - 1)))
    assert found["gen_ai.latency.e2e"] == 5.0 and found["gen_ai.latency.time_to_first_token"] == 3.0
    assert (found["gen_ai.latency.time_in_queue"], found["gen_ai.latency.time_in_model_prefill"]) == (1.0, 1.5)
    assert found["gen_ai.latency.time_in_model_decode"] == 1.5 and found["gen_ai.usage.cached_tokens"] == 2
    assert found["gen_ai.request.seed"] == str(2**64 - 1)


def test_traces_that_cannot_be_sent_are_refused_before_anything_starts(capsys):
    with pytest.raises(ConfigError, match="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"):
        check_endpoint("http://localhost:4318/v1/traces", lambda name: False)
    for wrong in ("localhost:4318", "grpc://localhost:4317", "http://"):
        with pytest.raises(ConfigError, match="--otlp-traces-endpoint"):
            check_endpoint(wrong)
    assert main(["serve", "--otlp-traces-endpoint", "localhost:4318"]) == 2
    assert "--otlp-traces-endpoint is 'localhost:4318'" in capsys.readouterr().err


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_line_is_json(tmp_path):
    log = tmp_path / "log"
    args = {"log_format": "json", "enable_log_requests": True}
    with Server(log, fake_model(tmp_path / "m", VOCAB_SIZE), fake=True, **args) as server:
        httpx.post(server.url + "/v1/chat/completions", json={**CHAT, "unknown\nfield": 1}, timeout=60)
        server.terminate()
        assert server.wait() == 0
    found = lines(log)
    assert all({"time", "level", "logger", "message"} <= set(entry) for entry in found)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}\+00:00", entry["time"]) for entry in found)
    access = next(entry for entry in found if entry["logger"] == "uvicorn.access" and entry["method"] == "POST")
    assert (access["path"], access["status"]) == ("/v1/chat/completions", 200)
    received = next(entry["message"] for entry in found if entry["message"].startswith("Received request"))
    assert "prompt tokens" in received and "temperature=0.5" in received
    assert any("unknown\nfield" in entry["message"] or "unknown\\nfield" in entry["message"] for entry in found)
    assert SECRET not in log.read_text()


def test_of_a_prompt_as_much_is_logged_as_the_operator_allows(tmp_path):
    log = tmp_path / "log"
    args = {"enable_log_requests": True, "max_log_len": 4}
    with Server(log, fake_model(tmp_path / "m", VOCAB_SIZE), fake=True, **args) as server:
        httpx.post(server.url + "/v1/completions", json={"prompt": "abcdefgh", "max_tokens": 1}, timeout=60)
    assert "prompt: 'abcd'" in log.read_text() and "abcde" not in log.read_text()


def test_an_exception_is_one_object():
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logging.LogRecord("quire.x", logging.ERROR, "f", 1, "it failed: %s", ("é\n",), sys.exc_info())
    text = JsonLine().format(record)
    assert "\n" not in text
    entry = json.loads(text)
    assert entry["message"] == "it failed: é\n" and entry["exception"].startswith("Traceback")
