"""Real clients, each in an environment of its own (environments.py), against the bundled model: every check of each holds.

OpenAI's clients are part of the default suite. The others install much more, so they run with `make test-clients` (QUIRE_CLIENTS=1).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from environments import NoEnvironment, node_project, python_of
from markdown import ROOT, table
from servers import Server

HERE = Path(__file__).parent
ALL = bool(os.environ.get("QUIRE_CLIENTS"))
TOKENIZER = ROOT / "src" / "quire" / "_builtin" / "tiny"
RUN_S = 250
# Nothing here looks for anything outside this machine: neither a hub, nor price lists, nor a collector of telemetry.
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1",
    "PYTHONPATH": str(HERE / "common"),
}  # fmt: skip

COMMON = ["chat", "stream", "tools", "parse", "logprobs"]
LIGHT = {
    "openai2": ["models", *COMMON, "responses", "errors", "concurrent"],
    "openai3": ["models", *COMMON, "responses", "errors", "concurrent"],
    "openai_node": ["models", *COMMON, "responses", "errors"],
}
HEAVY = {
    "langchain": [*COMMON, "errors"],
    "llamaindex": COMMON,
    "litellm": [*COMMON, "errors"],
    "vercel_ai": [*COMMON, "responses", "errors"],
    "lm_eval": ["generate_until", "loglikelihood", "loglikelihood_rolling"],
    "guidellm": ["concurrent", "synchronous"],
}
REPLAYED = {"open_webui": ["models", "stream", "chat", "embeddings", "preflight"]}
NODE = {"openai_node", "vercel_ai"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("clients") / "log"
    with Server(log, None, num_gpu_blocks_override=600, allowed_origins=["http://localhost:3000"]) as made:
        yield made


def checks(server: Server, command: list[str], cwd: Path | None = None) -> list[str]:
    """Runs a client's program against the server; the names of the checks that held. It fails if one did not."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*command, server.url, str(TOKENIZER)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        env={**kept, **OFFLINE},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.removeprefix("ok ") for line in done.stdout.splitlines() if line.startswith("ok ")]


def environment(make: Callable[[Path], Path], name: str) -> Path:
    """A client's environment. In the default suite a machine that reaches no package index passes the client over."""
    try:
        return make(HERE / name)
    except NoEnvironment as error:
        if ALL:
            raise
        pytest.skip(f"the environment of {name} cannot be made: {str(error)[-300:]}")


def run_client(server: Server, name: str) -> list[str]:
    if name in NODE:
        if not (shutil.which("node") and shutil.which("npm") or ALL):
            pytest.skip(f"{name} needs node and npm")
        return checks(server, ["node", "client.mjs"], cwd=environment(node_project, name))
    program = HERE / "common" / "openai_python.py" if name in LIGHT else HERE / name / "client.py"
    return checks(server, [str(environment(python_of, name)), str(program)])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LIGHT)
def test_openai_client(server: Server, name: str):
    assert run_client(server, name) == LIGHT[name]


@pytest.mark.skipif(not ALL, reason="installs much; make test-clients runs it")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", HEAVY)
def test_framework(server: Server, name: str):
    assert run_client(server, name) == HEAVY[name]


def test_calls_of_open_webui(server: Server):
    program = str(HERE / "open_webui" / "client.py")
    assert checks(server, [sys.executable, program]) == REPLAYED["open_webui"]


@pytest.mark.parametrize("folder", [ROOT / "docs" / "guide", ROOT / "docs" / "guide" / "zh"], ids=["en", "zh"])
def test_the_guide_says_what_is_checked(folder: Path):
    rows = table(folder / "clients.md", "clients")
    assert [row[2].split(", ") for row in rows] == list({**LIGHT, **HEAVY, **REPLAYED}.values())
