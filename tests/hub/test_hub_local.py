"""Bundled models, folders, and names that are neither."""

import os

import pytest

from quire.errors import HubError
from quire.hub import resolve_model


def test_the_bundled_model():
    folder = resolve_model("builtin:tiny")
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["builtin:", "builtin:nope", "builtin:../text", "builtin:tiny/..", "builtin:/etc"])
def test_other_bundled_names_are_refused(name):
    with pytest.raises(HubError, match="bundled models are builtin:tiny"):
        resolve_model(name)


def test_folders_in_every_spelling(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "./model",
        "./model/",
        "model",
        "model/",
        "~/model",
        "~/model/",
        str(folder),
        f"{folder}/",
        "../" + tmp_path.name + "/model",
    ):
        assert os.path.samefile(resolve_model(name), folder), name


def test_a_folder_goes_before_a_hub_name(tmp_path):
    (tmp_path / "Qwen" / "Qwen2").mkdir(parents=True)
    assert os.path.samefile(resolve_model("Qwen/Qwen2"), tmp_path / "Qwen" / "Qwen2")


@pytest.mark.parametrize(
    "name", ["./model", "/models/qwen", "~/qwen", "../x", "a/b/c", "models\\qwen", "", "x y", "org/"]
)
def test_paths_that_do_not_exist_are_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="there is no such folder"):
        resolve_model(name or "/nonexistent")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(HubError, match="is a file"):
        resolve_model("./x.bin")


def test_gguf_files_are_refused_by_name_whether_they_are_there_or_not(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    for name in ("./x.gguf", "/models/y.gguf"):
        with pytest.raises(HubError, match="GGUF files are not read yet"):
            resolve_model(name)
