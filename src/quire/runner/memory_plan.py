"""MemoryPlan: where the device's memory goes, computed from config and free memory before anything is allocated."""

from dataclasses import dataclass

from quire.config import DTYPE_BYTES, EngineConfig, MachineFacts
from quire.errors import MemoryPlanError
from quire.layers.decoder import DecoderConfig
from quire.runner.graphs import graph_sizes

GIB = 2**30
MIB = 2**20
LOGITS_BYTES = 4  # logits are fp32
SAMPLER_WORKSPACE_BYTES = 256 * MIB  # the sampler works through its rows in slices that fit
DEVICE_RESERVE_BYTES = {"cuda": 384 * MIB}  # matrix library workspaces, kernel code, allocator rounding
CPU_KV_BYTES = 4 * GIB  # most that the KV cache takes on a CPU unless told otherwise
CPU_KV_SHARE = 0.5  # and most of what is free beside the weights


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose.

    weights_bytes     parameters and tables of the model
    workspace_bytes   most that a step needs beside them: activations, logits, sampling
    reserve_bytes     what the device's libraries take
    kv_bytes          num_blocks blocks, block 0 (which nobody gets) included
    available_bytes   what the engine may use in all
    """

    weights_bytes: int
    workspace_bytes: int
    reserve_bytes: int
    available_bytes: int
    block_bytes: int
    block_size: int
    num_blocks: int

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        """All that the engine will hold at its peak."""
        return self.weights_bytes + self.workspace_bytes + self.reserve_bytes + self.kv_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return (self.num_blocks - 1) * self.block_size

    def max_concurrency(self, max_model_len: int) -> float:
        """How many sequences of the full length fit at once."""
        return (self.num_blocks - 1) / _blocks(max_model_len, self.block_size)


def plan_memory(config: EngineConfig, sizes: DecoderConfig, weights_bytes: int, facts: MachineFacts) -> MemoryPlan:
    """Counts the KV blocks that fit beside weights and workspace.

    weights_bytes  of the model as it will lie on the device
    Raises MemoryPlanError, with the arithmetic and the flag that mends it, when not even one sequence of max_model_len fits.
    """
    block_bytes = (
        2 * sizes.num_layers * config.block_size * sizes.num_kv_heads * sizes.head_dim * DTYPE_BYTES[config.dtype]
    )
    workspace, reserve = workspace_bytes(config, sizes), DEVICE_RESERVE_BYTES.get(config.device, 0)
    available = _available_bytes(config, facts)
    left = available - weights_bytes - workspace - reserve
    needed_blocks = _blocks(config.max_model_len, config.block_size) + 1
    num_blocks = _num_blocks(config, left, block_bytes, needed_blocks)
    plan = MemoryPlan(weights_bytes, workspace, reserve, available, block_bytes, config.block_size, num_blocks)
    if left < plan.kv_bytes or left <= 0 or num_blocks < needed_blocks:
        raise MemoryPlanError(_misfit(config, plan, facts, max(needed_blocks, _asked_blocks(config, block_bytes) or 0)))
    return plan


def workspace_bytes(config: EngineConfig, sizes: DecoderConfig) -> int:
    """The larger of a step's two peaks: the widest layer over all its tokens, or logits and sampling of all its sequences; and what
    decode graphs hold beside that."""
    item = DTYPE_BYTES[config.dtype]
    hidden, heads, kv_heads = sizes.hidden_size, sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    feed_forward = 2 * hidden + (3 if sizes.gated else 2) * sizes.inner_size
    attention = 2 * hidden + 3 * heads + 3 * kv_heads  # x, residual; packed qkv, rotated q and k, output
    layer_peak = config.max_num_batched_tokens * max(feed_forward, attention) * item
    per_logit = LOGITS_BYTES if item == LOGITS_BYTES else LOGITS_BYTES + item  # the head's own output, then fp32
    logits = config.max_num_seqs * sizes.vocab_size * per_logit
    sampling = config.max_num_seqs * sizes.vocab_size * LOGITS_BYTES + SAMPLER_WORKSPACE_BYTES
    step = max(layer_peak, config.max_num_batched_tokens * hidden * item + max(logits, sampling))
    return step + _graph_bytes(config, hidden * item + sizes.vocab_size * LOGITS_BYTES, sizes.vocab_size * per_logit)


def _graph_bytes(config: EngineConfig, output_bytes: int, logits_bytes: int) -> int:
    """What decode graphs keep for themselves: outputs of the largest, and its temporaries, of which the logits are the most."""
    if config.device == "cpu" or config.enforce_eager:
        return 0
    return graph_sizes(config.max_num_seqs)[-1] * (output_bytes + logits_bytes)


def _available_bytes(config: EngineConfig, facts: MachineFacts) -> int:
    if config.device == "cpu":
        return facts.free_memory_bytes
    used = facts.total_memory_bytes - facts.free_memory_bytes  # by others, and by this process so far
    return int(facts.total_memory_bytes * config.gpu_memory_utilization) - used


def _num_blocks(config: EngineConfig, left_bytes: int, block_bytes: int, needed_blocks: int) -> int:
    asked = _asked_blocks(config, block_bytes)
    if asked is not None:
        return asked
    if config.device == "cpu":
        enough = config.max_num_seqs * (needed_blocks - 1) + 1
        modest = max(min(CPU_KV_BYTES, int(left_bytes * CPU_KV_SHARE)) // block_bytes, needed_blocks)
        return min(enough, modest)
    return max(left_bytes // block_bytes, 0)


def _asked_blocks(config: EngineConfig, block_bytes: int) -> int | None:
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes // block_bytes
    return None


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def _misfit(config: EngineConfig, plan: MemoryPlan, facts: MachineFacts, needed_blocks: int) -> str:
    left = plan.available_bytes - plan.weights_bytes - plan.workspace_bytes - plan.reserve_bytes
    blocks = min(
        max(left // plan.block_bytes, 0), _asked_blocks(config, plan.block_bytes) or max(left // plan.block_bytes, 0)
    )
    lines = [
        f"the model does not fit in the memory of {facts.name or facts.device}:",
        f"  may be used         {_gib(plan.available_bytes)}  {_where_from(config, facts)}",
        f"  weights             {_gib(plan.weights_bytes)}",
        f"  step workspace      {_gib(plan.workspace_bytes)}  ({config.max_num_batched_tokens} tokens, {config.max_num_seqs} sequences)",
        f"  reserve             {_gib(plan.reserve_bytes)}",
        f"  left for KV cache   {_gib(left)}",
        f"  KV cache needs      {_gib(needed_blocks * plan.block_bytes)}  ({_need_text(config, needed_blocks)})",
        f"mend it with {_remedy(config, blocks)}",
    ]
    return "\n".join(lines)


def _where_from(config: EngineConfig, facts: MachineFacts) -> str:
    used = facts.total_memory_bytes - facts.free_memory_bytes
    if config.device == "cpu":
        return f"({_gib(facts.total_memory_bytes).strip()} in all, {_gib(used).strip()} in use)"
    total = _gib(facts.total_memory_bytes).strip()
    return f"({config.gpu_memory_utilization:g} of {total}, less {_gib(used).strip()} in use)"


def _need_text(config: EngineConfig, needed_blocks: int) -> str:
    per_sequence = _blocks(config.max_model_len, config.block_size) + 1
    if needed_blocks > per_sequence:
        return f"{needed_blocks} blocks were asked for"
    return f"one sequence of {config.max_model_len} tokens: {per_sequence} blocks of {config.block_size}, one of them spare"


def _remedy(config: EngineConfig, blocks: int) -> str:
    fits = max(blocks - 1, 0) * config.block_size
    ways = []
    if fits:
        ways.append(f"--max-model-len {fits} or less")
    if config.num_gpu_blocks_override is not None:
        ways.append("another --num-gpu-blocks-override")
    elif config.kv_cache_memory_bytes is not None:
        ways.append("another --kv-cache-memory-bytes")
    elif config.device != "cpu" and config.gpu_memory_utilization < 0.95:
        ways.append(f"--gpu-memory-utilization above {config.gpu_memory_utilization:g}")
    ways += [
        f"--max-num-seqs below {config.max_num_seqs}",
        f"--max-num-batched-tokens below {config.max_num_batched_tokens}",
    ]
    return ", ".join(ways) + (", or a smaller model" if not fits else "")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:8.2f} GiB"
