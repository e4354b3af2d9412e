"""ModelRunner: Batch in, StepResult out. Holds the model, the KV cache and one row of state for each sequence."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quire.config import EngineConfig
from quire.core.batch import Batch, LogprobColumns, SequenceResult, StepResult
from quire.core.outputs import NO_TOKEN_ALLOWED_ERROR, NOT_FINITE_ERROR
from quire.hf_config import HfConfig
from quire.layers.build import Build
from quire.layers.decoder import DecoderConfig
from quire.models.registry import find_model
from quire.ops import registry
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import Ops
from quire.platform import Platform
from quire.quant.none import refuse_quantized
from quire.runner.ahead import KernelsAhead
from quire.runner.decode_loop import DecodeLoop
from quire.runner.device_sampler import DeviceSampler
from quire.runner.flight import ALL_FORBIDDEN, NO_TOKEN, NOT_FINITE, Flight
from quire.runner.grammars import Grammars
from quire.runner.graphs import GraphPool, GraphStore, Size, StepGraphs, graph_sizes, padded_size, padded_step
from quire.runner.kv_cache import KVCache
from quire.runner.logprobs import columns_of
from quire.runner.memory_plan import GIB, MemoryPlan, model_bytes, plan_memory
from quire.runner.mixed_steps import MixedSteps
from quire.runner.prepare import InputBuffers, StepInputs, narrows, prepare
from quire.runner.prompt_logprobs import PromptLogprobs
from quire.runner.sampler import Sampled, Sampler
from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.transfer import Arrays, OneCopy
from quire.runner.whole_step import WholeStep, decode_likeliest, decode_logits
from quire.weights.loader import load_weights, plan_weights

logger = logging.getLogger(__name__)

MAX_DECODE_STEPS = 8
DECODE_BYTES = 12 * 10**9  # weights that a large GPU reads in 3 ms
# Tokens times weights of a step with prompts that keeps a large GPU busy while the host launches its kernels one by one: 12 ms for 28
# layers. Larger steps are not padded either.
GRAPH_BYTES = 8 * 10**12
NOTHING_SAMPLED = Sampled([], [], [])
ERRORS = {
    NOT_FINITE: NOT_FINITE_ERROR,
    ALL_FORBIDDEN: NO_TOKEN_ALLOWED_ERROR,
}


class ModelRunner:
    """Executes steps of one model on one device. Made by `load`.

    num_blocks  blocks of the KV cache, block 0 (which is never handed out) included
    plan        where the memory went
    graphs      None = every step runs eagerly
    loop        decoding steps in a row, and
    mixed       single steps, whose tokens are not waited for; None = this device does one step at a time
    """

    def __init__(
        self,
        config: EngineConfig,
        platform: Platform,
        model: nn.Module,
        ops: Ops,
        sizes: DecoderConfig,
        plan: MemoryPlan,
    ) -> None:
        device = platform.device()
        self.config = config
        self.platform = platform
        self.plan = plan
        self.num_blocks = plan.num_blocks
        self.model: Any = model
        self.whole = WholeStep(model, ops)
        self.kv_cache = KVCache(sizes, plan.num_blocks, config.block_size, _dtype(config), device)
        self.table = SequenceTable(config.max_num_seqs, config.max_model_len, config.block_size)
        self.sampling = SamplingTable(config.max_num_seqs)
        self.grammars = Grammars(config.tokenizer_dir or config.model_dir, sizes.vocab_size)
        self.sampler = Sampler(self.table, self.sampling, sizes.vocab_size, ops.greedy, self.grammars)
        self.prompt_logprobs = PromptLogprobs(
            self.table, self.sampling, min(self.sampler.slice_rows, config.max_num_seqs)
        )
        max_blocks = self.table.block_tables.shape[1]
        self.buffers = InputBuffers(config.max_num_batched_tokens, config.max_num_seqs, max_blocks, device)
        self.graphs: StepGraphs | None = None
        self.loop: DecodeLoop | None = None
        pool: GraphPool | None = None
        if platform.supports_graphs() and not config.enforce_eager:
            pool = GraphPool()
            self.graphs = StepGraphs(
                platform,
                self._compute,
                GraphStore(platform, pool),
                config.max_num_seqs,
                config.max_model_len,
                max_blocks,
            )
        self.mixed: MixedSteps | None = None
        if platform.supports_graphs():  # without graphs too, so that enforce_eager gives the same tokens
            sampler = DeviceSampler(ops, self.table, self.sampling, sizes.vocab_size, device)
            self.loop = DecodeLoop(
                platform,
                self._raw_logits,
                self._likeliest,
                ops,
                self.table,
                self.sampling,
                self.kv_cache.layers,
                sampler,
                pool,
                decode_steps(plan.weights_bytes),
            )
            self.mixed = MixedSteps(platform, self._forward, sampler, self.table, self.sampling, self.loop.last_ids)

    @classmethod
    def load(cls, config: EngineConfig, platform: Platform) -> "ModelRunner":
        """Reads config.json and every file header, plans memory, and only then allocates and loads.

        Raises SetupError types: UnsupportedModel, CheckpointError, MemoryPlanError, ConfigError.
        """
        start = time.perf_counter()
        hf = HfConfig.from_dir(config.model_dir, config.hf_overrides)
        refuse_quantized(hf.get("quantization_config"), hf.source)
        module = find_model(hf)
        sizes = module.Config.from_hf(hf)
        ops, choices = registry.resolve(config.backends)
        logger.info("Backends: %s", ", ".join(f"{c.op}={c.backend}" for c in choices))
        with torch.device("meta"):
            model = module.Model(sizes, Build.plain(ops, _dtype(config), config.max_model_len)).requires_grad_(False)
        weights = plan_weights(model, module.WEIGHTS, Path(config.model_dir), config.load_format, sizes.tied)
        graphs = platform.supports_graphs() and not config.enforce_eager
        plan = plan_memory(config, sizes, model_bytes(model), platform.facts(), graphs)
        with KernelsAhead.of_model(module, sizes, ops, choices, config, platform) as kernels:
            load_weights(model, weights, platform.device(), config.seed)
            kernels.let_go()
            platform.empty_cache()  # what loading used beside the weights
            seconds = time.perf_counter() - start
            logger.info("Model loading took %.2f GiB and %.2f seconds", plan.weights_bytes / GIB, seconds)
            runner = cls(config, platform, model.eval(), ops, sizes, plan)
        runner._log_capacity()
        return runner

    @property
    def max_decode_steps(self) -> int:
        """Decoding steps that `start` takes at once; 0 = use `execute`."""
        return 0 if self.loop is None else self.loop.max_steps

    @property
    def decode_sizes(self) -> list[int]:
        """Rows that decoding steps are padded to."""
        return [] if self.loop is None else graph_sizes(self.config.max_num_seqs)

    @torch.inference_mode()
    def start(self, batch: Batch) -> Flight:
        """Asks the device for an unattended batch and waits for nothing. At most two may be on their way."""
        if self.loop is None or self.mixed is None:
            raise RuntimeError("this device does one step at a time")
        self._take_in(batch)
        return self.loop.start(batch) if batch.decode_steps else self.mixed.start(batch)

    @torch.inference_mode()
    def finish(self, flight: Flight, still_runs: Callable[[int], bool]) -> StepResult:
        """Waits for what was started, the oldest first, and appends what it sampled to the sequences' rows.

        still_runs  whether a sequence, by seq_id, holds its blocks still
        """
        tokens = flight.wait()
        failed = (tokens == NOT_FINITE).any(0)
        for place in np.flatnonzero(failed).tolist():
            if still_runs(flight.batch.scheduled[place].seq_id):
                self._wipe(int(flight.rows[place]), int(flight.firsts[place]))
        stays = self.table.lives[flight.rows] == flight.lives
        self.table.extend(flight.rows[stays], tokens[:, stays])
        return StepResult(results_of(flight, tokens, failed))

    @torch.inference_mode()
    def execute(self, batch: Batch) -> StepResult:
        """Runs one step: applies removed, added and new blocks, computes the scheduled tokens, samples where a sequence's tokens
        are all computed, and appends what it sampled to its own row.

        A sequence whose logits are not finite, or that may choose no token, gets an error; the others are not touched by it.
        """
        self._take_in(batch)
        if not batch.scheduled:
            return StepResult([])
        step = prepare(self.table, batch, every_row=self.prompt_logprobs.wanted(batch))
        hidden, logits = self._forward(step)
        return self._finish(batch, step, hidden, logits)

    def close(self) -> None:
        """Frees the model, the KV cache and all buffers; the runner is of no use afterwards. Safe to call twice."""
        self._close_graphs()
        for name in (
            "graphs",
            "loop",
            "mixed",
            "whole",
            "model",
            "kv_cache",
            "buffers",
            "sampler",
            "grammars",
            "prompt_logprobs",
            "table",
            "sampling",
        ):
            if hasattr(self, name):
                delattr(self, name)
        self.platform.empty_cache()

    def _close_graphs(self) -> None:
        # A function of its own: a name left over from this loop would keep the KV cache alive while its memory is given back.
        for holder in (getattr(self, "graphs", None), getattr(self, "loop", None)):
            if holder is not None:
                holder.close()

    def _take_in(self, batch: Batch) -> None:
        """What the batch says of rows."""
        self.table.update(batch)
        self.grammars.update(batch)
        for sequence in batch.added:
            self.sampling.set(self.table.row(sequence.seq_id), sequence)

    def _forward(self, step: StepInputs, fill_in: Callable[[Tensor], None] | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states of the step's tokens [T, H], or of each sequence's last one [B, H] where the step is narrow; and logits [S, V]
        of the sequences that sample, as the head gives them.

        fill_in  puts in input ids that are known on the device alone
        """
        pad_to = self._padded_size(step)
        fwd = self.buffers.load(self.table, step, self.kv_cache.layers, pad_to=pad_to)
        if fill_in is not None:
            fill_in(fwd.input_ids)
        outputs = None if self.graphs is None or pad_to is None else self.graphs.run(fwd)
        hidden, logits = self._compute(fwd) if outputs is None else outputs
        return hidden[: step.hidden_start_loc[-1]], logits[: len(step.logits_indices)]

    def _padded_size(self, step: StepInputs) -> Size | None:
        """Tokens and sequences to pad a step to. Where graphs could be captured it is padded without them too: matrix libraries choose
        their kernels by the number of rows, and enforce_eager shall give the same tokens."""
        if not self.platform.supports_graphs():
            return None
        num_tokens, num_seqs = step.num_tokens, len(step.rows)
        if step.is_decode:
            size = padded_size(num_seqs, self.config.max_num_seqs)
            return None if size is None else (size, size)
        if step.num_new.max() == 1 or num_tokens > GRAPH_BYTES // self.plan.weights_bytes:
            return None
        if narrows(num_tokens, num_seqs) and not step.narrow:
            return None  # hidden states of all rows are asked for, which graphs of that size do not give
        return padded_step(num_tokens, num_seqs, (self.config.max_num_batched_tokens, self.config.max_num_seqs))

    def _compute(self, fwd: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Hidden states [T, H] or [B, H] and logits [S, V] of a step on the device; this is what a graph captures."""
        hidden: Tensor = self.model(fwd.input_ids, fwd)
        every_row = fwd.last_rows is None and fwd.logits_indices.shape[0] == hidden.shape[0]
        return hidden, self.model.compute_logits(hidden if every_row else hidden[fwd.logits_indices])

    def _wide_logits(self, hidden: Tensor) -> Tensor:
        """[S, V] fp32 of hidden states [S, H]."""
        logits: Tensor = self.model.compute_logits(hidden)
        return logits.float()

    def _raw_logits(self, fwd: ForwardBatch) -> Tensor:
        return decode_logits(self.model, self.whole, fwd)

    def _likeliest(self, fwd: ForwardBatch) -> Tensor:
        return decode_likeliest(self.model, self.whole, self.sampler.greedy, fwd)

    def _finish(self, batch: Batch, step: StepInputs, hidden: Tensor, logits: Tensor) -> StepResult:
        """Samples and results; the device is waited for once."""
        out = OneCopy()
        not_finite = out.add((~hidden.isfinite().all(-1)).int())
        prompts = self.prompt_logprobs.collect(hidden, step, self._wide_logits, out)
        rows = step.rows[step.samples]
        sampled = self.sampler.sample(logits, rows, out) if len(rows) else NOTHING_SAMPLED
        arrays = out.fetch()
        tokens = np.full(len(step.rows), NO_TOKEN)
        tokens[step.samples] = self.sampler.token_ids(sampled, arrays)
        tokens[np.add.reduceat(arrays[not_finite], step.hidden_start_loc[:-1]) > 0] = NOT_FINITE
        tokens[[place for place, slices in prompts.items() if not self.prompt_logprobs.finite(slices, arrays)]] = (
            NOT_FINITE
        )
        self._advance(step, tokens)
        results = [_result(s.seq_id, token) for s, token in zip(batch.scheduled, tokens.tolist(), strict=True)]
        self._add_logprobs(results, step, sampled, arrays)
        for place, slices in prompts.items():
            if results[place].error is None:
                entries = self.prompt_logprobs.entries(slices, arrays)
                results[place] = replace(results[place], prompt_logprobs=entries)
        return StepResult(results)

    def _advance(self, step: StepInputs, tokens: NDArray[np.int64]) -> None:
        """Counts the step's tokens as computed and appends the sampled ones. What a failed sequence wrote is wiped from the cache, so
        that no NaN waits there for the next owner of its blocks."""
        self.table.num_computed[step.rows] += step.num_new
        good = tokens >= 0
        self.table.append(step.rows[good], tokens[good])
        failed = np.repeat(tokens == NOT_FINITE, step.num_new)
        if failed.any():
            self.kv_cache.clear_slots(torch.from_numpy(step.slot_mapping[failed]).to(self.platform.device()))

    def _wipe(self, row: int, first: int) -> None:
        """Clears what this row may have written from its position `first` on."""
        size = self.table.block_size
        positions = np.arange(first, self.table.num_blocks[row] * size)
        slots = self.table.block_tables[row, positions // size].astype(np.int64) * size + positions % size
        self.kv_cache.clear_slots(torch.from_numpy(slots).to(self.platform.device()))

    def _add_logprobs(self, results: list[SequenceResult], step: StepInputs, sampled: Sampled, arrays: Arrays) -> None:
        if all(parts is None for parts in sampled.logprobs):
            return
        places = np.flatnonzero(step.samples).tolist()
        for place, entry in zip(places, self.sampler.logprobs(sampled, step.rows[places], arrays), strict=True):
            if entry is not None and results[place].error is None:
                results[place] = replace(results[place], logprobs=LogprobColumns.of([entry]))

    def _log_capacity(self) -> None:
        name = "CPU" if self.config.device == "cpu" else "GPU"
        length = self.config.max_model_len
        logger.info("%s KV cache size: %s tokens", name, f"{self.plan.kv_tokens:,}")
        concurrency = self.plan.max_concurrency(length)
        logger.info("Maximum concurrency for %s tokens per request: %.2fx", f"{length:,}", concurrency)


def results_of(flight: Flight, tokens: NDArray[np.int32], failed: NDArray[np.bool_]) -> list[SequenceResult]:
    """Results of the steps of `flight`, which gave tokens [K, B]; failed [B]."""
    rows = zip(
        flight.batch.scheduled,
        tokens.T.tolist(),
        failed.tolist(),
        columns_of(tokens, flight.scores, flight.num_logprobs),
        strict=True,
    )
    many, results = flight.batch.decode_steps, []
    for s, column, bad, logprobs in rows:
        if bad:
            results.append(SequenceResult(s.seq_id, [], error=NOT_FINITE_ERROR))
            continue
        count = s.num_new_tokens if many else int(column[0] >= 0)
        results.append(SequenceResult(s.seq_id, column[:count], None if logprobs is None else logprobs.first(count)))
    return results


def decode_steps(weights_bytes: int) -> int:
    """Decoding steps to ask the device for at once: enough to keep it busy for a few milliseconds, so that newcomers hardly wait."""
    return max(1, min(MAX_DECODE_STEPS, DECODE_BYTES // weights_bytes))


def _result(seq_id: int, token: int) -> SequenceResult:
    if token >= 0:
        return SequenceResult(seq_id, [token])
    return SequenceResult(seq_id, [], error=ERRORS.get(token))


def _dtype(config: EngineConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype
