"""Kernels compiled ahead: what the first steps call for is learnt without launching anything, and no failure there stops a start."""

import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.ops import registry
from quire.ops.ahead import Job, ahead
from quire.runner import ahead as ahead_module
from quire.runner.ahead import DrySteps, KernelsAhead, Need

ROOT = Path(__file__).parents[2]


def test_the_kernels_of_the_first_steps_are_found_and_compile(tmp_path):
    script = Path(__file__).with_name("ahead_on_sm90.py")
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(script), "take_tokens_kernel"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    first = found["first"]
    assert {"prefill_kernel", "decode_kernel", "take_tokens_kernel"} <= set(first), first
    assert any("greedy" in name for name in first) and any("norm" in name for name in first), first
    assert any("draw" in name for name in found["later"]), "sampling comes after the first token"
    assert found["later"][0] == "count_tokens_kernel", (
        "what penalties and filters need comes before other sizes of steps"
    )
    assert found["compiled"] == ["take_tokens_kernel True True"], "it is where its first launch looks for it"
    assert found["apart"] == [f"{name} True" for name in first[:4]], (
        "what another process compiled is what this one looks for"
    )
    again = found["again"]
    assert "take_tokens_kernel" not in again, "what there is, is neither compiled nor launched"
    assert sorted(again) == sorted(name for name in first + found["later"] if name != "take_tokens_kernel")


def test_backends_that_compile_nothing_have_nothing_to_do():
    assert ahead(*registry.resolve(("torch",))) is None
    assert ahead(*registry.resolve(("cpu", "torch"))) is None


@contextmanager
def nothing(take):
    yield


def gone_through(steps, caplog, collect=nothing):
    """What `wait` left in the log."""
    logging.getLogger("quire").propagate = True
    with caplog.at_level(logging.INFO, "quire"):
        with KernelsAhead(steps, collect) as kernels:
            kernels.let_go()
    return caplog.text


def test_the_first_tokens_kernels_are_there_after_waiting_and_others_are_not_begun_before(caplog, monkeypatch):
    monkeypatch.setattr(ahead_module, "LATER_SECONDS", 0.01)
    done, begun, over = [], threading.Event(), threading.Event()

    def later():
        begun.set()
        assert over.wait(60)
        done.append("c")

    jobs = [lambda: done.append("a"), later, lambda: done.append("b") or begun.is_set() and done.append("too early")]

    @contextmanager
    def collect(take):
        takes.append(take)
        yield

    takes = []
    steps = [
        (first, partial(lambda job: takes[0](Job(job)), job))
        for first, job in zip((Need.NOW, Need.LATER, Need.NOW), jobs, strict=True)
    ]
    text = gone_through(steps, caplog, collect)
    assert sorted(done) == ["a", "b"] and "2 kernels compiled" in text
    over.set()
    assert begun.wait(60), "the rest follows"
    assert any(getattr(record, "phase", "").startswith("kernels") for record in caplog.records)


class Apart:
    """Stands for the compiling process: compiles what it likes."""

    def __init__(self, likes):
        self.likes, self.asked, self.closed = likes, [], threading.Event()

    def ask(self, request):
        self.asked.append(request["name"])
        return request["name"] in self.likes

    def wait(self, answer):
        return answer

    def close(self):
        self.closed.set()


def test_another_process_is_asked_at_once_and_its_failures_are_made_good_here(monkeypatch):
    monkeypatch.setattr(ahead_module, "LATER_SECONDS", 0.01)
    apart, loaded, takes, later = Apart(likes=["a", "c"]), [], [], threading.Event()

    @contextmanager
    def collect(take):
        takes.append(take)
        yield

    def step(name, request):
        takes[0](Job(lambda: later.set() if name == "c" else loaded.append(name), request))

    names = {"a": Need.NOW, "b": Need.NOW, "c": Need.LATER, "d": Need.NOW}
    steps = [(first, partial(step, name, None if name == "d" else {"name": name})) for name, first in names.items()]
    with KernelsAhead(steps, collect, apart) as kernels:
        kernels.let_go()
        assert apart.asked == ["a", "b"], "what comes later would hold these up; and d cannot be asked for"
    assert apart.asked == ["a", "b", "c"]
    assert sorted(loaded) == ["a", "b", "d"] and not apart.closed.is_set()
    assert later.wait(60) and apart.closed.wait(60)


def test_the_second_tokens_kernels_begin_at_once_and_are_not_waited_for(caplog):
    takes, begun, over = [], threading.Event(), threading.Event()

    @contextmanager
    def collect(take):
        takes.append(take)
        yield

    def slow():
        begun.set()
        assert over.wait(60)

    def first():
        assert begun.wait(60), "it was asked for before"

    apart = Apart(likes=[])
    with KernelsAhead(
        [(Need.SOON, lambda: takes[0](Job(slow))), (Need.NOW, lambda: takes[0](Job(first)))], collect, apart
    ):
        pass
    assert begun.is_set() and not apart.closed.is_set()
    over.set()


@pytest.mark.parametrize("fails", [False, True])
def test_the_other_process_is_closed_when_nothing_is_left_to_do(fails):
    apart = Apart(likes=[])
    with suppress(KeyError), KernelsAhead((), nothing, apart):
        if fails:
            raise KeyError
    assert apart.closed.is_set()


def test_what_cannot_be_compiled_or_gone_through_is_told_and_no_more(caplog):
    def broken():
        raise RuntimeError("no such instruction")

    @contextmanager
    def collect(take):
        takes.append(take)
        yield

    takes = []
    assert "compiled ahead: no such instruction" in gone_through(
        [(Need.NOW, lambda: takes[0](Job(broken)))], caplog, collect
    )
    caplog.clear()
    assert "compiled when they are needed" in gone_through([(Need.NOW, broken)], caplog)


def test_pythons_turns_are_as_before_also_after_a_failure():
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), KernelsAhead((), nothing):
        assert sys.getswitchinterval() < before
        raise KeyError
    assert sys.getswitchinterval() == before


def test_a_start_outlives_steps_that_cannot_be_gone_through(monkeypatch, caplog):
    def unknown(self):
        raise RuntimeError("an operator unlike others")
        yield

    monkeypatch.setattr(DrySteps, "__iter__", unknown)
    monkeypatch.setattr(ahead_module, "ahead", lambda ops, choices: (ops, nothing))
    logging.getLogger("quire").propagate = True
    with caplog.at_level(logging.WARNING, "quire"):
        llm = LLM(device="cpu", max_model_len=256)
    assert "compiled when they are needed" in caplog.text
    (output,) = llm.generate("The capital of France is", SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 2
    llm.llm_engine.close()
