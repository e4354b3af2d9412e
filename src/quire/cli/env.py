"""`quire env`: what this machine is, which kernels quire would use on it, and why not the others."""

import importlib.metadata
import os
import platform as host
import sys
from collections.abc import Sequence

from quire import env
from quire.cli.args import Parser
from quire.version import __version__

HELP = "show the machine, the versions, and which kernel backend each operator gets"
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "fastapi",
    "uvicorn",
    "msgspec",
)
# Read by torch and the CPU's thread pools, not by quire; the others are those of quire.env.
MACHINE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def main(argv: Sequence[str]) -> int:
    """Prints the report."""
    parser = Parser(prog="quire env", description=HELP)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    args = parser.parse_args(list(argv))
    from quire.ops.registry import resolve  # imports torch: only this command's body needs it
    from quire.platform import select_platform

    platform = select_platform(args.device)
    facts = platform.facts()
    print(f"quire {__version__}, Python {sys.version.split()[0]}, {host.platform()}")
    print(f"device: {facts.device} ({facts.name})")
    print(f"memory: {facts.total_memory_bytes / 2**30:.1f} GiB in all, {facts.free_memory_bytes / 2**30:.1f} GiB free")
    print(f"dtypes: {', '.join(facts.dtypes)}")
    print("packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    print("environment: " + (", ".join(_environment()) or "nothing set"))
    print("operators:")
    for choice in resolve(platform.backends)[1]:
        refused = "; ".join(f"not {name}: {', '.join(reasons)}" for name, reasons in choice.refused.items())
        print(f"  {choice.op:16} {choice.backend}" + (f"   ({refused})" if refused else ""))
    return 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _environment() -> list[str]:
    machine = [f"{name}={os.environ[name]}" for name in MACHINE_VARIABLES if os.environ.get(name)]
    return machine + env.describe()
