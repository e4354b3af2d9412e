"""lm-evaluation-harness (local-completions) against a server: python client.py URL TOKENIZER."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import MODEL, URL, run

HERE = Path(__file__).parent
TOKENIZER = sys.argv[2]


def evaluate(task: str) -> dict:
    """Scores of a task of this folder."""
    args = f"base_url={URL}/v1/completions,model={MODEL},tokenizer={TOKENIZER},num_concurrent=4,max_retries=1"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "run",
            "--model",
            "local-completions",
            "--model_args",
            args,
            "--tasks",
            task,
            "--include_path",
            str(HERE),
        ]
        program = [str(Path(sys.executable).parent / "lm-eval"), *command, "--output_path", folder]
        done = subprocess.run(program, cwd=HERE, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        (written,) = Path(folder).rglob("results_*.json")
        return json.loads(written.read_text())["results"][task]


def generate_until() -> None:
    assert evaluate("capitals_generate")["exact_match,none"] == 1.0


def loglikelihood() -> None:
    assert evaluate("capitals_choice")["acc,none"] == 1.0


def loglikelihood_rolling() -> None:
    assert 1.0 < evaluate("capitals_rolling")["byte_perplexity,none"] < 4.0


run(generate_until, loglikelihood, loglikelihood_rolling)
