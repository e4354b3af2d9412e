"""`quire doctor`: faults put into a start, one by one. What it prints is carried out to the letter, and the start is tried again.

QUIRE_SOAK=1 also starts a real server before and after (those faults that can be real for the user who runs the tests).
"""

import functools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from fake_hub import FakeHub, FakeModelScope
from servers import free_port, run_dirs
from tiny_checkpoints import tiny_qwen2

import quire.cli.doctor as doctor
from quire.cli.doctor.edits import flags_in, with_flag, with_model, without
from quire.cli.doctor.machine import Machine
from quire.cli.main import main
from quire.server import rundir

REPO = "org/model"
MAX_ROUNDS = 3
SOAK = os.environ.get("QUIRE_SOAK") == "1"
START_S = 60


@dataclass
class FakeMachine(Machine):
    """This machine, with faults that a test cannot make real for every user (root may read and write everything)."""

    full: set[Path] = field(default_factory=set)
    locked: set[Path] = field(default_factory=set)
    unreadable: set[Path] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    files: int = 2**20

    def free_bytes(self, path: Path) -> int:
        return 2**20 if any(path.is_relative_to(p) for p in self.full) else 2**40

    def writable(self, path: Path) -> bool:
        return not any(path.is_relative_to(p) for p in self.locked) and super().writable(path)

    def readable(self, path: Path) -> bool:
        return path not in self.unreadable

    def file_limit(self) -> int:
        return self.files

    def has_package(self, name: str) -> bool:
        return name.split(".")[0] not in self.missing and super().has_package(name)


