"""Finds the model file that implements an architecture, without importing the others.

A model is a module of `quire.models` with

    ARCHITECTURES   a tuple of string literals: class names that a config.json gives in "architectures"
    Config          from_hf(HfConfig) -> Config, a DecoderConfig
    Model           Model(config, build): forward(input_ids [T], fwd) -> hidden [T, H];
                    compute_logits(hidden [S, H]) -> [S, V]
                    likeliest(hidden [S, H]) -> [S]
    WEIGHTS         WeightMap from the checkpoint's tensor names to the module's parameters
"""

import ast
import importlib
from pathlib import Path
from types import ModuleType

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig


def architectures() -> dict[str, str]:
    """Every architecture there is -> the name of its module, read from the source without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for name in _declared(path):
            found[name] = path.stem
    return found


def find_model(hf: HfConfig) -> ModuleType:
    """The module that implements a checkpoint. Raises UnsupportedModel, listing what there is, when none does.

    An error inside the module itself is raised as it is: it is not the same as "no such model".
    """
    known = architectures()
    for name in hf.architectures:
        if name in known:
            return importlib.import_module(f"quire.models.{known[name]}")
    listing = ", ".join(sorted(known))
    raise UnsupportedModel(f"{hf.source}: architectures is {list(hf.architectures)}; implemented are {listing}")


def _declared(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "ARCHITECTURES" for t in node.targets
        ):
            return list(ast.literal_eval(node.value))
    return []
