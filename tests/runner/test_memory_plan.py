"""The arithmetic of the memory plan, and what is said when the model does not fit."""

from dataclasses import replace

import pytest

from quire.config import EngineConfig, MachineFacts
from quire.errors import MemoryPlanError
from quire.layers.decoder import DecoderConfig
from quire.runner.memory_plan import (
    CPU_KV_BYTES,
    DEVICE_RESERVE_BYTES,
    GIB,
    SAMPLER_WORKSPACE_BYTES,
    graph_bytes,
    plan_memory,
    workspace_bytes,
)  # fmt: skip

# Qwen2.5-7B
SIZES = DecoderConfig(
    vocab_size=152064, hidden_size=3584, inner_size=18944, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128,
    max_position=32768, tied=False,
)  # fmt: skip
WEIGHTS = 15_231_233_024
GPU = MachineFacts("cuda", "test GPU", 140 * GIB, 139 * GIB)
CPU = MachineFacts("cpu", "test CPU", 64 * GIB, 40 * GIB)
CONFIG = EngineConfig(
    model_dir="x", model_name="x", device="cuda", dtype="bfloat16", max_model_len=32768, block_size=16, max_num_seqs=256,
    max_num_batched_tokens=8192,
)  # fmt: skip
ON_CPU = replace(CONFIG, device="cpu", max_num_seqs=16, max_num_batched_tokens=2048)
BLOCK_BYTES = 2 * 28 * 16 * 4 * 128 * 2


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    assert plan_memory(CONFIG, SIZES, WEIGHTS, GPU).block_bytes == BLOCK_BYTES


def test_a_gpu_is_filled_up_to_its_share() -> None:
    plan = plan_memory(CONFIG, SIZES, WEIGHTS, GPU)
    assert plan.available_bytes == int(140 * GIB * 0.9) - 1 * GIB
    assert plan.total_bytes <= plan.available_bytes < plan.total_bytes + BLOCK_BYTES
    assert plan.kv_bytes == plan.num_blocks * BLOCK_BYTES
    assert plan.kv_tokens == (plan.num_blocks - 1) * 16
    assert plan.max_concurrency(32768) == pytest.approx(plan.kv_tokens / 32768)


