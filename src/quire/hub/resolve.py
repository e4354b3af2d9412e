"""resolve_model: from what the user calls a model to a local folder that holds it."""

import importlib.resources
import re
from pathlib import Path

from quire import env
from quire.config import BUILTIN_MODEL, BUILTIN_PREFIX, EngineArgs
from quire.errors import HubError
from quire.hub import huggingface, modelscope

# What the hub allows; ./model, ~/model, /models/qwen, a/b/c and models\\qwen are paths.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?\Z")


def resolve_model(
    name: str,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    load_format: str = "auto",
) -> Path:
    """The local folder of a model; downloads it if it has to.

    name          builtin:tiny, a folder, or a name on the hub: Hugging Face's, or ModelScope's if QUIRE_USE_MODELSCOPE or
                  VLLM_USE_MODELSCOPE says so. A folder of that name goes first
    revision      branch, tag or commit on the hub
    download_dir  where downloads go; default: the hub's own cache
    token         for the Hugging Face hub; default: HF_TOKEN, or what its command line has saved
    load_format   "pt" fetches pickled weights, "dummy" none, others safetensors
    Raises HubError: no such folder, or it cannot be downloaded; three lines with the cause, what is missing and the ways out.
    """
    if name.startswith(BUILTIN_PREFIX):
        return _builtin(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix == ".gguf":
        raise HubError(
            f"model {name!r}: GGUF files are not read yet; use the model's safetensors folder or its hub name"
        )
    if folder.exists():
        raise HubError(f"model {name!r} is a file; give the folder that holds it")
    if _HUB_NAME.match(name) is None:
        raise HubError(f"model {name!r}: there is no such folder, and it is no name on a hub (those are ORG/NAME)")
    use_modelscope = env.flag("QUIRE_USE_MODELSCOPE") or env.flag("VLLM_USE_MODELSCOPE")
    download = modelscope.download if use_modelscope else huggingface.download
    return download(name, revision, download_dir, token, load_format)


def model_folder(args: EngineArgs, *, load_format: str | None = None) -> Path:
    """The local folder of the model that the options name, the bundled one if they name none. See resolve_model.

    load_format  in place of the options' own
    """
    return resolve_model(
        args.model or BUILTIN_MODEL,
        revision=args.revision,
        download_dir=args.download_dir,
        token=args.hf_token,
        load_format=load_format or args.load_format,
    )


def resolve_tokenizer(
    name: str, revision: str | None = None, download_dir: str | None = None, token: str | None = None
) -> Path:
    """The local folder of a tokenizer named by itself; fetches the tokenizer's files alone. See resolve_model."""
    return resolve_model(name, revision, download_dir, token, load_format="tokenizer")


def _builtin(name: str) -> Path:
    root = Path(str(importlib.resources.files("quire"))) / "_builtin"
    folder = root / name.removeprefix(BUILTIN_PREFIX)
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if folder.name not in names or folder.parent != root:
        raise HubError(f"model {name!r}: bundled models are {', '.join(BUILTIN_PREFIX + n for n in names) or 'none'}")
    return folder
