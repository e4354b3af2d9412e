"""MemoryPlan: where the device's memory goes, computed from config and free memory before anything is allocated."""

from dataclasses import dataclass

from torch import nn

from quire.config import DTYPE_BYTES, EngineConfig, MachineFacts
from quire.errors import MemoryPlanError
from quire.layers.decoder import DecoderConfig
from quire.runner.graphs import TOKEN_SIZES, graph_sizes

GIB = 2**30
MIB = 2**20
LOGIT_BYTES = 4  # logits are at most fp32
SAMPLER_WORKSPACE_BYTES = 256 * MIB  # the sampler works through its rows in slices that fit
DEVICE_RESERVE_BYTES = {"cuda": 384 * MIB}  # matrix library workspaces, kernel code, allocator rounding
CPU_KV_BYTES = 4 * GIB  # most that the KV cache takes on a CPU unless told otherwise
CPU_KV_SHARE = 0.5  # and most of what is free beside the weights


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose.

    available_bytes   what the engine may use in all
    weights_bytes     parameters and tables of the model
    workspace_bytes   most that a step needs beside them: inputs, activations, logits, sampling
    graph_bytes       held by captured decoding steps
    reserve_bytes     what the device's libraries take
    kv_bytes          num_blocks blocks, block 0 (which nobody gets) included
    """

    available_bytes: int
    weights_bytes: int
    workspace_bytes: int
    graph_bytes: int
    reserve_bytes: int
    block_bytes: int
    block_size: int
    num_blocks: int

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def left_bytes(self) -> int:
        """For the KV cache; negative when even the rest does not fit."""
        fixed = self.weights_bytes + self.workspace_bytes + self.graph_bytes + self.reserve_bytes
        return self.available_bytes - fixed

    @property
    def total_bytes(self) -> int:
        """All that the engine will hold at its peak."""
        return self.available_bytes - self.left_bytes + self.kv_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return (self.num_blocks - 1) * self.block_size

    def table(self, max_model_len: int) -> str:
        """For people: one line a purpose."""
        lines = [
            f"  may be used      {_gib(self.available_bytes)}",
            f"  weights          {_gib(self.weights_bytes)}",
            f"  a step           {_gib(self.workspace_bytes)}",
            f"  graphs           {_gib(self.graph_bytes)}",
            f"  reserve          {_gib(self.reserve_bytes)}",
            f"  KV cache         {_gib(self.kv_bytes)}  ({self.num_blocks} blocks of {self.block_size}: {self.kv_tokens:,} tokens)",
            f"  peak             {_gib(self.total_bytes)}",
            f"sequences of {max_model_len:,} tokens at once: {self.max_concurrency(max_model_len):.2f}",
        ]
        return "\n".join(lines)

    def max_concurrency(self, max_model_len: int) -> float:
        """How many sequences of the full length fit at once."""
        return (self.num_blocks - 1) / _ceil_div(max_model_len, self.block_size)


def plan_memory(
    config: EngineConfig, sizes: DecoderConfig, weights_bytes: int, facts: MachineFacts, graphs: bool = False
) -> MemoryPlan:
    """Counts the KV blocks that fit beside weights and workspace.

    weights_bytes  of the model as it will lie on the device
    graphs         decoding steps will be captured
    Raises MemoryPlanError, with the arithmetic and the flag that mends it, when not even one sequence of max_model_len fits.
    """
    item = DTYPE_BYTES[config.dtype]
    block_bytes = 2 * sizes.num_layers * config.block_size * sizes.num_kv_heads * sizes.head_dim * item
    plan = MemoryPlan(
        available_bytes=_available_bytes(config, facts),
        weights_bytes=weights_bytes,
        workspace_bytes=workspace_bytes(config, sizes),
        graph_bytes=graph_bytes(config, sizes) if graphs else 0,
        reserve_bytes=DEVICE_RESERVE_BYTES.get(config.device, 0),
        block_bytes=block_bytes,
        block_size=config.block_size,
        num_blocks=0,
    )
    asked, needed = _asked_blocks(config, block_bytes), _ceil_div(config.max_model_len, config.block_size) + 1
    num_blocks = _free_choice(config, plan.left_bytes, block_bytes, needed) if asked is None else asked
    if plan.left_bytes < max(num_blocks, needed) * block_bytes or num_blocks < needed:
        raise MemoryPlanError(_misfit(config, plan, facts, needed, asked))
    return MemoryPlan(**{**vars(plan), "num_blocks": num_blocks})


def model_bytes(model: nn.Module) -> int:
    """Parameters and buffers, those that are shared once; the model may be on meta."""
    tensors = [*model.parameters(), *{id(b): b for b in model.buffers()}.values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def workspace_bytes(config: EngineConfig, sizes: DecoderConfig) -> int:
    """Inputs, and the larger of a step's two peaks: its widest layer over all tokens, or logits and sampling of all sequences."""
    item, num_tokens = DTYPE_BYTES[config.dtype], config.max_num_batched_tokens
    hidden_bytes = num_tokens * sizes.hidden_size * (item + 1)  # and one byte for "is it finite"
    sampling = config.max_num_seqs * sizes.vocab_size * LOGIT_BYTES + SAMPLER_WORKSPACE_BYTES
    head = max(_logits_bytes(config, sizes, config.max_num_seqs), sampling)
    return (
        _input_bytes(config)
        + _count_bytes(config, sizes)
        + max(num_tokens * _layer_width(sizes) * item, hidden_bytes + head)
    )


