"""The table of environment variables: typed, read when asked for, bad values named."""

import pytest

from quire import env
from quire.errors import ConfigError


@pytest.mark.parametrize("value", ["1", "true", "True", "YES", "on", " 1 "])
def test_true(value, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert env.flag("HF_HUB_OFFLINE") is True


@pytest.mark.parametrize("value", ["0", "false", "FALSE", "no", "off", "", None])
def test_false(value, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert env.flag("HF_HUB_OFFLINE") is False


@pytest.mark.parametrize("value", ["2", "maybe", "truee"])
def test_neither(value, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(ConfigError, match=f"HF_HUB_OFFLINE='{value}'"):
        env.flag("HF_HUB_OFFLINE")


def test_addresses(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com/")
    assert env.url("HF_ENDPOINT") == "https://hf-mirror.com"
    for value in ("hf-mirror.com", "ftp://x", "https://"):
        monkeypatch.setenv("HF_ENDPOINT", value)
        with pytest.raises(ConfigError, match="HF_ENDPOINT"):
            env.url("HF_ENDPOINT")
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert env.url("HF_ENDPOINT") is None


def test_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HF_HOME", "~/$X/hf")
    monkeypatch.setenv("X", "y")
    assert env.path("HF_HOME") == "/home/me/y/hf"


def test_keys(monkeypatch):
    monkeypatch.delenv("QUIRE_API_KEY", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "a")
    assert env.api_key() == "a"
    monkeypatch.setenv("QUIRE_API_KEY", "b")
    assert env.api_key() == "b"


def test_secrets_are_not_shown():
    lines = env.describe(
        {"HF_TOKEN": "hf_secret", "HF_HOME": "/x", "VLLM_API_KEY": "k", "PATH": "/bin", "HF_ENDPOINT": ""}
    )
    assert sorted(lines) == ["HF_HOME=/x", "HF_TOKEN=***", "VLLM_API_KEY=***"]


def test_only_variables_of_the_table_are_read():
    with pytest.raises(KeyError):
        env.flag("SOMETHING_ELSE")
    with pytest.raises(TypeError):
        env.flag("HF_TOKEN")