def test_the_step_workspace_is_the_larger_of_its_two_peaks() -> None:
    counts = 257 * (152064 * 2 + 152064 // 8)
    inputs = 8 * (3 * 8192 + 2 * 256) + 4 * (256 * (2 * 2048 + 2) + 1) + counts
    layer = 8192 * (3 * 3584 + 3 * 18944) * 2
    assert workspace_bytes(CONFIG, SIZES) == inputs + layer
    few_tokens = replace(CONFIG, max_num_batched_tokens=256)
    inputs = 8 * (3 * 256 + 2 * 256) + 4 * (256 * (2 * 2048 + 2) + 1) + counts
    sampling = 256 * 152064 * 4 + SAMPLER_WORKSPACE_BYTES
    assert workspace_bytes(few_tokens, SIZES) == inputs + 256 * 3584 * 3 + sampling


def test_graphs_are_counted_when_there_are_any() -> None:
    without, with_graphs = (
        plan_memory(CONFIG, SIZES, WEIGHTS, GPU),
        plan_memory(CONFIG, SIZES, WEIGHTS, GPU, graphs=True),
    )
    assert without.graph_bytes == 0
    assert (
        with_graphs.graph_bytes == graph_bytes(CONFIG, SIZES) > 256 * 152064 * (4 + 2) + 2048 * 3 * (3584 + 18944) * 2
    )
    assert with_graphs.num_blocks < without.num_blocks
    assert without.reserve_bytes == DEVICE_RESERVE_BYTES["cuda"]


def test_a_cpu_takes_a_modest_part() -> None:
    plan = plan_memory(ON_CPU, SIZES, WEIGHTS, CPU)
    assert plan.available_bytes == 40 * GIB
    assert plan.kv_bytes == CPU_KV_BYTES // BLOCK_BYTES * BLOCK_BYTES
    half = plan_memory(ON_CPU, SIZES, WEIGHTS, replace(CPU, free_memory_bytes=20 * GIB))
    assert half.kv_bytes == half.left_bytes // 2 // BLOCK_BYTES * BLOCK_BYTES < CPU_KV_BYTES


def test_a_cpu_takes_no_more_than_its_sequences_can_fill() -> None:
    plan = plan_memory(replace(ON_CPU, max_num_seqs=2, max_model_len=512), SIZES, WEIGHTS, CPU)
    assert plan.num_blocks == 2 * 512 // 16 + 1


def test_a_cpu_always_holds_one_whole_sequence() -> None:
    plan = plan_memory(replace(ON_CPU, max_model_len=131072, max_num_seqs=1), SIZES, WEIGHTS, CPU)
    assert plan.kv_bytes > CPU_KV_BYTES
    assert plan.kv_tokens == 131072


def test_numbers_that_the_user_gives_are_taken() -> None:
    assert plan_memory(replace(CONFIG, num_gpu_blocks_override=3000), SIZES, WEIGHTS, GPU).num_blocks == 3000
    exact = plan_memory(replace(CONFIG, kv_cache_memory_bytes=3 * GIB), SIZES, WEIGHTS, GPU)
    assert exact.num_blocks == 3 * GIB // BLOCK_BYTES


SMALL = replace(GPU, total_memory_bytes=24 * GIB, free_memory_bytes=23 * GIB)


def refused(config: EngineConfig, facts: MachineFacts, weights: int = WEIGHTS) -> str:
    with pytest.raises(MemoryPlanError) as error:
        plan_memory(config, SIZES, weights, facts)
    return str(error.value)


def test_a_length_that_does_not_fit_is_refused_with_the_longest_that_does() -> None:
    long = replace(CONFIG, max_model_len=131072)
    message = refused(long, SMALL)
    assert "0.9 of 24.00 GiB less 1.00 GiB in use" in message
    assert "weights        14.19 GiB" in message
    assert "8193 blocks of 16 tokens for one sequence of 131072" in message
    longest = int(message.split("--max-model-len ")[1].split()[0])
    assert plan_memory(replace(long, max_model_len=longest), SIZES, WEIGHTS, SMALL).num_blocks * 16 >= longest
    refused(replace(long, max_model_len=longest + 2048), SMALL)  # a shorter length needs smaller tables too
    for flag in ("--gpu-memory-utilization", "--max-num-seqs", "--max-num-batched-tokens"):
        assert flag in message


def test_weights_that_do_not_fit_are_refused() -> None:
    message = refused(CONFIG, replace(SMALL, total_memory_bytes=12 * GIB, free_memory_bytes=12 * GIB))
    assert "(0 blocks)" in message and "a smaller model" in message and "--max-model-len" not in message


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"num_gpu_blocks_override": 10**6}, "--num-gpu-blocks-override"),
        ({"num_gpu_blocks_override": 100}, "--num-gpu-blocks-override"),
        ({"kv_cache_memory_bytes": 100 * GIB}, "--kv-cache-memory-bytes"),
        ({"kv_cache_memory_bytes": 2**20}, "--kv-cache-memory-bytes"),
    ],
)
def test_numbers_that_cannot_be_had_are_refused_by_their_flag(changes: dict[str, int], flag: str) -> None:
    message = refused(replace(CONFIG, **changes), replace(GPU, total_memory_bytes=60 * GIB, free_memory_bytes=60 * GIB))
    assert f"change {flag} (2049 blocks are needed" in message


def test_too_few_blocks_asked_for_name_the_length_they_serve() -> None:
    message = refused(replace(CONFIG, num_gpu_blocks_override=101), GPU)
    assert "--max-model-len 1600 or less" in message
