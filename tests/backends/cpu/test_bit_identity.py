"""A row's result is the same bits whatever it is computed beside: rows, chunk, batch, block size, threads."""

import pytest
import torch
from torch import Tensor

from quire.backends.cpu import _native, add_rms_norm, layer_norm, linear, paged_attention, rms_norm, silu_mul
from quire.ops.forward_batch import ForwardBatch

DTYPES = (torch.float32, torch.bfloat16)
ROWS = (1, 2, 3, 5, 7, 8, 9, 33, 64, 129, 200)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, two_threads: None) -> int:
    _native.set_num_threads(request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "n"), [(100, 97), (896, 150), (4864, 50), (5001, 13)])
def test_linear_rows(k: int, n: int, dtype: torch.dtype, isa: str, threads: int) -> None:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(max(ROWS), k, generator=generator).to(dtype)
    weight, bias = torch.randn(n, k, generator=generator).to(dtype), torch.randn(n, generator=generator).to(dtype)
    _native.set_num_threads(1)
    expected = torch.cat([linear.run(row, weight, bias) for row in x[:: max(ROWS) // 10].split(1)])
    _native.set_num_threads(threads)
    whole = linear.run(x, weight, bias)
    assert torch.equal(whole[:: max(ROWS) // 10], expected)
    for rows in ROWS:
        assert torch.equal(linear.run(x[:rows], weight, bias), whole[:rows])
        assert torch.equal(linear.run(x[-rows:], weight, bias), whole[-rows:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_and_activation_rows(dtype: torch.dtype, isa: str, threads: int) -> None:
    generator = torch.Generator().manual_seed(8)
    x, residual = torch.randn(2, 300, 900, generator=generator).to(dtype)
    weight, bias = torch.randn(2, 900, generator=generator).to(dtype)
    whole = (
        rms_norm.run(x, weight, 1e-6),
        add_rms_norm.run(x, residual.clone(), weight, 1e-6)[0],
        layer_norm.run(x, weight, bias, 1e-6),
        silu_mul.run(x),
    )
    for rows in (slice(0, 1), slice(7, 8), slice(5, 77), slice(100, 300)):
        part = (
            rms_norm.run(x[rows], weight, 1e-6),
            add_rms_norm.run(x[rows], residual[rows].clone(), weight, 1e-6)[0],
            layer_norm.run(x[rows], weight, bias, 1e-6),
            silu_mul.run(x[rows]),
        )
        assert all(torch.equal(mine, all_rows[rows]) for mine, all_rows in zip(part, whole, strict=True))


class Sequences:
    """Keys, values and queries of some sequences, and their attention computed in chosen pieces."""

    def __init__(self, lens: list[int], q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(sum(lens))
        self.lens, self.kv_heads, self.head_dim, self.dtype = lens, kv_heads, head_dim, dtype
        self.q = [torch.randn(n, q_heads, head_dim, generator=generator).to(dtype) for n in lens]
        self.kv = [torch.randn(2, n, kv_heads, head_dim, generator=generator).to(dtype) for n in lens]

    def attend(self, pieces: list[tuple[int, int, int]], block_size: int, window: int) -> list[Tensor]:
        """Attention of one batch; a piece is (sequence, first token, past the last). Blocks lie in an order of their own."""
        needed = [-(-end // block_size) for _, _, end in pieces]
        ids = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(block_size)) + 1
        cache = torch.full(
            (2, sum(needed) + 1, block_size, self.kv_heads, self.head_dim), float("nan"), dtype=self.dtype
        )
        tables = torch.zeros(len(pieces), max(needed), dtype=torch.int32)
        for row, ((sequence, _, end), count) in enumerate(zip(pieces, needed, strict=True)):
            tables[row, :count] = ids[sum(needed[:row]) :][:count]
            slots = (tables[row, :count].long().unsqueeze(1) * block_size + torch.arange(block_size)).flatten()[:end]
            cache.flatten(1, 2)[:, slots] = self.kv[sequence][:, :end]
        q = torch.cat([self.q[s][start:end] for s, start, end in pieces])
        sizes = [end - start for _, start, end in pieces]
        empty = torch.zeros(0, dtype=torch.int64)
        fwd = ForwardBatch(
            input_ids=empty,
            positions=empty,
            slot_mapping=empty,
            query_start_loc=torch.tensor([0, *sizes]).cumsum(0).int(),
            seq_lens=torch.tensor([end for _, _, end in pieces], dtype=torch.int32),
            block_tables=tables,
            logits_indices=empty,
            max_query_len=max(sizes),
            max_seq_len=max(end for _, _, end in pieces),
            kv_caches=[],
        )
        return list(paged_attention.run(q, cache, fwd, self.head_dim**-0.5, window).split(sizes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [(7, 1, 64), (4, 4, 40), (6, 2, 128)])
def test_attention_chunks_batches_blocks(
    q_heads: int, kv_heads: int, head_dim: int, window: int, dtype: torch.dtype, isa: str
) -> None:
    sequences = Sequences([700, 65, 130], q_heads, kv_heads, head_dim, dtype)
    whole = [sequences.attend([(s, 0, n)], 16, window)[0] for s, n in enumerate(sequences.lens)]
    for block_size in (8, 16, 32):
        for chunk in (64, 51):
            starts = range(0, 700, chunk)
            pieces = [sequences.attend([(0, at, min(700, at + chunk))], block_size, window)[0] for at in starts]
            assert torch.equal(torch.cat(pieces), whole[0])
        decoded = [0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 511, 512, 513, 576, 640, 699]
        for at in decoded:  # a decode among a prefill and another decode
            batch = sequences.attend([(1, 0, 65), (0, at, at + 1), (2, 129, 130)], block_size, window)
            assert torch.equal(batch[1][0], whole[0][at])
            assert torch.equal(batch[0], whole[1]) and torch.equal(batch[2][0], whole[2][129])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_threads(dtype: torch.dtype, two_threads: None) -> None:
    """Few long sequences are split over threads by their keys; the bits stay those of one thread."""
    sequences = Sequences([2300, 600], 4, 1, 64, dtype)
    batches = (
        [(0, 2299, 2300)],
        [(0, 512, 513), (0, 1024, 1025)],
        [(0, 2290, 2300), (1, 599, 600)],
        [(1, 400, 600), (0, 1100, 1101)],
        [(0, 2000, 2300)],
    )
    for window in (0, 700):
        for pieces in batches:
            _native.set_num_threads(1)
            expected = torch.cat(sequences.attend(pieces, 16, window))
            for count in (2, 3):
                _native.set_num_threads(count)
                assert torch.equal(torch.cat(sequences.attend(pieces, 16, window)), expected)
