"""LLM: generate text with a model in this process. Importing this file loads no torch; making an LLM does."""

import contextlib
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from quire.beam_search import BeamSearch
from quire.config import BUILTIN_MODEL, BUILTIN_PREFIX, EngineArgs
from quire.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.engine.intake import Intake
from quire.engine.progress import Progress
from quire.engine.prompts import one_for_each, split_prompts
from quire.engine.stream import RequestStream
from quire.errors import InvalidRequest
from quire.head_start import head_start
from quire.legacy import NO_EMBEDDINGS, engine_args
from quire.log import configure as configure_logging
from quire.outputs import BeamSearchOutput, RequestOutput

if TYPE_CHECKING:
    from quire.engine.llm_engine import LLMEngine

logger = logging.getLogger(__name__)
UseTqdm = bool | Callable[..., Any]


class LLM:
    """A model, loaded and ready.

    model   folder, hub name, or builtin:tiny; without one, the bundled model
    kwargs  the fields of EngineArgs, and the names that older versions of vLLM took (mapped with a line, or refused)
    Raises SetupError types; ConfigError names the argument at fault.
    """

    llm_engine: "LLMEngine"

    def __init__(self, model: str | None = None, **kwargs: Any) -> None:
        self._start(engine_args({"disable_log_stats": True, "model": None if model is None else str(model), **kwargs}))

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "LLM":
        """The same from an options object."""
        llm = cls.__new__(cls)
        llm._start(args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        show_lines()
        say_if_bundled(args.model)
        self._labels = itertools.count()
        with head_start(args.device):
            # Imported here because it brings torch, which takes two seconds that `import quire` must not cost.
            from quire.engine.llm_engine import LLMEngine

            self.llm_engine = LLMEngine.from_engine_args(args)
        self.model_config = self.llm_engine.config
        self._close = weakref.finalize(self, self.llm_engine.close)  # when it is dropped, and at the end of the program

    @overload
    def generate(
        self, prompts: Any, sampling_params: Any = ..., *, use_tqdm: UseTqdm = ..., stream: Literal[False] = ...,
        priority: int | list[int] | None = ..., lora_request: None = ...,
    ) -> list[RequestOutput]: ...  # fmt: skip

    @overload
    def generate(
        self, prompts: Any, sampling_params: Any = ..., *, use_tqdm: UseTqdm = ..., stream: Literal[True],
        priority: int | list[int] | None = ..., lora_request: None = ...,
    ) -> Iterator[RequestOutput]: ...  # fmt: skip

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: UseTqdm = True,
        stream: bool = False,
        priority: int | list[int] | None = None,
        lora_request: None = None,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Continues one prompt or many.

        prompts          a string, a list of token ids, a dict with "prompt" or "prompt_token_ids", or a list of these
        sampling_params  one for all or a list with one for each; None = the checkpoint's defaults
        stream           False: the finished outputs in the order of the prompts. True: an iterator of outputs as they grow,
                         those of several prompts mixed; each holds all text so far, or, with output_kind=DELTA, the new
        priority         lower runs first, with scheduling_policy="priority"
        Raises InvalidRequest types, wherever the mistake is, and gives no output then. A prompt that fails alone has finish_reason "error".
        """
        intake = self._open(split_prompts(prompts), sampling_params, priority, lora_request)
        return self._stream(intake.open_all()) if stream else self._run(intake, use_tqdm)

    @overload
    def chat(
        self, messages: Any, sampling_params: Any = ..., use_tqdm: UseTqdm = ..., lora_request: None = ..., *,
        stream: Literal[False] = ..., **options: Any,
    ) -> list[RequestOutput]: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Any, sampling_params: Any = ..., use_tqdm: UseTqdm = ..., lora_request: None = ..., *,
        stream: Literal[True], **options: Any,
    ) -> Iterator[RequestOutput]: ...  # fmt: skip

    def chat(  # type: ignore[misc]  # the overloads' **options stand for the keywords below
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        *,
        stream: bool = False,
        priority: int | list[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Answers one conversation (a list of {"role", "content"}) or a list of them, through the model's chat template.

        chat_template  a Jinja file or text in place of the model's
        The rest as `generate`. Raises InvalidRequest types.
        """
        if chat_template_content_format not in ("auto", "string", "openai"):
            raise InvalidRequest(
                f"chat_template_content_format must be auto, string or openai, not {chat_template_content_format!r}",
                "chat_template_content_format",
            )
        frontend = self.llm_engine.frontend
        picked = frontend.templates(chat_template).pick(tools=tools)
        wanted = {"auto": picked.reads_parts, "string": False, "openai": True}[chat_template_content_format]
        if wanted != picked.reads_parts:
            raise InvalidRequest(
                f"chat_template_content_format={chat_template_content_format!r} is not what this template reads; use auto",
                "chat_template_content_format",
            )

        def render(conversation: Any) -> str:
            return frontend.chat_prompt(
                conversation,
                template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                template_kwargs=chat_template_kwargs,
            )

        conversations = split_conversations(messages)
        intake = self._open(conversations, sampling_params, priority, lora_request, render, add_special_tokens=False)
        return self._stream(intake.open_all()) if stream else self._run(intake, use_tqdm)

    def beam_search(
        self, prompts: Any, params: BeamSearchParams, *, use_tqdm: UseTqdm = False, lora_request: None = None
    ) -> list[BeamSearchOutput]:
        """The `beam_width` most likely continuations of each prompt, best first. Raises InvalidRequest types."""
        refuse_lora(lora_request)
        frontend = self.llm_engine.frontend
        requests = [frontend.open(prompt, SamplingParams(max_tokens=1)).request for prompt in split_prompts(prompts)]
        search = BeamSearch(frontend, params, [request.prompt_token_ids for request in requests])
        bar = Progress(params.max_tokens, use_tqdm)
        while steps := search.next_steps():
            streams = [self._open_step(ids, search.step_params) for ids in steps]
            search.take(self._run(Intake(self.llm_engine, streams, len(streams)), use_tqdm=False))
        bar.close()
        return search.outputs()

    def get_tokenizer(self) -> Any:
        """The transformers tokenizer of the model."""
        tokenizer = self.llm_engine.frontend.tokenizer
        return None if tokenizer is None else tokenizer.hf

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no params: the checkpoint's generation_config.json over SamplingParams()."""
        return self.llm_engine.frontend.default_params()

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prompt beginnings. Requests under way are computed again from their start and lose nothing."""
        self.llm_engine.reset_prefix_cache()

    def encode(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Pooling models are not implemented yet. Raises InvalidRequest."""
        raise InvalidRequest(f"{NO_EMBEDDINGS}; use LLM.generate or LLM.chat")

    embed = classify = score = reward = encode

    def close(self) -> None:
        """Frees the model and the KV cache at once. Harmless when done before."""
        self._close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(
        self,
        items: list[Any],
        params: Any,
        priority: Any,
        lora_request: Any,
        render: Callable[[Any], Any] = lambda prompt: prompt,
        *,
        add_special_tokens: bool = True,
    ) -> Intake:
        """Requests for all items, each of which is made a prompt by `render`, and checked, when its turn comes."""
        refuse_lora(lora_request)
        each_params = one_for_each(params, len(items), "sampling_params", SamplingParams)
        each_priority = one_for_each(priority, len(items), "priority", int)
        opened = (
            self.llm_engine.frontend.open(
                render(item),
                each_params[i],
                label=str(next(self._labels)),
                priority=each_priority[i] or 0,
                add_special_tokens=add_special_tokens,
            )
            for i, item in enumerate(items)
        )
        by_priority = self.model_config.scheduling_policy == "priority" and len(set(each_priority)) > 1
        return Intake(self.llm_engine, opened, len(items), all_at_once=by_priority)

    def _run(self, intake: Intake, use_tqdm: UseTqdm) -> list[RequestOutput]:
        intake.output_kind = RequestOutputKind.FINAL_ONLY
        done: dict[str, RequestOutput] = {}
        with contextlib.ExitStack() as stack:
            stack.callback(intake.discard)  # also when no bar can be made
            intake.take_first()
            bar = Progress(intake.num_requests, use_tqdm)
            stack.callback(bar.close)
            for output in self._stream(intake):
                done[output.request_id] = output
                bar.finished(output)
                say_if_failed(output)
        return [done[stream.label] for stream in intake.taken]

    def _stream(self, intake: Intake) -> Iterator[RequestOutput]:
        num_left = intake.num_requests
        try:
            intake.take_first()
            while num_left:
                if not intake.inbox:
                    self.llm_engine.advance(intake.take_more)
                    intake.raise_mistake()
                while intake.inbox:
                    output = intake.inbox.popleft()
                    num_left -= output.finished
                    yield output
        finally:  # also when the caller leaves its loop early, or presses Ctrl-C
            intake.discard()

    def _open_step(self, token_ids: list[int], params: SamplingParams) -> RequestStream:
        return self.llm_engine.frontend.open(token_ids, params, label=str(next(self._labels)))


def split_conversations(messages: Any) -> list[Any]:
    """One conversation or several -> a list of conversations."""
    several = isinstance(messages, Sequence) and len(messages) > 0 and isinstance(messages[0], list | tuple)
    return list(messages) if several else [messages]


def refuse_lora(lora_request: Any) -> None:
    """Raises InvalidRequest if an adapter is named."""
    if lora_request is not None:
        raise InvalidRequest(
            "LoRA adapters are not implemented yet; merge the adapter into the checkpoint", "lora_request"
        )


def say_if_failed(output: RequestOutput) -> None:
    """A line for each sequence that failed alone, so that nobody takes its text for an answer."""
    for completion in output.outputs:
        if completion.error is not None:
            logger.error("request %s, sequence %d failed: %s", output.request_id, completion.index, completion.error)


def show_lines() -> None:
    """Sends quire's log lines to stderr, unless the program has set up logging by itself."""
    if not logging.getLogger("quire").hasHandlers():
        configure_logging()


def say_if_bundled(model: str | None) -> None:
    """The bundled model is for trying the software; nobody shall take it for more."""
    if model is None or model.startswith(BUILTIN_PREFIX):
        logger.warning(
            "*** %s: the small bundled demo model, for trying the software, not for answers. Name a model to use another. ***",
            model or BUILTIN_MODEL,
        )
