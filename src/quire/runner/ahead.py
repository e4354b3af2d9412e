"""Kernels compiled ahead: the first steps are gone through with nothing launched, to learn which kernels they need.

That takes a moment, needs no weights (one piece of memory stands for all of them), and leaves the compiler many kernels to work on at
once, while weights are read. What it cannot foresee is compiled when it is needed, as ever: nothing here may fail a start.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from quire import compilers
from quire.compilers import Answer, Compilers
from quire.config import EngineConfig
from quire.layers.build import Build
from quire.layers.decoder import DecoderConfig
from quire.ops.ahead import Collect, Job, ahead
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import Choice, Ops
from quire.platform import Platform
from quire.runner.decode_loop import DecodeLoop
from quire.runner.device_sampler import DRAWING, FILTERING, GREEDY, DeviceSampler
from quire.runner.graphs import graph_sizes
from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.whole_step import WholeStep, decode_likeliest, decode_logits

logger = logging.getLogger(__name__)


class Need(Enum):
    """When a step's kernels are needed.

    NOW    for the first token: a start waits for them
    SOON   for the second: compiled at the same time, and not waited for
    LATER  after these, which would wait for them
    """

    NOW = 0
    SOON = 1
    LATER = 2


Steps = Iterable[tuple[Need, Callable[[], Any]]]
NUM_COMPILERS = 8
NUM_WAITING = 32  # for kernels that other processes compile
NUM_LATER_COMPILERS = 2
LATER_SECONDS = 2.0  # after the start: compilers would hold the interpreter while the first steps are made
SWITCH_SECONDS = (
    0.0005  # turns of threads while compiling: at Python's 5 ms, each call that lets others run waits for all of them
)
# Tokens, sequences, as the last layer does it. Of many sequences it has many rows, and products of so many have kernels of their own, which
# decoding steps of as many rows, whose products are joined to other things, may not need.
PROMPT_STEPS = (
    (16, 1, False),
    (128, 2, False),
    (2048, 1, False),
    (2048, 1, True),
    (256, 64, True),
    (512, 256, True),
)
NUM_BLOCKS = 4
DRAWING_SIZES = 2  # batch sizes to draw tokens at: kernels of more rows are the same


class KernelsAhead:
    """A context manager: inside it kernels are compiled, by another process or in other threads. It ends when what the first token
    needs is there; the rest follows.

    steps      (when its kernels are needed, a call), in the order in which compiling shall begin
    collect    what to go through them inside: it says what they would launch
    compilers  a process that compiles, for this one; closed when all is done. None = all is compiled here
    """

    def __init__(self, steps: Steps, collect: Collect, compilers: Compilers | None = None) -> None:
        self._steps = steps
        self._collect = collect
        self._pool = ThreadPoolExecutor(
            NUM_COMPILERS if compilers is None else NUM_WAITING, thread_name_prefix="compile"
        )
        self._compilers = compilers
        self._begun: dict[Need, list[Future[None]]] = {Need.NOW: [], Need.SOON: []}
        self._later: list[Job] = []
        self._need = Need.NOW
        self._thread = threading.Thread(target=self._run, name="compile-ahead")

    @classmethod
    def of_model(
        cls,
        module: ModuleType,
        sizes: DecoderConfig,
        ops: Ops,
        choices: list[Choice],
        config: EngineConfig,
        platform: Platform,
    ) -> "KernelsAhead":
        """For the model of `module` (its Config and Model); nothing is done where no backend compiles."""
        found = ahead(ops, choices)
        if found is None:
            compilers.drop()
            return cls((), lambda take: nullcontext())
        return cls(DrySteps(module, sizes, found[0], config, platform), found[1], compilers.take())

    def __enter__(self) -> "KernelsAhead":
        self._started = time.perf_counter()
        self._turns = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_SECONDS, self._turns))
        self._thread.start()
        return self

    def let_go(self) -> None:
        """Waits until what the steps were gone through with is given back: the device's memory is then free for others."""
        self._thread.join()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """What could not be compiled is left to its first launch."""
        before = time.perf_counter()
        self._thread.join()
        now_needed = self._begun[Need.NOW]
        for job in now_needed:
            if failure := job.exception():
                logger.warning("a kernel could not be compiled ahead: %s", failure)
        self._pool.shutdown(wait=False)
        self._end_soon(error)
        sys.setswitchinterval(self._turns)
        now = time.perf_counter()
        if now_needed:
            total, waited = now - self._started, now - before
            logger.info(
                "%d kernels compiled or loaded in %.2f s, of which %.2f s were waited for", len(now_needed), total, waited,
                extra={"phase": "kernels, beyond all that went on meanwhile", "seconds": waited},
            )  # fmt: skip

    def _end_soon(self, error: type[BaseException] | None) -> None:
        """What is left is done beside the first steps, if there will be any."""
        if error is None and (self._later or self._begun[Need.SOON]):
            asked = [(job, self._ask(job)) for job in self._later]
            timer = threading.Timer(LATER_SECONDS, self._load_later, [asked])
            timer.daemon = True  # a process that ends before needs none of it
            timer.start()
        elif self._compilers is not None:
            self._compilers.close()

    def _load_later(self, asked: list[tuple[Job, Answer | None]]) -> None:
        wait(self._begun[Need.SOON])
        pool = ThreadPoolExecutor(NUM_LATER_COMPILERS, thread_name_prefix="compile-later")
        with suppress(RuntimeError):  # the process is ending
            for job, answer in asked:
                self._wait(answer)
                pool.submit(job.load)
        pool.shutdown(wait=False)
        if self._compilers is not None:
            self._compilers.close()

    def _ask(self, job: Job) -> Answer | None:
        return None if self._compilers is None or job.request is None else self._compilers.ask(job.request)

    def _finish(self, job: Job, answer: Answer | None) -> None:
        self._wait(answer)
        job.load()

    def _wait(self, answer: Answer | None) -> None:
        if self._compilers is not None and answer is not None:
            self._compilers.wait(answer)

    def _run(self) -> None:
        try:
            with torch.inference_mode(), self._collect(self._take):
                for need, step in self._steps:
                    self._need = need
                    step()
        except Exception:
            logger.warning("kernels are compiled when they are needed, not ahead", exc_info=True)

    def _take(self, job: Job) -> None:
        if self._need is Need.LATER:
            self._later.append(job)
        else:
            self._begun[self._need].append(self._pool.submit(self._finish, job, self._ask(job)))


