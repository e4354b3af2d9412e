"""The library itself: loading, threads, forks, errors."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from quire.backends.cpu import _native, embedding, greedy, linear, paged_attention, rotary, write_kv
from quire.errors import ServerError, UnsupportedShape
from quire.ops import registry


def test_the_registry_takes_it() -> None:
    _, choices = registry.resolve(("cpu", "torch"))
    assert {choice.op for choice in choices if choice.backend == "cpu"} == set(registry.implementations("cpu"))


def test_any_cpu_can_load_it() -> None:
    assert _native.supported_isas()[-1] == "portable"
    assert _native.isa() == _native.supported_isas()[0]
    with pytest.raises(ValueError, match="sse9"):
        _native.use_isa("sse9")


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "was not built"), (b"not a library", "does not load")], ids=["missing", "broken"]
)
def test_without_the_library_a_reason_is_given(
    content: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "libquire.cpu.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(_native, "LIBRARY", path)
    _native.library.cache_clear()
    try:
        assert reason in _native.why_not()[0]
        assert _native.supported_isas() == [] and _native.num_threads() == 0
        with pytest.raises(ServerError, match=reason):
            _native.operator("quire_linear")(b"")
        _, choices = registry.resolve(("cpu", "torch"))
        assert {choice.backend for choice in choices} == {"torch"}
    finally:
        _native.library.cache_clear()


def test_an_older_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "ABI_VERSION", -1)
    _native.library.cache_clear()
    try:
        assert "this quire needs -1" in _native.why_not()[0]
    finally:
        _native.library.cache_clear()


def test_structs_have_the_size_that_the_library_reads() -> None:
    """Field counts of the packers against arguments.h, so that neither can gain a field alone."""
    header = (Path(__file__).parents[3] / "csrc/cpu/arguments.h").read_text()
    modules = {"LinearArgs": linear, "RotaryArgs": rotary, "WriteKvArgs": write_kv, "EmbeddingArgs": embedding}
    modules["GreedyArgs"] = greedy
    modules["AttentionArgs"] = paged_attention
    for name, module in modules.items():
        body = header.split(f"struct {name} {{")[1].split("};")[0]
        lines = [line.split("//")[0].strip() for line in body.splitlines()]
        fields = sum(line.count(",") + 1 for line in lines if line)
        packed = module._pack(*range(fields))  # a struct.error when the counts differ
        assert len(packed) == 8 * fields


def test_errors_name_the_operator() -> None:
    with pytest.raises(ServerError, match="embedding.*outside its table"):
        embedding.run(torch.tensor([0, 5]), torch.ones(5, 2))
    with pytest.raises(ServerError, match="embedding"):
        embedding.run(torch.tensor([-1]), torch.ones(5, 2))
    q, k = torch.ones(1, 2, 4), torch.ones(1, 1, 4)
    with pytest.raises(ServerError, match="rotary"):
        rotary.run(q, k, torch.tensor([7]), torch.ones(7, 4))
    with pytest.raises(ServerError, match="write_kv"):
        write_kv.run(k, k, torch.zeros(2, 3, 2, 1, 4), torch.tensor([6]))
    assert isinstance(_native.error(1, "linear"), UnsupportedShape)


@pytest.mark.parametrize("field", ["block_tables", "seq_lens", "query_start_loc"])
def test_attention_refuses_lengths_and_blocks_that_do_not_fit(field: str) -> None:
    spec = registry.specs()["paged_attention"]
    case = list(spec.make_inputs(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu")))[2]
    getattr(case["fwd"], field)[-1] += 1000
    with pytest.raises(ServerError, match="paged_attention"):
        paged_attention.run(**case)


def test_callers_of_several_threads_wait_for_each_other(two_threads: None) -> None:
    weight = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    inputs = [torch.randn(8, 300, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    expected = [linear.run(x, weight) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(100):
            if not torch.equal(linear.run(inputs[i], weight), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_the_number_of_threads() -> None:
    before = _native.num_threads()
    try:
        _native.set_num_threads(3)
        assert _native.num_threads() == 3
        with pytest.raises(ValueError, match="0"):
            _native.set_num_threads(0)
    finally:
        _native.set_num_threads(before)


def test_idle_workers_use_no_cpu(two_threads: None) -> None:
    x, weight = torch.ones(64, 512), torch.ones(512, 512)
    linear.run(x, weight)

    def used_s() -> float:
        before = time.process_time()
        time.sleep(0.3)
        return time.process_time() - before

    assert any(used_s() < 0.03 for _ in range(20))  # other threads may have something to end first


FORK = """
import os, torch
from quire.backends.cpu import _native, linear
_native.set_num_threads(2)
x, w = torch.randn(64, 512), torch.randn(512, 512)
expected = linear.run(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear.run(x, w), expected) and _native.num_threads() == 2 else 3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert torch.equal(linear.run(x, w), expected)
print("both agree")
"""


def test_a_forked_child_gets_workers_of_its_own() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.stdout.strip() == "both agree", done.stderr
