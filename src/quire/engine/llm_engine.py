"""LLMEngine: an Engine and a Frontend in this process, driven by whoever wants outputs. Prompts in, RequestOutputs out."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from quire.config import EngineArgs, EngineConfig
from quire.core.config import SchedulerStats
from quire.core.outputs import EngineOutput
from quire.core.params import SamplingParams
from quire.engine.engine import Engine
from quire.engine.frontend import Frontend
from quire.engine.stream import RequestStream
from quire.errors import EngineUnavailable
from quire.outputs import RequestOutput
from quire.setup import load_config

logger = logging.getLogger(__name__)
Sink = Callable[[RequestOutput], None]


class LLMEngine:
    """Several callers, also in several threads, may share one: each step serves all, and each output goes to its own sink.

    `add_request` and `step` are for those who drive the loop themselves; LLM uses `submit` and `advance`.
    """

    def __init__(self, engine: Engine, frontend: Frontend) -> None:
        self.frontend = frontend
        self._engine: Engine | None = engine
        self._lock = threading.RLock()
        self._live: dict[str, tuple[RequestStream, Sink]] = {}
        self._inbox: deque[RequestOutput] = deque()
        self._failure: BaseException | None = None

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "LLMEngine":
        """Finds and loads the model. Raises SetupError types."""
        return cls(*load(args))

    @property
    def engine(self) -> Engine:
        """The engine. Raises EngineUnavailable once it is closed or lost."""
        if self._failure is not None:
            raise EngineUnavailable(f"the engine has failed: {self._failure}") from self._failure
        if self._engine is None:
            raise EngineUnavailable("the engine is closed")
        return self._engine

    @property
    def config(self) -> EngineConfig:
        """As resolved."""
        return self.engine.config

    @property
    def num_tokens_at_once(self) -> float:
        """As Engine's."""
        return self.engine.num_tokens_at_once

    def num_to_compute(self, stream: RequestStream) -> int:
        """Tokens of a request's prompt that are to be computed, as far as a glance at the prefix cache tells."""
        with self._lock:
            return self.engine.num_to_compute(stream.request)

    def submit(self, stream: RequestStream, sink: Sink) -> None:
        """Gives a request to the engine; what it yields goes to `sink`. Raises ClientError types."""
        with self._lock:
            engine = self.engine
            self._live[stream.request.id] = (stream, sink)  # first: after Ctrl-C in the middle it can be discarded
            try:
                engine.add(stream.request)
            except Exception:
                del self._live[stream.request.id]
                raise

    def advance(self, meanwhile: Callable[[], None] | None = None) -> None:
        """One step for all requests; meanwhile as Engine.step has it. Raises EngineUnavailable when the engine is lost."""
        with self._lock:
            engine = self.engine
            try:
                outputs = engine.step(meanwhile)
            except Exception as error:
                self._failure = error
                self._live.clear()
                raise
            for output in outputs:
                self._deliver(output, engine)

    def discard(self, stream: RequestStream) -> None:
        """Nobody wants this request any more. Harmless when it is done."""
        with self._lock:
            if self._live.pop(stream.request.id, None) is not None and self._engine is not None:
                self._engine.abort(stream.request.id)

    def add_request(
        self, request_id: str, prompt: Any, params: SamplingParams | None = None, *, priority: int = 0
    ) -> None:
        """Queues a request; its outputs come from `step`. Raises ClientError types."""
        self.submit(self.frontend.open(prompt, params, label=request_id, priority=priority), self._inbox.append)

    def abort_request(self, request_ids: str | list[str]) -> None:
        """Gives up the requests that were added under these names; they yield nothing more."""
        names = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        with self._lock:
            for stream, _ in list(self._live.values()):
                if stream.label in names:
                    self.discard(stream)

    def step(self) -> list[RequestOutput]:
        """One step; outputs of the requests that came through `add_request`."""
        with self._lock:
            if self.engine.has_work():
                self.advance()
            return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def has_unfinished_requests(self) -> bool:
        """Whether a request is not done."""
        return bool(self._live)

    def get_num_unfinished_requests(self) -> int:
        """How many are not done."""
        return len(self._live)

    def reset_prefix_cache(self) -> None:
        """Forgets all cached blocks; requests under way are recomputed."""
        with self._lock:
            self.engine.scheduler.reset_prefix_cache()

    def stats(self) -> SchedulerStats:
        """How things stand in the engine."""
        return self.engine.stats()

    def close(self) -> None:
        """Frees model and KV cache; unfinished requests yield nothing more. Harmless when done before."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._live.clear()
        if engine is not None:
            engine.close()

    def _deliver(self, output: EngineOutput, engine: Engine) -> None:
        stream, sink = self._live.get(output.request_id, (None, None))
        if stream is None or sink is None:
            return
        seen = stream.push(output)
        for index in stream.take_unwanted():
            engine.abort(output.request_id, index)
        if stream.finished:
            del self._live[output.request_id]
        if seen is not None:
            sink(seen)


def load(args: EngineArgs, *, serving: bool = False) -> tuple[Engine, Frontend]:
    """Finds and loads a model, and says what was chosen for the user and why. Raises SetupError types."""
    config, decisions = load_config(args, serving=serving)
    for decision in decisions:
        logger.info("%s = %s: %s", decision.name, decision.value, decision.why)
    frontend = Frontend.load(args, config)  # before the weights: its mistakes are found in a moment
    return Engine.from_config(config, log_stats=not args.disable_log_stats), frontend
