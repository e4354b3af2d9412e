"""The engine on the GPU: graphs against eager steps, repeated runs, batch mixes, and where the memory goes."""

import os
import subprocess
import sys

import engines
import numpy as np
import pytest
import torch

from quire import SamplingParams


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return engines.shapes.write_config("0.5b", tmp_path_factory.mktemp("shapes"))


def mixed_requests(count: int) -> tuple[list[dict], list[int]]:
    rng = np.random.default_rng(5)
    lengths = np.clip(rng.lognormal(4.0, 1.2, count), 1, 1500).astype(int).tolist()
    return engines.prompts(lengths), rng.integers(1, 60, count).tolist()


def same_share(a: list[list[int]], b: list[list[int]]) -> float:
    """Share of sequences that are equal to the last token."""
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def test_graphs_give_the_tokens_of_eager_steps(small, note):
    inputs, lengths = mixed_requests(200)
    with engines.engine(small, max_num_seqs=100) as llm:
        with_graphs = engines.greedy(llm, inputs, lengths)
        again = engines.greedy(llm, inputs, lengths)
        runner = llm.llm_engine.engine.runner
        captured, decoding = runner.graphs.captured_sizes, runner.loop.captured_sizes
    with engines.engine(small, max_num_seqs=100, enforce_eager=True) as llm:
        assert llm.llm_engine.engine.runner.graphs is None
        eager = engines.greedy(llm, inputs, lengths)
    assert [len(ids) for ids in with_graphs] == lengths
    assert len(decoding) > 3 and any(tokens > sequences for tokens, sequences in captured)
    assert with_graphs == eager
    note(f"equal on a second run with a warm prefix cache: {same_share(with_graphs, again):.1%}")


def test_repeated_runs_are_equal(small):
    inputs, lengths = mixed_requests(60)
    runs = []
    for _ in range(2):
        with engines.engine(small, enable_prefix_caching=False) as llm:
            runs.append(engines.greedy(llm, inputs, lengths))
            runs.append(engines.greedy(llm, inputs, lengths))
    assert all(run == runs[0] for run in runs)


def test_where_batch_mates_matter_it_was_a_near_tie(small, note):
    """Matrix products of other row counts round differently; two tokens may then swap only if they were as good as equal."""
    inputs, _ = mixed_requests(24)
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, detokenize=False, logprobs=5)
    with engines.engine(small, enable_prefix_caching=False) as llm:
        together = [o.outputs[0] for o in llm.generate(inputs, params, use_tqdm=False)]
        alone = [llm.generate([prompt], params, use_tqdm=False)[0].outputs[0] for prompt in inputs]
    gaps = []
    for a, b in zip(together, alone, strict=True):
        parted = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=True)) if x != y), None)
        if parted is not None:
            at = a.logprobs[parted]
            assert b.token_ids[parted] in at, "the other token is not even among the five best"
            gaps.append(at[a.token_ids[parted]].logprob - at[b.token_ids[parted]].logprob)
    note(f"greedy tokens equal alone and in a batch of 24 (random weights, bfloat16): {1 - len(gaps) / 24:.1%}")
    note(f"where they part, the widest gap between the two tokens is {max(gaps, default=0):.4f} nats")
    assert max(gaps, default=0) < 0.15


def test_sampling_with_a_seed_is_repeatable(small):
    inputs, _ = mixed_requests(8)
    params = SamplingParams(
        temperature=1.0, top_p=0.9, top_k=50, seed=7, max_tokens=20, ignore_eos=True, detokenize=False
    )
    with engines.engine(small, enable_prefix_caching=False) as llm:
        first, second = (
            [list(o.outputs[0].token_ids) for o in llm.generate(inputs, params, use_tqdm=False)] for _ in range(2)
        )
    assert first == second
    assert len({tuple(ids) for ids in first}) == 8


def test_engines_of_one_process_give_the_same_tokens(small):
    """The second finds kernels compiled: going through its steps beforehand must not run them, on what means nothing."""
    inputs = engines.prompts([60] * 200)
    found = []
    for _ in range(3):
        with engines.engine(small) as llm:
            found.append(engines.greedy(llm, inputs, [12] * 200))
    assert found[0] == found[1] == found[2] and all(len(ids) == 12 for ids in found[0])


@pytest.mark.parametrize("shape", ["0.5b", "7b"])
def test_memory_plan_is_within_three_percent(shape, tmp_path, note):
    folder = engines.shapes.write_config(shape, tmp_path)
    torch.cuda.empty_cache()
    before = engines.used_bytes()
    torch.cuda.reset_peak_memory_stats()
    with engines.engine(folder, max_model_len=16_384) as llm:
        plan = llm.llm_engine.engine.runner.plan
        kv_bytes = sum(layer.nbytes for layer in llm.llm_engine.engine.runner.kv_cache.layers)
        assert kv_bytes == plan.kv_bytes == plan.num_blocks * plan.block_bytes
        engines.greedy(llm, engines.prompts([8192] * 4 + [300] * 252), [4] * 4 + [40] * 252)
        engines.greedy(llm, engines.prompts([40] * 1024, seed=1), [8] * 1024)
        measured = engines.used_bytes() - before
        reserved = torch.cuda.max_memory_reserved()
    gib = 2.0**30
    note(
        f"{shape}: planned {plan.total_bytes / gib:.2f} GiB (KV {plan.kv_bytes / gib:.2f}), taken {measured / gib:.2f}, "
        f"peak reserved by the allocator {reserved / gib:.2f}, {plan.kv_tokens:,} tokens"
    )
    assert measured == pytest.approx(plan.total_bytes, rel=0.03)
    assert plan.kv_bytes / plan.total_bytes > 0.7
    torch.cuda.empty_cache()
    left = engines.used_bytes() - before
    note(f"{shape}: {left / 2**20:.0f} MiB more than before remain after close()")
    assert left < 300 * 2**20  # kernels' code and library handles, which CUDA keeps as long as the process


def test_a_fixed_number_of_blocks_is_kept_to(small):
    with engines.engine(small, num_gpu_blocks_override=300) as llm:
        assert llm.llm_engine.engine.runner.num_blocks == 300
        inputs, lengths = mixed_requests(40)
        assert [len(ids) for ids in engines.greedy(llm, inputs, lengths)] == lengths


PROGRAM = """
import os, sys
import quire
from quire import LLM, SamplingParams
assert "torch" not in sys.modules
os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[2]
try:
    llm = LLM(model=sys.argv[1], load_format="dummy", skip_tokenizer_init=True, device="cuda", max_model_len=512,
              num_gpu_blocks_override=64)
except quire.errors.ConfigError as error:
    print("refused:", error)
else:
    out = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False), use_tqdm=False)
    print("tokens:", len(out[0].outputs[0].token_ids))
"""


@pytest.mark.parametrize("visible, answer", [("", "refused:"), ("0", "tokens: 3")])
def test_visible_devices_set_after_the_import_count(small, visible, answer):
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", PROGRAM, small, visible]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment)
    assert answer in done.stdout, done.stdout + done.stderr[-3000:]
