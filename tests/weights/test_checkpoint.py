"""Which files are a model's weights, and what is said when they are not all there."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quire.errors import CheckpointError
from quire.weights.checkpoint import SAFETENSORS_INDEX, SafetensorsCheckpoint
from quire.weights.pickle_file import PickleCheckpoint

X, Y = torch.arange(6.0).view(2, 3), torch.arange(4.0)
SHARDS = {"model-00001-of-00002.safetensors": {"x": X}, "model-00002-of-00002.safetensors": {"y": Y}}


def write_shards(folder: Path, index: bool = True) -> None:
    for name, tensors in SHARDS.items():
        save_file(tensors, str(folder / name))
    if index:
        weight_map = {tensor: name for name, tensors in SHARDS.items() for tensor in tensors}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_found_with_and_without_an_index(tmp_path: Path, index: bool) -> None:
    write_shards(tmp_path, index)
    save_file({"other": X}, str(tmp_path / "consolidated.safetensors"))
    assert set(SafetensorsCheckpoint(tmp_path).tensors) == {"x", "y"}


def test_the_usual_name_wins_over_other_files(tmp_path: Path) -> None:
    save_file({"x": X}, str(tmp_path / "model.safetensors"))
    save_file({"lora": X}, str(tmp_path / "adapter_model.safetensors"))
    save_file({"z": X}, str(tmp_path / "extra.safetensors"))
    assert set(SafetensorsCheckpoint(tmp_path).tensors) == {"x"}


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    write_shards(tmp_path, index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: it is missing; download"):
        SafetensorsCheckpoint(tmp_path)


def test_an_unfinished_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.rename(f"{shard}.incomplete")
    with pytest.raises(CheckpointError, match=r"unfinished download model-00002-of-00002\.safetensors\.incomplete"):
        SafetensorsCheckpoint(tmp_path)


def test_only_unfinished_downloads(tmp_path: Path) -> None:
    (tmp_path / "0a1b.incomplete").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"unfinished downloads \(0a1b\.incomplete\)"):
        SafetensorsCheckpoint(tmp_path)


def test_a_tensor_that_the_index_promises_and_no_file_has(tmp_path: Path) -> None:
    write_shards(tmp_path)
    index = json.loads((tmp_path / SAFETENSORS_INDEX).read_text())
    index["weight_map"]["z"] = "model-00001-of-00002.safetensors"
    (tmp_path / SAFETENSORS_INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists tensors that its files lack: z"):
        SafetensorsCheckpoint(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"x": X, "y": Y}, str(tmp_path / "model-00002-of-00002.safetensors"))
    with pytest.raises(CheckpointError, match="'x' is also in"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "../x.safetensors"}}'],
)
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / SAFETENSORS_INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="index.json"):
        SafetensorsCheckpoint(tmp_path)


def test_an_empty_folder_and_an_ambiguous_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        SafetensorsCheckpoint(tmp_path)
    save_file({"x": X}, str(tmp_path / "one.safetensors"))
    assert set(SafetensorsCheckpoint(tmp_path).tensors) == {"x"}
    save_file({"x": X}, str(tmp_path / "two.safetensors"))
    with pytest.raises(CheckpointError, match="cannot tell which of one.safetensors, two.safetensors"):
        SafetensorsCheckpoint(tmp_path)


def test_pickles_are_refused_unless_asked_for(tmp_path: Path) -> None:
    torch.save({"x": X}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\), which can run code .* --load-format pt"):
        SafetensorsCheckpoint(tmp_path)
    assert set(PickleCheckpoint(tmp_path).tensors) == {"x"}


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_tensors_read_back(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": {"x": X.t(), "y": Y}}, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    torch.save({"step": 3}, tmp_path / "optimizer.pt")
    checkpoint = PickleCheckpoint(tmp_path)
    assert checkpoint.tensors["x"].shape == (3, 2)
    [(first, piece)] = checkpoint.read("x", torch.empty(0, dtype=torch.uint8))
    assert first == 0 and torch.equal(piece, X.t().reshape(-1))


def test_shards_of_pickles_need_all_files(tmp_path: Path) -> None:
    torch.save({"x": X}, tmp_path / "pytorch_model-00001-of-00002.bin")
    weight_map = {"x": "pytorch_model-00001-of-00002.bin", "y": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"missing pytorch_model-00002-of-00002\.bin"):
        PickleCheckpoint(tmp_path)


class Canary:
    """A pickle that writes a file when it is opened by an unpickler that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"x": Canary(canary)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        PickleCheckpoint(tmp_path)
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"x": Canary(canary)}))
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        PickleCheckpoint(tmp_path)
    assert not canary.exists()


def test_a_sparse_tensor_whose_indices_lie_outside_is_refused(tmp_path: Path) -> None:
    with torch.sparse.check_sparse_tensor_invariants(False):
        bad = torch.sparse_coo_tensor(torch.tensor([[999]]), torch.tensor([1.0]), (4,), check_invariants=False)
        torch.save({"x": bad}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        PickleCheckpoint(tmp_path)


@pytest.mark.parametrize("value", [[X], {"x": 3}, {"x": X.to_sparse()}, {3: X}], ids=["list", "int", "sparse", "name"])
def test_pickles_of_other_things_are_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        PickleCheckpoint(tmp_path)


def test_a_truncated_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"x": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            PickleCheckpoint(tmp_path)
