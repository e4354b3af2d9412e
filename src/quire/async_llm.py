"""AsyncLLM: the model of this process for code in event loops. Importing this file loads no torch; making an AsyncLLM does."""

import itertools
import weakref
from collections.abc import AsyncIterator
from typing import Any

from quire.config import EngineArgs
from quire.core.outputs import EngineOutput
from quire.core.params import SamplingParams
from quire.engine.engine_thread import EngineThread, Mailbox
from quire.engine.stream import RequestStream
from quire.head_start import head_start
from quire.legacy import engine_args
from quire.llm import refuse_lora, say_if_bundled, show_lines
from quire.outputs import RequestOutput


class AsyncLLM:
    """The engine runs on its own thread, and sleeps while there is nothing to do; several event loops may share one.

    model   folder, hub name, or builtin:tiny; without one, the bundled model
    kwargs  as for LLM
    Raises SetupError types. Making one takes as long as loading the model.
    """

    def __init__(self, model: str | None = None, **kwargs: Any) -> None:
        self._start(engine_args({"model": None if model is None else str(model), **kwargs}))

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "AsyncLLM":
        """The same from an options object."""
        llm = cls.__new__(cls)
        llm._start(args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        show_lines()
        say_if_bundled(args.model)
        with head_start(args.device):
            # Imported here because it brings torch, which takes two seconds that `import quire` must not cost.
            from quire.engine.llm_engine import load

            engine, frontend = load(args, serving=True)
        self.model_config = engine.config
        self._frontend = frontend
        self._thread = EngineThread(engine)
        self._labels = itertools.count()
        self._live: dict[str, tuple[RequestStream, Mailbox]] = {}
        self._close = weakref.finalize(self, self._thread.stop)  # when it is dropped, and at the end of the program

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        lora_request: None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Continues one prompt; yields outputs as it grows, as sampling_params.output_kind says.

        Leaving the loop, closing the iterator or cancelling the task ends the request in the engine.
        request_id  the caller's name for it; need not be unique
        Raises InvalidRequest types, QueueFull, EngineUnavailable.
        """
        refuse_lora(lora_request)
        label = str(next(self._labels)) if request_id is None else request_id
        stream = self._frontend.open(prompt, sampling_params, label=label, priority=priority)
        mailbox = Mailbox()
        self._thread.add(stream.request, mailbox)
        self._live[stream.request.id] = (stream, mailbox)
        try:
            while not stream.finished:
                for output in self._read(stream, await mailbox.take()):
                    yield output
        finally:
            self._live.pop(stream.request.id, None)
            self._thread.abort(stream.request.id)

    async def abort(self, request_id: str | list[str]) -> None:
        """Ends requests by the caller's name; their iterators yield a last output with finish_reason "abort"."""
        names = {request_id} if isinstance(request_id, str) else set(request_id)
        for stream, mailbox in list(self._live.values()):
            if stream.label in names:
                mailbox.loop.call_soon_threadsafe(mailbox.close)

    async def get_tokenizer(self) -> Any:
        """The transformers tokenizer of the model."""
        tokenizer = self._frontend.tokenizer
        return None if tokenizer is None else tokenizer.hf

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no params."""
        return self._frontend.default_params()

    def close(self) -> None:
        """Stops the engine and frees the model. Live requests raise EngineUnavailable. Harmless when done before."""
        self._close()

    shutdown = close

    def __enter__(self) -> "AsyncLLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, stream: RequestStream, outputs: list[EngineOutput]) -> list[RequestOutput]:
        """What the caller should see of these; no outputs at all mean that the request was given up."""
        seen = [stream.push(output) for output in outputs] if outputs else [stream.cancel()]
        for index in stream.take_unwanted():
            self._thread.abort(stream.request.id, index)
        return [output for output in seen if output is not None]
