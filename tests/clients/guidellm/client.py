"""GuideLLM against a server: python client.py URL TOKENIZER."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import MODEL, URL, run

TOKENIZER = sys.argv[2]
NUM_REQUESTS = 12
OUTPUT_TOKENS = 32


def measure(profile: str) -> dict:
    """What it writes of one benchmark with streamed chats of a fixed length."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        options = {
            "backend": f"kind=openai_http,target={URL},model={MODEL}",
            "profile": profile,
            "constraint": f"kind=max_requests,count={NUM_REQUESTS}",
            "tokenizer": f"kind=huggingface_auto,model={TOKENIZER}",
            "data": f"kind=synthetic_text,prompt_tokens=64,output_tokens={OUTPUT_TOKENS}",
            "output": f"kind=json,path={path}",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        program = [str(Path(sys.executable).parent / "guidellm"), "run", *words, "--disable-console"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        (benchmark,) = json.loads(path.read_text())["benchmarks"]
        return benchmark["metrics"]


def concurrent() -> None:
    metrics = measure("kind=concurrent,streams=4")
    assert metrics["request_totals"]["successful"] == NUM_REQUESTS and not metrics["request_totals"]["errored"]
    lengths = metrics["output_token_count"]["successful"]
    assert lengths["min"] == lengths["max"] == OUTPUT_TOKENS  # ignore_eos and the usage of the stream were honoured
    assert metrics["time_to_first_token_ms"]["successful"]["mean"] > 0


def synchronous() -> None:
    assert measure("kind=synchronous")["request_totals"]["successful"] == NUM_REQUESTS


run(concurrent, synchronous)
