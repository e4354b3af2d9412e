"""Engine: the loop. schedule, execute, commit; everything else hangs off these three calls.

Where nobody in a batch needs the host to choose its tokens, a second loop stands beside the first: the same three calls, with the next
batch asked for before the tokens of the last are known. The batch says which of the two it is for.
"""

import gc
import logging
import math
from collections.abc import Callable

from quire.config import EngineConfig
from quire.core.batch import Batch, StepResult
from quire.core.config import SchedulerConfig, SchedulerStats
from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.core.scheduler import Scheduler
from quire.engine.executor import Executor
from quire.engine.throughput import ThroughputLog
from quire.platform import Platform, select_platform
from quire.runner.flight import BATCHES_UNDER_WAY, Flight
from quire.runner.model_runner import ModelRunner

logger = logging.getLogger(__name__)

# Of the garbage collector. A request is some dozens of objects, none of which is part of a cycle; at Python's 700 and 10 it would go through all
# requests several times a second, for up to 20 ms, while the device waits.
RARELY = (50_000, 20, 20)


class Engine:
    """One model on one device, and the requests it computes. For one thread at a time.

    config      as resolved
    num_blocks  KV blocks that sequences can have
    log_stats   a line of rates every ten seconds while there is work
    on_admitted  called with ids of requests that leave the queue, before the step that computes them
    """

    def __init__(
        self, config: EngineConfig, runner: ModelRunner, platform: Platform, *, log_stats: bool = True
    ) -> None:
        self.config = config
        self.runner = runner
        self.num_blocks = runner.num_blocks - 1  # block 0 is padding's
        sizes = tuple(runner.decode_sizes)
        self.scheduler = Scheduler(scheduler_config(config, runner.num_blocks, runner.max_decode_steps, sizes))
        self._executor = Executor(runner, platform, self.scheduler.rows_of)
        self._throughput = ThroughputLog() if log_stats else None
        self._flight: Flight | None = None  # a batch that nobody has waited for
        self._thresholds: tuple[int, int, int] | None = None  # of the garbage collector, before this engine came
        self.on_admitted: Callable[[list[str]], None] | None = None

    @classmethod
    def from_config(cls, config: EngineConfig, *, log_stats: bool = True) -> "Engine":
        """Loads the model. Raises SetupError types."""
        platform = select_platform(config.device)
        engine = cls(config, ModelRunner.load(config, platform), platform, log_stats=log_stats)
        gc.freeze()  # what is here now stays: else the collector goes through all of torch again and again, amid steps
        if gc.get_threshold() != RARELY:  # else another engine will put back what was there before it
            engine._thresholds = gc.get_threshold()
            gc.set_threshold(*RARELY)
        return engine

    def add(self, request: Request) -> None:
        """Takes in a request. Raises ClientError types when it can never be computed or too many wait."""
        if self._throughput is not None and not self.scheduler.has_work():
            self._throughput.restart()
        self.scheduler.add(request)

    def num_to_compute(self, request: Request) -> int:
        """Tokens of its prompt that are to be computed, as far as a glance at the prefix cache tells."""
        return 0 if self.scheduler.kv.knows_first_block(request) else len(request.prompt_token_ids)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request (or one of its sequences) without an output. Unknown and ended ones are ignored."""
        self.scheduler.abort(request_id, index)

    @property
    def num_tokens_at_once(self) -> float:
        """Prompt tokens that fill the steps which the device is asked for before any is waited for; infinite if each is waited for."""
        return BATCHES_UNDER_WAY * self.config.max_num_batched_tokens if self.runner.max_decode_steps else math.inf

    def step(self, meanwhile: Callable[[], None] | None = None) -> list[EngineOutput]:
        """One batch: a step for all requests, or several decoding steps. Returns what is new.

        meanwhile  called once the device has been asked for what it can be; raises nothing. May add requests
        Raises EngineUnavailable when the device is lost; the engine is of no use any more then.
        """
        if self._flight is not None:
            return self._step_ahead(self._flight.batch, meanwhile)
        batch = self.scheduler.schedule()
        self._tell_admitted(batch)
        if batch.unattended:
            return self._step_ahead(batch, meanwhile)
        try:
            if meanwhile is not None:
                meanwhile()
            result = self._executor.execute(batch)
        except BaseException:  # Ctrl-C among them: sequences stay as they were before the step
            self.scheduler.abandon(batch)
            raise
        return self._commit(batch, result)

    def _step_ahead(self, batch: Batch, meanwhile: Callable[[], None] | None) -> list[EngineOutput]:
        """`step` for a batch that is under way or may be: asks for the one after it before it waits for what it gives, so that the
        device has work while the host handles tokens."""
        try:
            flight = self._flight or self.runner.start(batch)
            follower = self.scheduler.schedule_ahead()
            if follower is not None:
                self._tell_admitted(follower)
            self._flight = None if follower is None else self.runner.start(follower)
            if meanwhile is not None:
                meanwhile()
            result = self.runner.finish(flight, self.scheduler.runs)
        except BaseException as error:
            self._flight = None
            self.scheduler.abandon_all()
            if not isinstance(error, Exception):  # Ctrl-C
                self.runner.platform.synchronize()  # what it has not read yet of pinned memory, the next steps would write over
                raise
            self._executor.check_device(error)
            # Steps one at a time show whose fault it was.
            logger.exception("a batch that nobody waited for failed; from now on steps run one at a time")
            self.scheduler.stop_lengthening()
            return []
        return self._commit(batch, result)

    def _tell_admitted(self, batch: Batch) -> None:
        if batch.added and self.on_admitted is not None:
            self.on_admitted(self.scheduler.admitted(batch))

    def _commit(self, batch: Batch, result: StepResult) -> list[EngineOutput]:
        outputs = self.scheduler.commit(batch, result)
        if self._throughput is not None:
            self._throughput.record(batch, outputs, self.stats)
        return outputs

    def has_work(self) -> bool:
        """Whether a request has not ended."""
        return self.scheduler.has_work()

    def stats(self) -> SchedulerStats:
        """How things stand now."""
        return self.scheduler.stats()

    def close(self) -> None:
        """Frees the model and the KV cache. Harmless when done before."""
        self.runner.close()
        gc.unfreeze()
        if self._thresholds is not None:
            gc.set_threshold(*self._thresholds)
            self._thresholds = None


def scheduler_config(
    config: EngineConfig, num_blocks: int, max_decode_steps: int = 0, decode_sizes: tuple[int, ...] = ()
) -> SchedulerConfig:
    """The scheduler's part of the configuration."""
    return SchedulerConfig(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_tokens_with_decoding=config.max_num_tokens_with_decoding,
        max_model_len=config.max_model_len,
        policy=config.scheduling_policy,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        max_num_queued_reqs=config.max_num_queued_reqs,
        max_decode_steps=max_decode_steps,
        decode_sizes=decode_sizes,
    )
