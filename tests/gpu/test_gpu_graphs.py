"""Decode graphs on the GPU: a captured step gives what the same step gives without a graph, at any length and batch size."""

import op_parity
import pytest
import torch

from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import resolve
from quire.platform.cuda import CudaPlatform
from quire.runner.graphs import GraphStore, StepGraphs, padded_size

HEADS, KV_HEADS, HEAD_SIZE, BLOCK_SIZE, VOCAB, MAX_LEN = 14, 2, 64, 16, 512, 4096


class TinyLayer:
    """Embedding, norm, rotary, KV write, attention, head: each operator that reads a step's tensors, once."""

    def __init__(self) -> None:
        self.ops, _ = resolve(("triton", "torch"))
        generator = torch.Generator().manual_seed(5)

        def weights(*shape: int) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).to("cuda", torch.bfloat16)

        hidden = HEADS * HEAD_SIZE
        self.embedding, self.norm, self.head = weights(VOCAB, hidden) * 20, weights(hidden) * 20, weights(VOCAB, hidden)
        self.qkv = weights((HEADS + 2 * KV_HEADS) * HEAD_SIZE, hidden)
        angles = torch.rand(MAX_LEN, HEAD_SIZE // 2, generator=generator)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).cuda()

    def forward(self, fwd: ForwardBatch) -> tuple[torch.Tensor]:
        x = self.ops.rms_norm(self.ops.embedding(fwd.input_ids, self.embedding), self.norm, 1e-6)
        qkv = self.ops.linear(x, self.qkv).view(-1, HEADS + 2 * KV_HEADS, HEAD_SIZE)
        q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        kv = fwd.kv_caches[0]
        q, _ = self.ops.rotary_write_kv(q, k, v, fwd.positions, self.cos_sin, kv, fwd.slot_mapping)
        out = self.ops.paged_attention(q, fwd.kv_caches[0], fwd, HEAD_SIZE**-0.5)
        return (self.ops.linear(out.flatten(1)[fwd.logits_indices], self.head).float(),)


def decode_step(lens: list[int], pad_to: int, seed: int) -> ForwardBatch:
    """A decoding step of sequences of these lengths, padded with rows of length 0."""
    rows = [(1, n) for n in lens] + [(1, 1)] * (pad_to - len(lens))
    case = (rows, HEADS, KV_HEADS, HEAD_SIZE, BLOCK_SIZE, 0)
    inputs = op_parity.attention_inputs(case, torch.bfloat16, seed)
    fwd: ForwardBatch = op_parity.to_device(inputs["fwd"], "cuda")
    index = fwd.positions // BLOCK_SIZE
    fwd.slot_mapping = (
        fwd.block_tables.gather(1, index[:, None]).squeeze(1).long() * BLOCK_SIZE + fwd.positions % BLOCK_SIZE
    )
    fwd.slot_mapping[len(lens) :] = -1
    fwd.seq_lens[len(lens) :] = 0
    fwd.input_ids = torch.randint(0, VOCAB, (pad_to,), generator=torch.Generator().manual_seed(seed)).cuda()
    fwd.logits_indices = torch.arange(pad_to, device="cuda")
    return fwd


@pytest.fixture
def layer() -> TinyLayer:
    return TinyLayer()


def test_replay_equals_eager(layer):
    kv = torch.randn(2, 3000, BLOCK_SIZE, KV_HEADS, HEAD_SIZE, device="cuda").bfloat16()
    eager_kv, graph_kv = torch.empty_like(kv), torch.empty_like(kv)
    graphs = StepGraphs(
        CudaPlatform(),
        lambda fwd: layer.forward(fwd) * 2,
        GraphStore(CudaPlatform()),
        64,
        MAX_LEN,
        MAX_LEN // BLOCK_SIZE,
    )
    steps = [[5], [4000], [1, 300, 17], [900, 2, 3, 4], [257] * 40, [33] * 64, [7], list(range(1, 50)), [2, 2, 2]]
    for seed, lens in enumerate(steps):
        fwd = decode_step(lens, padded_size(len(lens), 64), seed)
        fwd.kv_caches = [eager_kv.copy_(kv)]
        (expected,) = layer.forward(fwd)
        fwd.kv_caches = [graph_kv.copy_(kv)]
        got = graphs.run(fwd)
        assert got is not None and torch.equal(got[0][: len(lens)], expected[: len(lens)]), lens
        assert torch.equal(graph_kv, eager_kv), "padding rows wrote into the cache"
    assert graphs.captured_sizes == [(n, n) for n in (1, 4, 64)]
    graphs.close()


def test_memory_comes_back(layer):
    platform = CudaPlatform()
    step = decode_step([5, 6], 2, 0)
    step.kv_caches = [torch.zeros(2, 10, BLOCK_SIZE, KV_HEADS, HEAD_SIZE, device="cuda", dtype=torch.bfloat16)]
    layer.forward(step)
    platform.empty_cache()
    before = torch.cuda.memory_reserved()
    graphs = StepGraphs(
        platform, lambda fwd: layer.forward(fwd) * 2, GraphStore(platform), 512, MAX_LEN, MAX_LEN // BLOCK_SIZE
    )
    for size in (1, 2, 256, 512):
        fwd = decode_step([9] * size, size, 1)
        fwd.kv_caches = [torch.zeros(2, 600, BLOCK_SIZE, KV_HEADS, HEAD_SIZE, device="cuda", dtype=torch.bfloat16)]
        assert graphs.run(fwd) is not None
    graphs.close()
    del graphs, fwd
    platform.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**22
