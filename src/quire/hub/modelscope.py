"""Models from ModelScope, through its own client and in its own cache; an extra, because most users have no need of it."""

import importlib.util
import logging
from pathlib import Path

from quire import env
from quire.errors import ConfigError, HubError
from quire.hub import files

DEFAULT_ENDPOINT = "https://modelscope.cn"
_PROBE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


def download(repo_id: str, revision: str | None, download_dir: str | None, token: str | None, load_format: str) -> Path:
    """The folder of a model of ModelScope. HubError when it is neither to be had nor complete in the cache."""
    if token is not None:
        raise ConfigError("--hf-token is for the Hugging Face hub; ModelScope takes MODELSCOPE_API_TOKEN")
    offline = env.flag("HF_HUB_OFFLINE") or env.flag("TRANSFORMERS_OFFLINE")
    cause = "HF_HUB_OFFLINE is set, so the hub is not asked"
    if not offline:
        try:
            return _snapshot(repo_id, revision, download_dir, load_format, local=False)
        except Exception as error:  # the client's own types are no part of its interface
            cause = _cause(error)
    try:
        folder = _snapshot(repo_id, revision, download_dir, load_format, local=True)
    except Exception as error:
        raise HubError(_message(repo_id, revision, cause, error)) from error
    if not offline:
        logger.warning("%s: %s; using what was downloaded before", repo_id, cause)
    return folder


def _snapshot(repo_id: str, revision: str | None, download_dir: str | None, load_format: str, local: bool) -> Path:
    """One call of the client; `local`: without the network. HubError when files are missing afterwards."""
    if importlib.util.find_spec("modelscope_hub") is None:
        raise HubError("its client is not installed: pip install modelscope-hub")
    # Imported here: they are an extra, and take half a second.
    import requests
    from modelscope_hub.compat import snapshot_download

    if not local:  # the client tries for 20 s when there is no network
        requests.head(_endpoint(), timeout=_PROBE_TIMEOUT_S)
    take, leave = files.patterns(load_format)
    # The client keeps the variables it first saw; these two are passed so that the present ones count.
    folder = Path(
        snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=download_dir or env.path("MODELSCOPE_CACHE"),
            endpoint=env.url("MODELSCOPE_ENDPOINT"),
            allow_patterns=take,
            ignore_patterns=leave,
            local_files_only=local,
        )
    )
    lost = files.missing(folder, load_format)
    if lost:
        raise HubError(f"{', '.join(lost[:4])} {'is' if len(lost) == 1 else 'are'} missing in {folder}")
    return folder


def _endpoint() -> str:
    return env.url("MODELSCOPE_ENDPOINT") or DEFAULT_ENDPOINT


def _cause(error: Exception) -> str:
    if isinstance(error, HubError):
        return str(error)
    reason = next((line.strip() for line in str(error).split("\n") if line.strip()), "no reason given")
    return f"{_endpoint()}: {type(error).__name__}: {reason[:160]}"


def _message(repo_id: str, revision: str | None, cause: str, cache_error: Exception) -> str:
    cached = str(cache_error).split("\n")[0]
    lines = [f"model {repo_id!r}{f', revision {revision}' if revision else ''} of ModelScope: {cause}"]
    lines += [cached[:300]] if cached != cause else []
    return "\n".join([*lines, "ways out: leave VLLM_USE_MODELSCOPE unset (the Hugging Face hub), or --model FOLDER"])