class World:
    """Where a start is tried: a folder with models, a machine, an environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.machine = FakeMachine()
        self.patch = monkeypatch
        self.model = folder / "models" / "tiny"
        shutil.copytree(template(), self.model)
        self.closing: list[Callable[[], None]] = []
        self.real = True  # the fault is one for a real start too

    def hub(self, token: str | None = None) -> FakeHub:
        files = {p.name: p.read_bytes() for p in self.model.iterdir()}
        hub = FakeHub(REPO, files, token)
        self.closing.append(hub.close)
        self.patch.setenv("HF_ENDPOINT", hub.url)
        return hub

    def cached(self) -> Path:
        """The model, downloaded. Returns its folder in the cache."""
        from quire.hub import resolve_model

        self.hub()
        return resolve_model(REPO)

    def carry_out(self, lines: list[str], words: list[str]) -> list[str]:
        """Does what was printed. Returns the words of the command to start with."""
        for line in lines:
            if line.startswith("quire serve"):
                words = shlex.split(line)[2:]
            elif line.startswith("unset "):
                for name in line.split()[1:]:
                    self.patch.delenv(name)
            elif found := re.match(r"export (\w+)=", line):
                done = subprocess.run(
                    ["bash", "-c", f'{line}; printf %s "${found[1]}"'], capture_output=True, text=True, check=True
                )
                self.patch.setenv(found[1], done.stdout)
            elif found := re.fullmatch(r"pip install ([\w. -]+)", line):
                self.install(found[1].split())
            elif found := re.fullmatch(r"ulimit -n (\d+)", line):
                self.machine.files = int(found[1])
            else:
                subprocess.run(["bash", "-c", line], check=True, cwd=self.folder)
                self.machine.unreadable.clear()
        return words

    def install(self, names: list[str]) -> None:
        """Stands for pip. Each name must be one that pip knows here, and bring the package that was missing."""
        for name in names:
            subprocess.run([sys.executable, "-m", "pip", "show", "-q", name], check=True)
        if "modelscope-hub" in names:
            self.patch.delitem(sys.modules, "modelscope_hub")
        if "opentelemetry-sdk" in names:
            self.machine.missing.discard("opentelemetry")


@functools.cache
def template() -> Path:
    folder = Path(run_dirs()) / "doctor-model"
    return tiny_qwen2(folder)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = World(tmp_path, monkeypatch)
    monkeypatch.setattr(doctor, "Machine", lambda: made.machine)
    yield made
    for close in made.closing:
        close()


FAULTS: list[Callable[[World], list[str]]] = []


def fault(make: Callable[[World], list[str]]) -> Callable[[World], list[str]]:
    FAULTS.append(make)
    return make


def simulated(make: Callable[[World], list[str]]) -> Callable[[World], list[str]]:
    """A fault of the stand-in for the machine: a real start would not meet it."""

    @functools.wraps(make)
    def wrapped(world: World) -> list[str]:
        world.real = False
        return make(world)

    return fault(wrapped)


@fault
def mistyped_flag(world):
    return ["builtin:tiny", "--max-modle-len", "512"]


@fault
def flag_of_an_older_engine(world):
    return ["builtin:tiny", "--task", "embedding"]


@fault
def port_that_is_no_number(world):
    return ["builtin:tiny", "--port", "http"]


@fault
def dtype_by_a_nickname(world):
    return ["builtin:tiny", "--dtype", "bf16"]


@fault
def model_swallowed_by_a_flag(world):
    return ["--served-model-name", "mine", str(world.model)]


@fault
def two_models(world):
    return [str(world.model), "--model", "builtin:tiny"]


@fault
def config_file_that_is_not_there(world):
    return ["builtin:tiny", "--config", "serve.yaml"]


@fault
def mistyped_line_in_the_config_file(world):
    (world.folder / "serve.yaml").write_text("max_modle_len: 512\ndtype: bfloat16\n")
    return ["builtin:tiny", "--config", "serve.yaml"]


@fault
def port_in_use(world):
    sock = socket.create_server(("127.0.0.1", 0))
    world.closing.append(sock.close)
    return ["builtin:tiny", "--port", str(sock.getsockname()[1])]


@fault
def port_out_of_range(world):
    return ["builtin:tiny", "--port", "80000"]


@fault
def host_of_another_machine(world):
    return ["builtin:tiny", "--host", "203.0.113.7"]


@fault
def empty_key(world):
    return ["builtin:tiny", "--api-key", ""]


@fault
def origins_that_are_no_list(world):
    return ["builtin:tiny", "--allowed-origins", "[http://a"]


@fault
def overrides_that_are_no_json(world):
    return ["builtin:tiny", "--hf-overrides", "rope_theta=1"]


@fault
def mirror_without_http(world):
    world.patch.setenv("HF_ENDPOINT", world.hub().url.removeprefix("http://"))
    return [REPO]


@fault
def switch_that_is_neither_on_nor_off(world):
    world.cached()
    world.patch.setenv("HF_HUB_OFFLINE", "maybe")
    return [REPO]


@fault
def token_with_a_newline(world):
    world.hub(token="hf_good")
    world.patch.setenv("HF_TOKEN", '"hf_good\n')
    return [REPO]


@fault
def wrong_token_in_the_environment(world):
    """The right one was saved by `hf auth login`; the variable goes before it."""
    world.hub(token="hf_good")
    home = world.folder / "home" / ".cache" / "huggingface"
    home.mkdir(parents=True)
    (home / "token").write_text("hf_good")
    world.patch.setenv("HF_TOKEN_PATH", str(home / "token"))
    world.patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))  # read when it was imported
    world.patch.setenv("HF_TOKEN", "hf_bad")
    return [REPO]


@fault
def offline_and_never_downloaded(world):
    world.hub()
    world.patch.setenv("HF_HUB_OFFLINE", "1")
    return [REPO]


@fault
def proxy_that_is_gone(world):
    world.hub()
    world.patch.setenv("http_proxy", "http://127.0.0.1:9")
    return [REPO]


@fault
def revision_that_does_not_exist(world):
    world.hub()
    return [REPO, "--revision", "v9"]


@simulated
def no_space_for_downloads(world):
    world.hub()
    world.machine.full.add(world.folder / "cache")
    return [REPO]


@simulated
def downloads_into_a_locked_folder(world):
    world.hub()
    world.machine.locked.add(world.folder / "cache")
    return [REPO]


@fault
def truncated_weights_in_the_cache(world):
    file = (world.cached() / "model.safetensors").resolve()
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-100])
    return [REPO]


@fault
def garbled_config_in_the_cache(world):
    (world.cached() / "config.json").resolve().write_text("{")
    return [REPO]


@fault
def garbled_tokenizer_in_the_cache(world):
    (world.cached() / "tokenizer.json").resolve().write_text("{}")
    return [REPO]


@fault
def mistyped_path(world):
    return [str(world.model.parent / "tinny")]


@fault
def mistyped_relative_path(world):
    return ["models/tiiny"]


@fault
def a_file_in_place_of_its_folder(world):
    return [str(world.model / "model.safetensors")]


@fault
def bundled_model_that_does_not_exist(world):
    return ["builtin:small"]


@fault
def no_tokenizer(world):
    for path in world.model.glob("*token*"):
        path.unlink()
    return [str(world.model)]


@fault
def tokenizer_of_nowhere(world):
    return [str(world.model), "--tokenizer", "./tok"]


@fault
def pickled_weights(world):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(world.model / "model.safetensors"), world.model / "pytorch_model.bin")
    (world.model / "model.safetensors").unlink()
    return [str(world.model)]


@fault
def impossible_sampling_defaults(world):
    (world.model / "generation_config.json").write_text(json.dumps({"temperature": -1.0}))
    return [str(world.model)]


@fault
def chat_template_that_is_not_there(world):
    return [str(world.model), "--chat-template", "./template.jinja"]


@simulated
def files_of_somebody_else(world):
    world.machine.unreadable.add(world.model / "model.safetensors")
    return [str(world.model)]


@fault
def longer_than_the_model(world):
    return [str(world.model), "--max-model-len", "100k"]


@fault
def cache_that_is_too_small(world):
    return [str(world.model), "--kv-cache-memory-bytes", "1k"]


@fault
def too_few_blocks(world):
    return [str(world.model), "--num-gpu-blocks-override", "2"]


@fault
def more_sequences_than_tokens(world):
    return [str(world.model), "--max-num-seqs", "64", "--max-num-batched-tokens", "8"]


@fault
def memory_in_percent(world):
    return [str(world.model), "--gpu-memory-utilization", "90"]


@fault
def cuda_without_a_gpu(world):
    return [str(world.model), "--device", "cuda"]


@fault
def several_gpus(world):
    return [str(world.model), "-tp", "2"]


@fault
def quantisation_of_plain_weights(world):
    return [str(world.model), "-q", "awq"]


@fault
def collector_without_an_address(world):
    return ["builtin:tiny", "--otlp-traces-endpoint", "localhost:4318"]


@simulated
def traces_without_opentelemetry(world):
    world.machine.missing.add("opentelemetry")
    return ["builtin:tiny", "--otlp-traces-endpoint", "http://localhost:4318/v1/traces"]


@simulated
def modelscope_without_its_client(world):
    world.patch.setitem(sys.modules, "modelscope_hub", None)
    world.patch.setenv("QUIRE_USE_MODELSCOPE", "1")
    world.patch.setenv("MODELSCOPE_CACHE", str(world.folder / "scope"))
    hub = FakeModelScope(REPO, {p.name: p.read_bytes() for p in world.model.iterdir()})
    world.closing.append(hub.close)
    world.patch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    return [REPO]


@simulated
def few_open_files(world):
    world.machine.files = 64
    return ["builtin:tiny"]


def mends(out: str) -> list[str]:
    """The lines to carry out: of several command lines the last, which has all changes."""
    lines = re.findall(r"^  mend: (.*)$", out, re.M)
    commands = [line for line in lines if line.startswith("quire serve")]
    return [line for line in lines if line not in commands] + commands[-1:]


def starts(words: list[str], log: Path) -> bool:
    """Whether a real server says that it is ready."""
    port = [] if "--port" in flags_in(words) else ["--port", str(free_port())]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "quire", "serve", *words, *port], stdout=file, stderr=file,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": run_dirs()},
        )  # fmt: skip
    try:
        for _ in range(START_S * 10):
            if "Application startup complete" in log.read_text():
                return True
            try:
                process.wait(0.1)
                return False
            except subprocess.TimeoutExpired:
                continue
        return False
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("make", FAULTS, ids=lambda make: make.__name__)
def test_what_it_prints_mends(make, world, capsys):
    words = make(world)
    really = SOAK and world.real
    assert not really or not starts(words, world.folder / "before.log"), "this is no fault"
    for number in range(MAX_ROUNDS):
        code = main(["doctor", "serve", *words])
        out = capsys.readouterr().out
        if code == 0:
            assert number > 0, out
            break
        assert mends(out), out
        words = world.carry_out(mends(out), words)
    assert code == 0, out
    assert not really or starts(words, world.folder / "after.log"), (world.folder / "after.log").read_text()


def test_there_are_at_least_thirty_faults():
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("make", [port_in_use, mistyped_path, truncated_weights_in_the_cache], ids=lambda m: m.__name__)
def test_a_real_start_fails_before_and_succeeds_after(make, world, capsys):
    words = make(world)
    assert not starts(words, world.folder / "before.log")
    main(["doctor", *words])
    words = world.carry_out(mends(capsys.readouterr().out), words)
    assert starts(words, world.folder / "after.log"), (world.folder / "after.log").read_text()


def test_several_faults_are_mended_in_one_go(world, capsys):
    words = [
        str(world.model.parent / "tinny"),
        "--dtype",
        "fp16",
        "-tp",
        "2",
        "--max-model-len",
        "1m",
        "--port",
        "80000",
    ]
    assert main(["doctor", *words]) == 1
    out = capsys.readouterr().out
    assert out.count("fault: ") == 5 and "with these changes no fault is left" in out
    words = world.carry_out(mends(out), words)
    assert words[0] == str(world.model) and main(["doctor", *words]) == 0


def test_what_no_command_mends_is_said(world, capsys):
    config = json.loads((world.model / "config.json").read_text())
    (world.model / "config.json").write_text(json.dumps({**config, "architectures": ["NewForCausalLM"]}))
    assert main(["doctor", str(world.model)]) == 1
    out = capsys.readouterr().out
    assert "NewForCausalLM" in out and "no command mends this" in out


def test_secrets_are_not_printed(world, capsys):
    world.patch.setenv("HF_TOKEN", "hf_secret value")
    assert main(["doctor", "builtin:tiny"]) == 1
    assert "hf_secret" not in capsys.readouterr().out


def test_a_dead_servers_directory_is_no_fault(world, capsys, monkeypatch):
    base = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path, as sockets need
    world.closing.append(lambda: shutil.rmtree(base))
    monkeypatch.setattr("tempfile.tempdir", str(base))
    stale = base / f"quire-{os.getuid()}-{rundir.boot_id()}-999999999-abcdef"
    stale.mkdir()
    assert main(["doctor", "builtin:tiny"]) == 0 and not stale.exists()


def test_weights_that_are_not_here_are_noted_and_not_fetched(world, capsys):
    hub = world.hub()
    assert main(["doctor", REPO]) == 0
    assert f"the weights of {REPO} are not on this machine" in capsys.readouterr().out
    assert not hub.paths("safetensors")


def test_the_report_as_json(world, capsys):
    assert main(["doctor", "--json", "builtin:tiny", "-tp", "2"]) == 1
    report = yaml.safe_load(capsys.readouterr().out)
    assert report["command"] == "quire serve builtin:tiny" and report["whole"]
    assert (
        report["findings"][0]["mend"] == ["quire serve builtin:tiny"]
        and report["findings"][0]["check"] == "configuration"
    )


def test_words_are_edited_as_people_write_them():
    words = ["m", "--max_model_len", "4k", "-tp", "2", "--seed=-1", "--served-model-name", "a", "b", "--enforce-eager"]
    assert without(words, "--max-model-len", "-tp") == [
        "m",
        "--seed=-1",
        "--served-model-name",
        "a",
        "b",
        "--enforce-eager",
    ]
    assert without(words, "--served-model-name", "--seed") == [
        "m",
        "--max_model_len",
        "4k",
        "-tp",
        "2",
        "--enforce-eager",
    ]
    assert with_flag(["m", "--port=1"], "--port", "2") == ["m", "--port", "2"]
    assert with_model(["m", "--port", "1"], "n") == ["n", "--port", "1"]
    assert with_model(["--port", "1", "--model", "m"], "n") == ["n", "--port", "1"]
    assert flags_in(words)[:2] == ["--max-model-len", "-tp"]
