"""Models from the Hugging Face hub or a mirror of it, kept in the cache that all of its tools share.

One commit a model: the branch is resolved once and every file is fetched by that commit. The cache comes first: a model that is
complete there is used when the hub cannot be reached, and a commit that is complete there is not asked for again.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from quire import env
from quire.errors import HubError
from quire.hub import files

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_API_TIMEOUT_S = 5.0
_MAX_ATTEMPTS = 3
_MAX_NAMED = 4

logger = logging.getLogger(__name__)


class CachedRepo:
    """One model in the hub's cache: CACHE/models--ORG--NAME with refs/REVISION -> commit and snapshots/COMMIT/files."""

    def __init__(self, cache_dir: Path, repo_id: str) -> None:
        self.cache_dir = cache_dir
        self.folder = cache_dir / ("models--" + repo_id.replace("/", "--"))

    def commit(self, revision: str) -> str | None:
        """The commit that a revision had when it was last downloaded."""
        if _COMMIT.match(revision):
            return revision
        try:
            return (self.folder / "refs" / revision).read_text().strip()
        except OSError:
            return None

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files."""
        return self.folder / "snapshots" / commit

    def remember(self, revision: str, commit: str) -> None:
        """Notes what a revision is, once its snapshot is complete."""
        if revision == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(commit)
        unfinished.replace(path)


def download(repo_id: str, revision: str | None, download_dir: str | None, token: str | None, load_format: str) -> Path:
    """The folder of a model of the hub. HubError when it is neither to be had nor complete in the cache."""
    revision = revision or DEFAULT_REVISION
    repo = CachedRepo(_cache_dir(download_dir), repo_id)
    commit = repo.commit(revision)
    cached = repo.snapshot(commit) if commit else None
    lost = files.missing(cached, load_format) if cached and cached.is_dir() else None
    offline = env.flag("HF_HUB_OFFLINE") or env.flag("TRANSFORMERS_OFFLINE")
    if cached and lost == [] and (offline or _COMMIT.match(revision)):
        return cached
    endpoint = env.url("HF_ENDPOINT") or DEFAULT_ENDPOINT
    try:
        if offline:
            raise HubError("HF_HUB_OFFLINE is set, so the hub is not asked")
        return _fetch(repo, repo_id, revision, endpoint, token or env.text("HF_TOKEN"), load_format)
    except Exception as error:  # the client's own types change from version to version
        if cached and lost == []:
            logger.warning("%s: %s; using the downloaded commit %s", repo_id, _cause(error, endpoint), commit)
            return cached
        raise HubError(_message(repo_id, revision, endpoint, error, repo.cache_dir, lost)) from error


def _client(endpoint: str, token: str | None) -> Any:
    _prefer_plain_http(endpoint)
    # Imported here: `import quire` stays quick, and the client reads HF_* variables when it is imported.
    import huggingface_hub
    import huggingface_hub.constants

    if env.flag("HF_HUB_DISABLE_XET"):
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True  # it may have been imported before, by someone else
    return huggingface_hub.HfApi(endpoint=endpoint, token=token)


def _fetch(repo: CachedRepo, repo_id: str, revision: str, endpoint: str, token: str | None, load_format: str) -> Path:
    api = _client(endpoint, token)
    info = api.model_info(repo_id, revision=revision, timeout=_API_TIMEOUT_S)
    names = [sibling.rfilename for sibling in info.siblings or []]
    commit = info.sha or ""
    if not _COMMIT.match(commit):
        raise HubError(f"{endpoint} names no commit for revision {revision}")
    _check_listing(names, load_format)
    wanted = files.wanted(names, load_format)
    folder = repo.snapshot(commit)
    if not all((folder / name).is_file() for name in wanted):
        _download_files(api, repo, repo_id, commit, wanted)
    lost = [name for name in wanted if not (folder / name).is_file()]
    if lost:
        raise HubError(f"the download ended without {_some(lost)}")
    repo.remember(revision, commit)
    return folder


def _download_files(api: Any, repo: CachedRepo, repo_id: str, commit: str, wanted: list[str]) -> None:
    """Fetches files by commit; what broke off goes on where it was."""
    for attempt in range(_MAX_ATTEMPTS):
        try:
            api.snapshot_download(repo_id, revision=commit, cache_dir=repo.cache_dir, allow_patterns=wanted)
            return
        except Exception as error:
            if attempt + 1 == _MAX_ATTEMPTS or getattr(error, "response", None) is not None:
                raise


def _check_listing(names: list[str], load_format: str) -> None:
    """Says before a download of gigabytes that the repository holds nothing to load."""
    if "config.json" not in names and load_format != "tokenizer":
        raise HubError("the repository holds no config.json: it is no transformers model")
    if not files.has_weights(names, load_format):
        pickles = load_format != "pt" and files.has_weights(names, "pt")
        hint = (
            "only pickle files, which can run code; --load-format pt reads them as plain tensors" if pickles else "none"
        )
        raise HubError(f"the repository's weights: {hint}")


def _prefer_plain_http(endpoint: str) -> None:
    """Mirrors serve the files themselves, but the client would fetch them from the hub's own storage hosts."""
    if endpoint != DEFAULT_ENDPOINT:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


def _cache_dir(download_dir: str | None) -> Path:
    """Source: huggingface_hub/constants.py."""
    if download_dir:
        return Path(download_dir).expanduser().resolve()
    home = env.path("HF_HOME") or env.caches() / "huggingface"
    return Path(env.path("HF_HUB_CACHE") or Path(home, "hub")).resolve()


def _message(
    repo_id: str, revision: str, endpoint: str, error: Exception, cache_dir: Path, lost: list[str] | None
) -> str:
    what = f"model {repo_id!r}, revision {revision}: {_cause(error, endpoint)}"
    here = "nothing of it is" if lost is None else f"all but {_some(lost)} is"
    return (
        f"{what}\n{here} in {cache_dir}" + ("" if "/" in repo_id else f", and there is no folder {repo_id!r}") + "\n"
        "ways out: HF_ENDPOINT=https://hf-mirror.com (a mirror), VLLM_USE_MODELSCOPE=True (ModelScope), or --model FOLDER"
    )


def _cause(error: Exception, endpoint: str) -> str:
    """One line, in words for the errors that people meet."""
    if isinstance(error, HubError):
        return str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if name == "GatedRepoError" or status == 403:
        return f"{endpoint} asks for a token with access to it; set HF_TOKEN or --hf-token"
    if name == "RevisionNotFoundError":
        return f"{endpoint} has no such revision"
    if name == "RepositoryNotFoundError" or status in (401, 404):
        return f"{endpoint} has no such model, or it is private and needs HF_TOKEN"
    if status is not None:
        return f"{endpoint} answered {status}"
    if name == "HFValidationError":
        return "this is neither a folder nor a name that the hub allows"
    reason = next((line.strip() for line in str(error).split("\n") if line.strip()), "no reason given")
    return f"{endpoint} cannot be reached or broke off ({name}: {reason[:160]})"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest
