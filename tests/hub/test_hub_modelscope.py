"""Downloads from ModelScope through its own client, against a small server that speaks its protocol."""

import importlib.util
import time

import pytest
from fake_hub import FakeModelScope

from quire.errors import ConfigError, HubError
from quire.hub import resolve_model

REPO = "org/model"
FILES = {
    "config.json": b'{"a": 1}', "tokenizer.json": b"{}", "generation_config.json": b"{}", "model.safetensors": b"w" * 3000,
}  # fmt: skip
UNWANTED = {"README.md": b"r", "pytorch_model.bin": b"p", "original/model.safetensors": b"o", "run.py": b"x"}


@pytest.fixture(params=["VLLM_USE_MODELSCOPE", "QUIRE_USE_MODELSCOPE"])
def hub(request, monkeypatch):
    hub = FakeModelScope(REPO, {**FILES, **UNWANTED})
    monkeypatch.setenv(request.param, "True")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    yield hub
    hub.close()


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_downloads_what_is_read_and_nothing_else(hub, tmp_path):
    folder = resolve_model(REPO)
    assert contents(folder) == FILES
    assert tmp_path / "ms" in folder.parents
    assert tmp_path / "named" in resolve_model(REPO, download_dir=str(tmp_path / "named")).parents


def test_what_is_complete_is_used_without_the_hub(hub, monkeypatch, caplog):
    folder = resolve_model(REPO)
    hub.close()
    assert resolve_model(REPO) == folder and "using what was downloaded before" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model(REPO) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match="model.safetensors is missing"):
        resolve_model(REPO)


def test_no_network_is_said_soon(monkeypatch):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(HubError) as caught:
        resolve_model(REPO)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3 and "127.0.0.1:9" in lines[0] and "FOLDER" in lines[2]
    assert time.monotonic() - start < 100


def test_a_model_that_is_not_there(hub):
    with pytest.raises(HubError, match="other/model"):
        resolve_model("other/model")


def test_without_the_client_the_command_is_named(monkeypatch):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HubError, match="pip install modelscope-hub"):
        resolve_model(REPO)


def test_a_token_of_the_other_hub_is_refused(hub):
    with pytest.raises(ConfigError, match="MODELSCOPE_API_TOKEN"):
        resolve_model(REPO, token="hf_secret")
    assert hub.requests == []


def test_false_means_the_other_hub(monkeypatch):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "False")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="VLLM_USE_MODELSCOPE=True"):
        resolve_model(REPO)
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "perhaps")
    with pytest.raises(ConfigError, match="VLLM_USE_MODELSCOPE='perhaps'"):
        resolve_model(REPO)
