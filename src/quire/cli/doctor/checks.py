"""The checks, in the order in which a start would come upon them. Most of them are the start's own code, up to the point where memory
would be taken; each raises SetupError with the words that the start would use, or Fault with its own.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from quire import env
from quire.cli.args import Parser, parse
from quire.cli.doctor.edits import Edit, environment
from quire.cli.doctor.machine import Machine
from quire.config import BUILTIN_MODEL, BUILTIN_PREFIX, EngineArgs, EngineConfig
from quire.errors import HubError, SetupError
from quire.hub import model_folder, resolve_tokenizer
from quire.server import listen, rundir
from quire.server.options import ServerArgs
from quire.server.tracing import check_endpoint

MIN_OPEN_FILES = 1024
MIN_FREE_BYTES = 2**30
PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class Fault(SetupError):
    """A fault that a start would not name as well. edits: what mends it, the best first."""

    def __init__(self, message: str, *edits: Edit) -> None:
        super().__init__(message)
        self.edits = list(edits)


@dataclass
class Patient:
    """A start under examination: its words, and what the checks have found so far."""

    words: list[str]
    machine: Machine
    engine_args: EngineArgs = field(default_factory=EngineArgs)
    server_args: ServerArgs = field(default_factory=ServerArgs)
    folder: Path | None = None
    complete: bool = False  # its weights are here
    config: EngineConfig | None = None
    notes: list[str] = field(default_factory=list)


def command_line(patient: Patient) -> None:
    """Flags, their values, and the config file."""
    parser = Parser(prog="quire serve")
    (patient.engine_args, patient.server_args), _ = parse(parser, patient.words, [EngineArgs, ServerArgs])


def variables(patient: Patient) -> None:
    """Environment variables that quire reads."""
    for variable in env.VARIABLES.values():
        value = os.environ.get(variable.name)
        if value and variable.secret and (value != value.strip() or any(c in value for c in " \t\r\n\"'")):
            clean = f'export {variable.name}="$(printf %s "${variable.name}" | tr -d "[:space:]\\"\'")"'
            raise Fault(f"{variable.name} holds a space, a newline or a quote", Edit(shell=clean))
        if variable.kind == "flag":
            env.flag(variable.name)
        elif variable.kind == "url":
            env.url(variable.name)


def limits(patient: Patient) -> None:
    """What the system lets a process do."""
    files = patient.machine.file_limit()
    if files < MIN_OPEN_FILES:
        raise Fault(
            f"this shell lets a process open {files} files; each client takes one", Edit(shell="ulimit -n 65536")
        )


def address(patient: Patient) -> None:
    """The port is free, the host is one of this machine's."""
    listen.bind(patient.server_args.host, patient.server_args.port).close()


def run_directory(patient: Patient) -> None:
    """The private directory for sockets can be made."""
    try:
        rundir.remove(rundir.create())
    except OSError as error:
        raise Fault(f"no directory for sockets can be made: {error}", Edit(environ={"TMPDIR": "/tmp"})) from None


def tracing(patient: Patient) -> None:
    """Traces can be sent, if they are wanted."""
    check_endpoint(patient.server_args.otlp_traces_endpoint, patient.machine.has_package)


def model(patient: Patient) -> None:
    """The model is on this machine, or a hub would give it. Weights are not downloaded."""
    args = patient.engine_args
    name = args.model or BUILTIN_MODEL
    if name.startswith(BUILTIN_PREFIX) or Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
        patient.folder, patient.complete = model_folder(args), True
        _check_readable(patient)
        return
    try:
        with environment({"HF_HUB_OFFLINE": "1"}):
            patient.folder, patient.complete = model_folder(args), True
    except HubError:
        _check_download(patient, args)
        patient.folder = resolve_tokenizer(name, args.revision, args.download_dir, args.hf_token)
        patient.notes.append(f"the weights of {name} are not on this machine; the start downloads them")


def configuration(patient: Patient) -> None:
    """The options, the checkpoint's config.json and this machine go together."""
    from quire.setup import load_config  # imports torch: only once the quick checks are through

    args = dataclasses.replace(patient.engine_args, model=str(patient.folder))
    if patient.folder is None or not (patient.complete or (patient.folder / "config.json").is_file()):
        return
    patient.config = load_config(args, serving=True)[0]


def texts(patient: Patient) -> None:
    """Tokenizer, sampling defaults and chat template can be read."""
    from quire.engine.frontend import Frontend  # tokenizers and templates: only once the quick checks are through

    if patient.config is not None:
        Frontend.load(patient.engine_args, patient.config)


def weights(patient: Patient) -> None:
    """The checkpoint's files are whole and fit the model, and the model fits into memory. Headers are read, nothing is allocated."""
    if patient.config is None or not patient.complete:
        return
    import torch  # the model's shapes are torch's

    from quire.hf_config import HfConfig
    from quire.layers.build import Build
    from quire.models.registry import find_model
    from quire.ops import registry
    from quire.platform import select_platform
    from quire.runner.memory_plan import model_bytes, plan_memory
    from quire.weights.loader import plan_weights

    config, platform = patient.config, select_platform(patient.config.device)
    hf = HfConfig.from_dir(config.model_dir, config.hf_overrides)
    module = find_model(hf)
    sizes = module.Config.from_hf(hf)
    with torch.device("meta"):
        build = Build.plain(registry.resolve(config.backends)[0], getattr(torch, config.dtype), config.max_model_len)
        shapes = module.Model(sizes, build)
    plan_weights(shapes, module.WEIGHTS, Path(config.model_dir), config.load_format, sizes.tied)
    graphs = platform.supports_graphs() and not config.enforce_eager
    plan_memory(config, sizes, model_bytes(shapes), platform.facts(), graphs)


CHECKS = (
    command_line, variables, limits, address, run_directory, tracing, model, configuration, texts, weights,
)  # fmt: skip


def _check_readable(patient: Patient) -> None:
    folder = patient.folder
    if folder is None:
        return
    for path in (folder, *sorted(folder.iterdir() if patient.machine.readable(folder) else [])):
        if not patient.machine.readable(path):
            raise Fault(f"{path} may not be read by this user", Edit(shell=f"chmod -R a+rX {folder}"))


def _check_download(patient: Patient, args: EngineArgs) -> None:
    """Where downloads go there is room, and nothing is in their way."""
    folder = cache_folder(args)
    elsewhere = (Path.home() / "quire-models", Path("/var/tmp/quire-models"), Path.cwd() / "models")
    fitting = [p for p in elsewhere if patient.machine.writable(p) and patient.machine.free_bytes(p) >= MIN_FREE_BYTES]
    ways = [Edit(words=[*patient.words, "--download-dir", str(path)]) for path in fitting]
    if not patient.machine.writable(folder):
        raise Fault(f"downloads go to {folder}, where this user may not write", *ways)
    free = patient.machine.free_bytes(folder)
    if free < MIN_FREE_BYTES:
        raise Fault(f"downloads go to {folder}, where {free / 2**20:.0f} MiB are free", *ways)
    for name in PROXIES:
        value = os.environ.get(name)
        if value and not patient.machine.reachable(value):
            dead = {name: None for name in PROXIES if os.environ.get(name) == value}
            raise Fault(
                f"{name} is {value}, where nothing listens: no hub can be reached through it", Edit(environ=dead)
            )


def cache_folder(args: EngineArgs) -> Path:
    """Where the Hugging Face hub's files go."""
    home = Path(env.path("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(args.download_dir or env.path("HF_HUB_CACHE") or home / "hub").expanduser()
