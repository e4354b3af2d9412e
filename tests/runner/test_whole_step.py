"""The tensors that WholeStep gathers, put through decode_step's reference, give what the model itself gives."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quire.layers.build import Build
from quire.models import llama, mistral, opt, qwen2, qwen3
from quire.ops.decode_step import DecoderTensors, decode_step, hidden_states, random_step
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import Ops, resolve
from quire.runner.whole_step import WholeStep, decode_likeliest, decode_logits, gather

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 48, "inner_size": 80, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16,
    "max_position": 128, "tied": True,
}  # fmt: skip
CONFIGS: dict[str, tuple[Any, Any]] = {
    "llama": (llama, llama.Config(**SIZES)),
    "mistral": (mistral, mistral.Config(**SIZES, window=20)),
    "qwen2": (qwen2, qwen2.Config(**{**SIZES, "tied": False}, windows=(0, 9, 0))),
    "qwen3": (qwen3, qwen3.Config(**SIZES, windows=(0, 0, 0), eps=1e-5)),
}
LENS = [1, 40, 0, 17]


@pytest.fixture
def ops() -> Ops:
    return resolve(("torch",))[0]


def filled(module: Any, config: Any, ops: Ops) -> nn.Module:
    """A model with random weights on the CPU."""
    generator = torch.Generator().manual_seed(1)
    build = replace(Build.plain(ops, torch.float32, 128), device=torch.device("cpu"))
    model: nn.Module = module.Model(config, build).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    for part in model.modules():
        if hasattr(part, "fill_buffers"):
            part.fill_buffers(torch.device("cpu"))
    return model


def step_of(net: DecoderTensors) -> ForwardBatch:
    return random_step(torch.Generator().manual_seed(2), net, LENS, 8)


def of_layers(model: Any, fwd: ForwardBatch) -> Tensor:
    logits: Tensor = model.compute_logits(model(fwd.input_ids, fwd))
    return logits


@pytest.mark.parametrize("family", CONFIGS)
def test_gathered_tensors_give_what_the_model_gives(family: str, ops: Ops) -> None:
    model = filled(*CONFIGS[family], ops)
    net = gather(model)
    assert net is not None and len(net.layers) == 3
    fwd, again = step_of(net), step_of(net)
    expected, found = of_layers(model, fwd), decode_step(net, again)
    assert found is not None
    live = torch.tensor(LENS) > 0
    torch.testing.assert_close(found[live], expected[live])
    for ours, theirs in zip(again.kv_caches, fwd.kv_caches, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_other_decoders_run_layer_by_layer(ops: Ops) -> None:
    sizes = {**SIZES, "gated": False}
    with torch.device("meta"):
        assert gather(opt.Model(opt.Config(**sizes), Build.plain(ops, torch.float32, 128))) is None
        biased = llama.Model(llama.Config(**SIZES, mlp_bias=True), Build.plain(ops, torch.float32, 128))
    assert gather(biased) is None


def test_the_operator_is_asked_for_decoding_steps_only(ops: Ops) -> None:
    model = filled(*CONFIGS["qwen2"], ops)
    net = gather(model)
    assert net is not None
    fwd = step_of(net)
    assert WholeStep(model, ops).logits(fwd) is None  # the reference is no faster way
    answer = torch.zeros(1)
    whole = WholeStep(model, replace(ops, decode_step=lambda net, fwd: answer))
    assert whole.logits(fwd) is answer
    assert whole.logits(replace(fwd, max_query_len=3)) is None
    assert WholeStep(model, replace(ops, decode_step=lambda net, fwd: None)).logits(fwd) is None


def test_layers_in_one_call_give_what_the_model_gives(ops: Ops) -> None:
    model: Any = filled(*CONFIGS["llama"], ops)
    net = gather(model)
    assert net is not None
    fwd = step_of(net)
    expected = of_layers(model, step_of(net))
    assert WholeStep(model, ops).hidden(fwd) is None  # the reference is no faster way
    calls = []
    whole = WholeStep(model, replace(ops, decode_layers=lambda net, fwd: calls.append(fwd) or hidden_states(net, fwd)))
    live = torch.tensor(LENS) > 0
    torch.testing.assert_close(decode_logits(model, whole, fwd)[live], expected[live])
    ids = decode_likeliest(model, whole, ops.greedy, step_of(net))
    assert len(calls) == 2 and ids[live].equal(expected[live].argmax(-1))
    assert whole.logits(fwd) is None and whole.hidden(replace(fwd, max_query_len=3)) is None
