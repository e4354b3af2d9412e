"""RequestStream: what the engine reports of one request -> RequestOutputs for the caller. Text is made here; no torch.

Stop strings live here and not in core, because only text shows them. When one is found the engine still computes that sequence:
`take_unwanted` says so, and whoever drives the engine aborts it.
"""

import time
from dataclasses import replace

from quire.core.outputs import EngineOutput
from quire.core.params import RequestOutputKind, SamplingParams
from quire.core.request import Request
from quire.engine.logprob_store import LogprobStore, logprob_dict
from quire.outputs import (
    CompletionOutput,
    PromptLogprobs,
    RequestMetrics,
    RequestOutput,
    SampleLogprobs,
)
from quire.text.detokenizer import IncrementalDetokenizer, StopChecker
from quire.text.tokenizer import Tokenizer


class RequestStream:
    """One request's way back. Not thread-safe; `push` takes its outputs in the order the engine made them.

    request    what the engine was given
    label      the caller's name for it, shown as RequestOutput.request_id
    prompt     its text, if it had one
    tokenizer  None: token ids alone, every text is empty
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer | None, *, label: str | None = None, prompt: str | None = None
    ) -> None:
        self.request = request
        self.label = request.id if label is None else label
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._sequences = [_Sequence(index, request, tokenizer) for index in range(request.params.n)]
        self._num_growing = request.params.n
        self._unwanted: list[int] = []
        self._prompt_logprobs: PromptLogprobs | None = None
        self._num_cached_tokens = 0
        self._metrics = RequestMetrics(time.monotonic())

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended, for the caller."""
        return self._num_growing == 0

    def take_unwanted(self) -> list[int]:
        """Indices of sequences that have ended for the caller and that the engine goes on computing; each is told once."""
        taken, self._unwanted = self._unwanted, []
        return taken

    def finish_reason(self, index: int) -> str | None:
        """Why one of the sequences has ended for the caller; None while it runs."""
        return self._sequences[index].finish_reason

    def push(self, output: EngineOutput) -> RequestOutput | None:
        """Takes what a step gave; returns what the caller should see now, if anything."""
        sequence = self._sequences[output.index]
        if sequence.finish_reason is not None:
            return None  # tokens after a stop string
        self._note(output)
        if self.request.params.output_kind is RequestOutputKind.FINAL_ONLY and sequence.hold(output):
            return None
        new = sequence.push(output)
        if sequence.finish_reason is not None:
            self._num_growing -= 1
            if output.finish_reason is None:
                self._unwanted.append(output.index)
        return self._report(new)

    def cancel(self) -> RequestOutput | None:
        """Ends every unfinished sequence with reason "abort". Returns the last output, None when all had ended before."""
        if self.finished:
            return None
        for sequence in self._sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "abort"
                self._unwanted.append(sequence.index)
        self._num_growing = 0
        self._metrics = replace(self._metrics, finished_time=time.monotonic())
        return self._output([sequence.whole() for sequence in self._sequences])

    def _note(self, output: EngineOutput) -> None:
        if self._metrics.first_token_time is None and output.token_ids:
            self._metrics = replace(self._metrics, first_token_time=time.monotonic())
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = [None, *(logprob_dict(entry, self._tokenizer) for entry in output.prompt_logprobs)]
        if output.num_cached_tokens > self._num_cached_tokens:
            self._num_cached_tokens = output.num_cached_tokens

    def _report(self, new: CompletionOutput) -> RequestOutput | None:
        if self.finished:
            self._metrics = replace(self._metrics, finished_time=time.monotonic())
        kind = self.request.params.output_kind
        if kind is RequestOutputKind.DELTA:
            return self._output([new])
        if kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        return self._output([each.whole() for each in self._sequences])

    def _output(self, completions: list[CompletionOutput]) -> RequestOutput:
        return RequestOutput(
            self.label,
            self.prompt,
            self.request.prompt_token_ids,
            self._prompt_logprobs,
            completions,
            self.finished,
            metrics=self._metrics,
            num_cached_tokens=self._num_cached_tokens,
        )


