"""Downloads from the Hugging Face hub, against a small server that speaks its protocol."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import NEWER, SHA, FakeHub, Storage

import quire.hub
from quire.errors import ConfigError, HubError
from quire.hub import resolve_model, resolve_tokenizer

REPO = "org/model"
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"t": 1}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"x",
    "additional_chat_templates/tool_use.jinja": b"y",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": b"1" * 5000,
    "model-00002-of-00002.safetensors": b"2" * 7000,
}
UNWANTED = {
    "README.md": b"r", ".gitattributes": b"g", "pytorch_model.bin": b"p", "original/consolidated.00.pth": b"o",
    "original/tokenizer.model": b"o", "consolidated.safetensors": b"c", "onnx/model.onnx": b"o", "flax_model.msgpack": b"f",
    "modeling_evil.py": b"raise SystemExit", "model.gguf": b"g", "sub/model.safetensors": b"s", "adapter_model.safetensors": b"a",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub(REPO, {**FILES, **UNWANTED})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.close()


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_downloads_what_is_read_and_nothing_else(hub):
    folder = resolve_model(REPO)
    assert contents(folder) == FILES
    asked = {path.split("/resolve/")[1].split("/", 1)[1] for path in hub.paths("/resolve/")}
    assert asked == set(FILES)


def test_every_file_is_asked_for_by_one_commit(hub):
    resolve_model(REPO, revision="main")
    first, *others = hub.paths()
    assert first.startswith(f"/api/models/{REPO}/revision/main")
    assert others and all(SHA in path for path in others)
    assert not [path for path in others if "/main" in path]


def test_the_second_time_only_the_commit_is_asked_for(hub):
    resolve_model(REPO)
    hub.requests.clear()
    resolve_model(REPO)
    assert len(hub.requests) == 1
    hub.requests.clear()
    assert resolve_model(REPO, revision=SHA).name == SHA
    assert hub.requests == []


def test_a_new_commit_is_fetched(hub):
    old = resolve_model(REPO)
    hub.sha, hub.files = NEWER, {**FILES, "tokenizer.json": b"new"}
    new = resolve_model(REPO)
    assert new.name == NEWER and contents(new)["tokenizer.json"] == b"new"
    assert contents(old) == FILES and resolve_model(REPO, revision=SHA) == old


def test_a_complete_cached_model_needs_no_hub(hub, monkeypatch, caplog):
    folder = resolve_model(REPO)
    hub.close()
    assert resolve_model(REPO) == folder
    assert "using the downloaded commit" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model(REPO) == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert resolve_model(REPO) == folder


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_complete_cached_model_survives_a_hub_that_refuses(hub, status):
    folder = resolve_model(REPO)
    hub.status = status
    assert resolve_model(REPO) == folder


def test_offline_asks_nobody(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        resolve_model(REPO)
    assert hub.requests == []


def test_an_incomplete_snapshot_is_named(hub, monkeypatch):
    folder = resolve_model(REPO)
    (folder / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"all but model-00002-of-00002\.safetensors is in"):
        resolve_model(REPO)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.requests.clear()
    assert contents(resolve_model(REPO)) == FILES


def test_a_broken_download_goes_on_where_it_broke(hub):
    name, size = "model-00002-of-00002.safetensors", 12 * 2**20
    hub.files[name] = bytes(range(256)) * (size // 256)
    hub.cut = {name: 11 * 2**20}  # the client writes pieces of 10 MiB
    folder = resolve_model(REPO)
    assert (folder / name).read_bytes() == hub.files[name]
    ranges = [h.get("range") or h.get("Range") for m, p, h in hub.requests if m == "GET" and name in p]
    assert ranges[0] is None and int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 2**20


def test_half_a_download_is_not_taken_for_a_model(hub, monkeypatch):
    folder = resolve_model(REPO)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"model-00001-of-00002"):
        resolve_model(REPO)


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_the_token_goes_to_the_configured_host_alone(where, monkeypatch):
    storage = Storage(FILES)
    hub = FakeHub(REPO, FILES, token="hf_secret", storage=storage)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    if where == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = resolve_model(REPO, token="hf_secret" if where == "argument" else None)
    assert contents(folder) == FILES
    assert len(storage.requests) >= 2
    assert all("hf_secret" not in str(headers) for _, _, headers in storage.requests)
    hub.close(), storage.close()


@pytest.mark.parametrize(
    "status, words", [(401, "no such model, or it is private"), (404, "no such model"), (403, "HF_TOKEN"), (500, "500")]
)
def test_refusals_in_three_lines(hub, status, words):
    hub.status = status
    with pytest.raises(HubError, match=words) as caught:
        resolve_model(REPO)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert "nothing of it is in" in lines[1]
    assert all(way in lines[2] for way in ("HF_ENDPOINT", "VLLM_USE_MODELSCOPE", "FOLDER"))


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(HubError, match="no such revision"):
        resolve_model(REPO, revision="v9")


def test_no_network_is_said_soon(monkeypatch):
    start = time.monotonic()
    for address in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(HubError, match="cannot be reached") as caught:
            resolve_model("gpt2")
        assert len(str(caught.value).split("\n")) == 3
        assert "no folder 'gpt2'" in str(caught.value)
    assert time.monotonic() - start < 100


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(HubError, match="cannot be reached"):
            resolve_model(REPO)
        assert time.monotonic() - start < 100


def test_a_repository_without_a_model(hub):
    hub.files = {"README.md": b"", "model.safetensors": b""}
    with pytest.raises(HubError, match="no config.json"):
        resolve_model(REPO)
    hub.files = {"config.json": b"{}", "model.gguf": b"", "tokenizer.json": b"{}"}
    with pytest.raises(HubError, match="weights: none"):
        resolve_model(REPO)
    assert hub.paths("/resolve/") == []


def test_pickles_are_fetched_only_when_asked_for(hub):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"p", "tokenizer.json": b"{}", "training_args.bin": b"t"}
    with pytest.raises(HubError, match="--load-format pt"):
        resolve_model(REPO)
    assert set(contents(resolve_model(REPO, load_format="pt"))) == set(hub.files) - {"training_args.bin"}
    hub.files = {**FILES, **UNWANTED}


def test_dummy_weights_are_not_fetched(hub, monkeypatch):
    folder = resolve_model(REPO, load_format="dummy")
    assert not list(folder.glob("*.safetensors")) and (folder / "config.json").is_file()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model(REPO, load_format="dummy") == folder
    with pytest.raises(HubError, match=r"all but model\.safetensors is in"):
        resolve_model(REPO)


def test_one_file_goes_before_variants(hub):
    hub.files = {"config.json": b"{}", "model.safetensors": b"m", "model.fp16.safetensors": b"v"}
    assert set(contents(resolve_model(REPO))) == {"config.json", "model.safetensors"}


def test_a_tokenizer_alone(hub):
    hub.files = {k: v for k, v in FILES.items() if k != "config.json"}
    assert set(contents(resolve_tokenizer(REPO))) == {
        n for n in FILES if "model" not in n and n != "config.json"
    }  # fmt: skip


def test_where_downloads_go(hub, tmp_path, monkeypatch):
    assert tmp_path / "hf" / "hub" in resolve_model(REPO).parents
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert tmp_path / "cache" in resolve_model(REPO).parents
    assert tmp_path / "named" in resolve_model(REPO, download_dir=str(tmp_path / "named")).parents


def test_other_tools_find_what_was_downloaded(hub):
    """The cache has the layout of huggingface_hub, so transformers offline finds the same files by the same name."""
    import huggingface_hub

    folder = resolve_model(REPO)
    found = huggingface_hub.try_to_load_from_cache(REPO, "config.json", cache_dir=folder.parents[2])
    assert found == str(folder / "config.json")


def test_an_endpoint_that_is_no_address(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(ConfigError, match="HF_ENDPOINT='hf-mirror.com'"):
        resolve_model(REPO)


def test_variables_set_after_the_client_was_imported_count():
    """As in a notebook where transformers came first."""
    program = (
        "import huggingface_hub, os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from fake_hub import FakeHub; import quire.hub\n"
        "hub = FakeHub('org/model', {'config.json': b'{}', 'model.safetensors': b'w'}, token='hf_t')\n"
        "os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=sys.argv[2], HF_TOKEN='hf_t')\n"
        "print(quire.hub.resolve_model('org/model'), huggingface_hub.constants.HF_HUB_DISABLE_XET)\n"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environ["PYTHONPATH"] = str(Path(quire.hub.__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(Path.cwd() / "late")],
        capture_output=True, text=True, env=environ, timeout=60,
    )  # fmt: skip
    assert str(Path.cwd() / "late" / "hub") in result.stdout and "True" in result.stdout, result.stderr


def test_mirrors_serve_the_files_themselves(monkeypatch):
    from quire.hub.huggingface import _prefer_plain_http

    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    _prefer_plain_http("https://huggingface.co")
    assert "HF_HUB_DISABLE_XET" not in os.environ
    _prefer_plain_http("https://hf-mirror.com")
    assert os.environ.pop("HF_HUB_DISABLE_XET") == "1"
