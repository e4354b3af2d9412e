"""Checks one implementation of an operator against the operator's reference, in float64 on upcast inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quire.ops.contract import Inputs, OpSpec
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import _random_batch


def to_device(value: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """A copy of tensors, dataclasses of them and plain values on `device`; floating tensors become `dtype` when it is given."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value) if f.init]
        return replace(value, **{name: to_device(getattr(value, name), device, dtype) for name in names})
    if isinstance(value, list | tuple):
        return type(value)(to_device(v, device, dtype) for v in value)
    if isinstance(value, Tensor):
        target = dtype if dtype is not None and value.is_floating_point() else value.dtype
        # Strides are kept: views of a packed row are part of what is tested.
        copy = torch.empty_strided(value.shape, value.stride(), dtype=target, device=device)
        return copy.copy_(value)
    return value


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Tensors made with torch.empty hold NaN meanwhile, so that an element that nobody writes, or reads too early, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def outputs(spec: OpSpec, run: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """Everything `run` returns or writes in place."""
    result = run(**inputs)
    returned = [] if result is None else [result] if isinstance(result, Tensor) else list(result)
    return returned if returned else [inputs[name] for name in spec.mutates]


def relative_errors(spec: OpSpec, run: Callable[..., Any], inputs: Inputs, device: torch.device | str) -> list[float]:
    """‖out − ref‖ / ‖ref‖ of each output on fresh copies of `inputs`; infinite when an element is NaN or a shape differs."""
    wide = {name: to_device(value, "cpu", torch.float64) for name, value in inputs.items()}
    expected = outputs(spec, spec.reference, wide)
    copies = {name: to_device(value, device) for name, value in inputs.items()}
    with poisoned_memory():
        got = outputs(spec, run, copies)
    assert len(got) == len(expected)
    return [error(a, b) for a, b in zip(got, expected, strict=True)]


def error(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖; infinite when an element is NaN or infinite or the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.cpu().double(), expected.double()
    if not got.isfinite().all():
        return float("inf")
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def cases(spec: OpSpec, dtype: torch.dtype, seed: int) -> Iterator[Inputs]:
    """The operator's own random inputs, on the CPU."""
    yield from spec.make_inputs(torch.Generator().manual_seed(seed), dtype, torch.device("cpu"))


# (query length, sequence length) of each row, query heads, key heads, head size, block size, window: beyond the operator's own
# cases, these have several key splits, long contexts before a chunk, decoding rows among chunks, and head sizes that fill no tile.
AttentionCase = tuple[list[tuple[int, int]], int, int, int, int, int]
SMALL_ATTENTION: list[AttentionCase] = [
    ([(1, 700), (1, 256), (1, 257), (1, 1)], 14, 2, 64, 16, 0),
    ([(1, 700), (1, 90)], 6, 2, 128, 16, 300),
    ([(20, 300), (1, 520), (3, 3)], 7, 1, 80, 16, 0),
    ([(30, 200), (1, 400)], 4, 4, 64, 8, 50),
    ([(0, 0), (2, 2), (0, 0), (1, 600)], 4, 1, 32, 32, 0),
]


def attention_inputs(case: AttentionCase, dtype: torch.dtype, seed: int = 3) -> Inputs:
    """Random inputs of one case on the CPU; cache slots that belong to no sequence hold NaN, so that reading one shows."""
    lens, q_heads, kv_heads, head_size, block_size, window = case
    generator = torch.Generator().manual_seed(seed)
    fwd, num_blocks = _random_batch(generator, lens, block_size, torch.device("cpu"))
    kv = torch.full((2, num_blocks, block_size, kv_heads, head_size), float("nan"), dtype=dtype)
    for table, (_, seq_len) in zip(fwd.block_tables, lens, strict=True):
        positions = torch.arange(seq_len)
        shape = (2, seq_len, kv_heads, head_size)
        kv[:, table[positions // block_size].long(), positions % block_size] = torch.randn(
            shape, generator=generator
        ).to(dtype)
    q = torch.randn(sum(n for n, _ in lens), q_heads, head_size, generator=generator).to(dtype)
    return {"q": q, "kv": kv, "fwd": fwd, "scale": head_size**-0.5, "window": window}


def dense_attention(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0) -> Tensor:
    """paged_attention by one softmax over a dense matrix of scores a sequence, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    starts = fwd.query_start_loc.tolist()
    for row, seq_len in enumerate(fwd.seq_lens.tolist()):
        queries = q[starts[row] : starts[row + 1]].double()
        if seq_len == 0 or queries.shape[0] == 0:
            continue
        key = torch.arange(seq_len, device=q.device)
        place = fwd.block_tables[row, key // kv.shape[2]].long(), key % kv.shape[2]
        keys, values = (half[place].double().repeat_interleave(q.shape[1] // kv.shape[3], dim=1) for half in kv)
        position = torch.arange(seq_len - queries.shape[0], seq_len, device=q.device)[:, None]
        seen = key[None] <= position
        if window:
            seen &= key[None] > position - window
        scores = torch.einsum("qhd,khd->hqk", queries, keys).mul(scale).masked_fill(~seen, float("-inf"))
        out[starts[row] : starts[row + 1]] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return out


def only_row(fwd: ForwardBatch, row: int, num_queries: int, seq_len: int) -> ForwardBatch:
    """The batch of one sequence of `fwd`, for attention alone."""
    return replace(
        fwd,
        query_start_loc=torch.tensor([0, num_queries], dtype=torch.int32, device=fwd.device),
        seq_lens=fwd.seq_lens[row : row + 1],
        block_tables=fwd.block_tables[row : row + 1],
        max_query_len=num_queries,
        max_seq_len=seq_len,
    )
