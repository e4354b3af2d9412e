"""Thousands of requests made from /openapi.json, valid and not: no 5xx, no status, type or shape that the document does not name."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from servers import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
MIN_CASES = 2000


@pytest.mark.timeout(300)
def test_every_route_does_what_the_document_says(tmp_path):
    program = Path(sys.executable).with_name("schemathesis")
    with Server(tmp_path / "log", None, max_model_len=128) as server:
        done = subprocess.run(
            [program, "run", server.url + "/openapi.json", "--phases=examples,coverage,fuzzing", f"--checks={CHECKS}",
             "--max-examples=50", "--seed=1", "--generation-database=none", "--no-color"],
            cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
        cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert cases and int(cases[2]) >= MIN_CASES, done.stdout[-2000:]
        assert httpx.get(server.url + "/health", timeout=60).status_code == 200
        assert "Traceback" not in server.text()