class DrySteps:
    """The steps of a model of one layer: (when its kernels are needed, a call)."""

    def __init__(
        self, module: ModuleType, sizes: DecoderConfig, ops: Ops, config: EngineConfig, platform: Platform
    ) -> None:
        self.config, self.ops, self.module, self.platform = config, ops, cast(Any, module), platform
        self.sizes = replace(sizes, num_layers=1)

    def __iter__(self) -> Iterator[tuple[Need, Callable[[], Any]]]:
        c, dtype, device = self.config, getattr(torch, self.config.dtype), self.platform.device()
        shape = (2, NUM_BLOCKS, c.block_size, self.sizes.num_kv_heads, self.sizes.head_dim)
        kv_caches = [torch.zeros(shape, dtype=dtype, device=device)]
        model = self.module.Model(self.sizes, Build.plain(self.ops, dtype, c.max_model_len)).eval()
        _lend_memory(model, device)
        whole = WholeStep(model, self.ops)

        def prompts(size: tuple[int, int, bool]) -> Tensor:
            fwd = _prompt_step(*size, kv_caches)
            hidden = model(fwd.input_ids, fwd)
            return self.ops.greedy(model.compute_logits(hidden[fwd.logits_indices]))

        table = SequenceTable(c.max_num_seqs, c.max_model_len, c.block_size)
        sampling = SamplingTable(c.max_num_seqs)
        sampler = DeviceSampler(self.ops, table, sampling, self.sizes.vocab_size, device)
        loop = DecodeLoop(
            self.platform, partial(decode_logits, model, whole), partial(decode_likeliest, model, whole, self.ops.greedy), self.ops, table,
            sampling, kv_caches, sampler, None, 1,
        )  # fmt: skip

        sizes = [s for s in PROMPT_STEPS if s[0] <= c.max_num_batched_tokens and s[1] <= c.max_num_seqs]
        yield Need.SOON, partial(loop.rehearse, 1, GREEDY)  # ahead of the prompt: its kernel takes longest
        yield from ((Need.NOW, partial(prompts, size)) for size in sizes[:1])
        sampler.make_tables(1)
        # First, as its kernel takes longest of those, and many checkpoints' own defaults are filters.
        yield Need.LATER, partial(loop.rehearse, 1, FILTERING)
        yield from ((Need.LATER, partial(prompts, size)) for size in sizes[1:])
        rows = graph_sizes(c.max_num_seqs)
        yield from ((Need.LATER, partial(loop.rehearse, size, GREEDY)) for size in rows[1:])
        yield from ((Need.LATER, partial(loop.rehearse, size, DRAWING)) for size in rows[:DRAWING_SIZES])


def _lend_memory(model: nn.Module, device: torch.device) -> None:
    """Puts every parameter and buffer of a model on meta into the same memory on `device`."""
    tensors = [*model.parameters(), *model.buffers()]
    memory = torch.zeros(max(t.numel() * t.element_size() for t in tensors), dtype=torch.uint8, device=device)

    def lent(like: Tensor) -> Tensor:
        return memory[: like.numel() * like.element_size()].view(like.dtype).view(like.shape)

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(lent(parameter), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, lent(buffer), persistent=False)


def _prompt_step(num_tokens: int, num_seqs: int, narrow: bool, kv_caches: list[Tensor]) -> ForwardBatch:
    def make(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=kv_caches[0].device)

    return ForwardBatch(
        input_ids=make(num_tokens),
        positions=make(num_tokens),
        slot_mapping=make(num_tokens),
        query_start_loc=make(num_seqs + 1, dtype=torch.int32),
        seq_lens=make(num_seqs, dtype=torch.int32),
        block_tables=make(num_seqs, 2, dtype=torch.int32),
        logits_indices=make(num_seqs),
        max_query_len=num_tokens // num_seqs,
        max_seq_len=num_tokens // num_seqs,
        kv_caches=kv_caches,
        last_rows=make(num_seqs) if narrow else None,
    )
