"""From checkpoint to parameters: values, dtypes, fusing; and every misfit told before anything is allocated."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire.errors import CheckpointError
from quire.hf_config import HfConfig
from quire.layers.build import Build
from quire.models import opt, qwen2
from quire.ops.registry import resolve
from quire.weights import loader
from quire.weights.loader import load_weights, plan_weights

CPU = torch.device("cpu")


def meta_model(folder: Path, dtype: torch.dtype = torch.float32) -> qwen2.Model:
    config = qwen2.Config.from_hf(HfConfig.from_dir(folder))
    return qwen2.Model(config, Build.plain(resolve(("torch",))[0], dtype, max_model_len=32))


def load(folder: Path, dtype: torch.dtype = torch.float32, load_format: str = "auto", seed: int = 0) -> qwen2.Model:
    model = meta_model(folder, dtype)
    tied = HfConfig.from_dir(folder).bool("tie_word_embeddings")
    load_weights(model, plan_weights(model, qwen2.WEIGHTS, folder, load_format, tied), CPU, seed)
    return model


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(folder / "model.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_qwen2(tmp_path)


@pytest.fixture
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece_bytes", [64, 1000, 64 * 2**20])
def test_values_are_cast_and_fused(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    piece_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "PIECE_BYTES", piece_bytes)
    layer = load(folder, dtype).model.layers[1]
    assert isinstance(layer, qwen2.Layer)
    prefix = "model.layers.1."
    for kind in ("weight", "bias"):
        parts = [tensors[f"{prefix}self_attn.{name}_proj.{kind}"] for name in "qkv"]
        assert torch.equal(getattr(layer.self_attn.qkv_proj, kind), torch.cat(parts).to(dtype))
    gate_up = [tensors[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat(gate_up).to(dtype))
    assert torch.equal(layer.mlp.down_proj.weight, tensors[f"{prefix}mlp.down_proj.weight"].to(dtype))


def test_a_pickle_loads_the_same(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    expected = load(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    found = load(folder, load_format="pt").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_harmless_leftovers_are_ignored(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    rewrite(folder, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(folder)


def test_the_head_of_a_tied_model_is_ignored(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in dict(load(folder).named_parameters())


def no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("memory was allocated before the checkpoint was checked")

    monkeypatch.setattr(loader, "_allocate", refuse)


def test_missing_tensors_are_named(
    folder: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_allocation(monkeypatch)
    del tensors["model.layers.1.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError, match=r"2 tensors are missing .*layers\.1\.self_attn\.k_proj\.weight"):
        load(folder)


def test_unknown_tensors_are_named(
    folder: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_allocation(monkeypatch)
    rewrite(folder, {**tensors, "model.layers.0.self_attn.q_norm.weight": torch.ones(16)})
    with pytest.raises(CheckpointError, match=r"1 tensors have no place .*q_norm\.weight"):
        load(folder)


def test_tensors_of_another_shape_are_named_with_both_shapes(
    folder: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_allocation(monkeypatch)
    rewrite(folder, {**tensors, "model.embed_tokens.weight": torch.zeros(VOCAB_SIZE + 3, 64)})
    message = rf"embed_tokens\.weight is \[{VOCAB_SIZE + 3}, 64\] in model\.safetensors, config\.json makes it \[{VOCAB_SIZE}, 64\]"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_integers_are_no_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    rewrite(folder, {**tensors, "model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"norm\.weight has the dtype torch\.int8"):
        load(folder)


def test_dummy_weights_need_no_file_and_depend_on_the_seed_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    one, same, other = (load(folder, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
        if "norm" in name:
            assert torch.equal(a, torch.ones_like(a))
        else:
            assert not torch.equal(a, c) and 0.01 < float(a.std()) < 0.04
    assert one.model.rope.cos_sin.isfinite().all()


def test_old_opt_checkpoints_lack_a_prefix(tmp_path: Path) -> None:
    values = {
        "vocab_size": 50, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    build = Build.plain(resolve(("torch",))[0], torch.float32, max_model_len=32)
    model = opt.Model(opt.Config.from_hf(HfConfig(values)), build)
    sources = [s for name, _ in model.named_parameters() for s in opt.WEIGHTS.sources(name)]
    shapes = {a.source: a.shape for a in loader._assignments(model, opt.WEIGHTS)}
    save_file({s.removeprefix("model."): torch.rand(shapes[s]) for s in sources}, str(tmp_path / "model.safetensors"))
    plan = plan_weights(model, opt.WEIGHTS, tmp_path, "auto", tied=True)
    load_weights(model, plan, CPU)
    expected = load_file(tmp_path / "model.safetensors")["decoder.layers.0.fc1.weight"]
    assert torch.equal(model.state_dict()["model.decoder.layers.0.fc1.weight"], expected)