def graph_bytes(config: EngineConfig, sizes: DecoderConfig) -> int:
    """What captured steps hold: the memory of the largest one, its outputs and its block tables."""
    item, rows = DTYPE_BYTES[config.dtype], config.max_num_seqs
    tokens = max(graph_sizes(rows)[-1], min(TOKEN_SIZES[-1], config.max_num_batched_tokens))
    outputs = max(TOKEN_SIZES[-1], rows) * sizes.hidden_size * item + rows * sizes.vocab_size * item
    tables = rows * _ceil_div(config.max_model_len, config.block_size) * 4
    return tokens * _layer_width(sizes) * item + _logits_bytes(config, sizes, rows) + outputs + tables


def _layer_width(sizes: DecoderConfig) -> int:
    """Most values a token that one layer holds at once, its own input, the residual and the normed input among them."""
    heads, kv_heads = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    feed_forward = 3 * sizes.hidden_size + (3 if sizes.gated else 2) * sizes.inner_size
    attention = 4 * sizes.hidden_size + 2 * heads + 2 * kv_heads  # packed qkv, the attention's output, its projection
    return max(feed_forward, attention)


def _logits_bytes(config: EngineConfig, sizes: DecoderConfig, rows: int) -> int:
    """Logits as the head gives them, and in fp32."""
    item = DTYPE_BYTES[config.dtype]
    return rows * sizes.vocab_size * (LOGIT_BYTES if item == LOGIT_BYTES else LOGIT_BYTES + item)


def _input_bytes(config: EngineConfig) -> int:
    """quire.runner.prepare.InputBuffers on the device, and the block tables of its decode_loop where there is one."""
    longs = 3 * config.max_num_batched_tokens + 2 * config.max_num_seqs
    blocks = _ceil_div(config.max_model_len, config.block_size)
    num_tables = 1 if config.device == "cpu" else 2
    return 8 * longs + 4 * (config.max_num_seqs * (num_tables * blocks + 2) + 1)


def _count_bytes(config: EngineConfig, sizes: DecoderConfig) -> int:
    """What quire.runner.device_sampler keeps of each sequence's tokens: two bytes and a bit for each of the vocabulary."""
    return 0 if config.device == "cpu" else (config.max_num_seqs + 1) * sizes.vocab_size * 17 // 8


def _available_bytes(config: EngineConfig, facts: MachineFacts) -> int:
    if config.device == "cpu":
        return facts.free_memory_bytes
    used = facts.total_memory_bytes - facts.free_memory_bytes  # by others, and by this process so far
    return int(facts.total_memory_bytes * config.gpu_memory_utilization) - used


def _free_choice(config: EngineConfig, left_bytes: int, block_bytes: int, needed_blocks: int) -> int:
    """Blocks when the user asked for no number: all that fit, on a CPU a modest part."""
    if config.device != "cpu":
        return max(left_bytes // block_bytes, 0)
    enough = config.max_num_seqs * (needed_blocks - 1) + 1
    modest = min(CPU_KV_BYTES, int(left_bytes * CPU_KV_SHARE)) // block_bytes
    return min(enough, max(modest, needed_blocks))


def _asked_blocks(config: EngineConfig, block_bytes: int) -> int | None:
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes // block_bytes
    return None


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _misfit(config: EngineConfig, plan: MemoryPlan, facts: MachineFacts, needed: int, asked: int | None) -> str:
    """The arithmetic, one line a term, and what to change."""
    fit = max(plan.left_bytes // plan.block_bytes, 0)
    used = facts.total_memory_bytes - facts.free_memory_bytes
    share = "" if config.device == "cpu" else f"{config.gpu_memory_utilization:g} of "
    sequence = (
        f"{needed} blocks of {config.block_size} tokens for one sequence of {config.max_model_len}, one block spare"
    )
    lines = [
        f"the KV cache does not fit in the memory of {facts.name or facts.device}:",
        f"  may be used      {_gib(plan.available_bytes)}  ({share}{_gib(facts.total_memory_bytes)} less {_gib(used)} in use)",
        f"  - weights        {_gib(plan.weights_bytes)}",
        f"  - a step         {_gib(plan.workspace_bytes)}  ({config.max_num_batched_tokens} tokens, {config.max_num_seqs} sequences)",
        f"  - graphs         {_gib(plan.graph_bytes)}",
        f"  - reserve        {_gib(plan.reserve_bytes)}",
        f"  = for KV cache   {_gib(plan.left_bytes)}  ({fit} blocks)",
        f"  it needs         {_gib(needed * plan.block_bytes)}  ({sequence})",
    ]
    if asked is not None:
        lines.append(f"  asked for        {_gib(asked * plan.block_bytes)}  ({asked} blocks)")
    return "\n".join([*lines, f"To mend it: {_remedy(config, fit, needed, asked)}."])


def _remedy(config: EngineConfig, fit: int, needed: int, asked: int | None) -> str:
    ways = []
    if asked is not None:
        flag = "--num-gpu-blocks-override" if config.num_gpu_blocks_override is not None else "--kv-cache-memory-bytes"
        ways.append(f"change {flag} ({needed} blocks are needed, {fit} fit)")
    usable = fit if asked is None else min(fit, asked)
    if 1 < usable < needed:
        ways.append(f"--max-model-len {(usable - 1) * config.block_size} or less")
    if config.device != "cpu" and config.gpu_memory_utilization < 0.95:
        ways.append(f"a larger --gpu-memory-utilization than {config.gpu_memory_utilization:g}")
    if fit < needed:
        ways.append(f"a smaller --max-num-seqs than {config.max_num_seqs}")
        ways.append(f"a smaller --max-num-batched-tokens than {config.max_num_batched_tokens}")
    return ", or ".join([*ways, "a smaller model"] if fit < 2 else ways)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