class _Sequence:
    """One of the n sequences: its tokens, text and end."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer | None) -> None:
        params = request.params
        self.index = index
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self._error: str | None = None
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._logprobs = None if params.logprobs is None else LogprobStore(tokenizer)
        self._text = _Text(params, tokenizer if params.detokenize else None, request.prompt_token_ids)
        self._may_hold = not params.stop_strings
        self._held_token_ids: list[int] = []

    def hold(self, output: EngineOutput) -> bool:
        """Keeps an output for later, if nothing can end here: many tokens at once are turned into text faster than one by one."""
        if output.finish_reason is not None or not self._may_hold:
            return False
        self._held_token_ids += (
            output.token_ids
        )  # not the outputs themselves: objects that pile up keep the garbage collector busy
        if self._logprobs is not None and output.logprobs is not None:
            self._logprobs.extend(output.logprobs)
        return True

    def push(self, output: EngineOutput) -> CompletionOutput:
        """Takes new tokens; returns them, and their text, alone."""
        num_held = len(self._held_token_ids)
        if num_held:
            output = replace(output, token_ids=self._held_token_ids + output.token_ids)
            self._held_token_ids = []
        self._error = output.error
        text, num_taken = self._text.push(output.token_ids, output.finish_reason)
        if self._text.stopped_by is not None:
            self._stop_reason, self.finish_reason = self._text.stopped_by, "stop"
        else:
            self._stop_reason, self.finish_reason = output.stop_reason, output.finish_reason
        token_ids = output.token_ids[:num_taken]
        self._token_ids += token_ids
        if self._logprobs is None:
            return self._completion(text, token_ids, None)
        if output.logprobs is not None:
            self._logprobs.extend(output.logprobs.first(num_taken - num_held))
        return self._completion(text, token_ids, self._logprobs.since(len(self._logprobs) - len(token_ids)))

    def whole(self) -> CompletionOutput:
        """All tokens and text so far."""
        if self._held_token_ids:  # cancelled on the way
            self.push(EngineOutput("", self.index, [], finish_reason=self.finish_reason))
        logprobs = None if self._logprobs is None else self._logprobs.since(0)
        return self._completion(self._text.whole(), list(self._token_ids), logprobs)

    def _completion(self, text: str, token_ids: list[int], logprobs: SampleLogprobs | None) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=None if self._logprobs is None else self._logprobs.total,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            error=self._error,
        )


class _Text:
    """Text of one sequence, ended by the first stop string."""

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer | None, prompt_token_ids: list[int]) -> None:
        self.stopped_by: str | None = None
        self._show_stop_token = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._parts: list[str] = []
        self._detokenizer = (
            IncrementalDetokenizer(
                tokenizer, params.skip_special_tokens, params.spaces_between_special_tokens, prompt_token_ids
            )
            if tokenizer
            else None
        )
        stop = params.stop_strings
        self._checker = StopChecker(stop, params.include_stop_str_in_output) if stop else None

    def push(self, token_ids: list[int], finish_reason: str | None) -> tuple[str, int]:
        """Returns the text that may be shown now, and how many of the tokens belong to the sequence."""
        if self._detokenizer is None:
            return "", len(token_ids)
        visible = list(token_ids)
        if finish_reason == "stop" and visible and not self._show_stop_token:
            visible.pop()  # the token that ended the sequence is kept as a token, not as text
        num_taken = len(token_ids)
        if self._checker is None:
            text = self._detokenizer.push(visible)
        else:
            text, num_seen = self._push_checked(self._detokenizer, self._checker, visible)
            num_taken = num_seen if self.stopped_by is not None else num_taken
        if finish_reason is not None and self.stopped_by is None:
            text += self._flush(self._detokenizer)
        self._parts.append(text)
        return text, num_taken

    def whole(self) -> str:
        """All text so far."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def _push_checked(
        self, detokenizer: IncrementalDetokenizer, checker: StopChecker, token_ids: list[int]
    ) -> tuple[str, int]:
        """Token by token, so that the tokens after the stop string are known. Returns the text and how many were looked at."""
        text = ""
        for num_seen, token_id in enumerate(token_ids, 1):
            self._num_tokens += 1
            delta = detokenizer.push([token_id])
            if self._num_tokens <= self._min_tokens:
                text += delta
                continue
            result = checker.push(delta)
            text += result.text
            if result.stopped:
                self.stopped_by = result.matched
                return text, num_seen
        return text, len(token_ids)

    def _flush(self, detokenizer: IncrementalDetokenizer) -> str:
        tail = detokenizer.flush()
        if self._checker is None:
            return tail
        result = self._checker.push(tail)
        if result.stopped:
            self.stopped_by = result.matched
            return result.text
        return result.text + self._checker.flush()
