"""Outbox: what steps gave, on its way to the API process; on a CPU joined for a few hundredths of a second.

There the API process needs the very cores that the model computes on, and pays for each piece of text, however short. A sequence's
first tokens and its end leave at once; tokens between them wait at most HOLD_S, and go together.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from quire.core.outputs import EngineOutput

HOLD_S = {"cpu": 0.02}  # by device; others have cores to spare
Key = tuple[str, int]


class Outbox:
    """send is called with outputs, at most one a sequence, and the token counts of the steps since the last call; from two threads,
    never at once. hold_s 0: nothing waits.
    """

    def __init__(self, send: Callable[[list[EngineOutput], list[int]], None], hold_s: float = 0.0) -> None:
        self.hold_s = hold_s
        self._send = send
        self._held: dict[
            Key, EngineOutput | None
        ] = {}  # sequences whose first tokens have left, and what waits of them
        self._steps: list[int] = []
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, outputs: list[EngineOutput], num_step_tokens: int) -> None:
        """What a step gave."""
        with self._lock:
            self._steps.append(num_step_tokens)
            urgent = [output for output in map(self._sort, outputs) if output is not None] if self.hold_s else outputs
            if urgent or not self.hold_s:
                self._leave(urgent)
        if self.hold_s:
            self._filled.set()
            self._start()

    def forget(self, request_id: str, indices: "set[int]") -> None:
        """Nobody waits for these sequences."""
        with self._lock:
            for index in indices:
                self._held.pop((request_id, index), None)

    def close(self) -> None:
        """Nothing more is sent."""
        with self._lock:
            self._closed = True
            self._held.clear()
        self._filled.set()

    def _sort(self, output: EngineOutput) -> EngineOutput | None:
        """The output if it must leave now, with what waited of its sequence; None if it waits."""
        key = (output.request_id, output.index)
        if output.finish_reason is not None:
            waiting = self._held.pop(key, None)
            return output if waiting is None else join(waiting, output)
        if key not in self._held:
            self._held[key] = None
            return output
        waiting = self._held[key]
        if waiting is None:
            self._held[key] = output
        else:  # in place: it is ours alone, and has nothing but tokens and their log-probabilities
            waiting.token_ids.extend(output.token_ids)
            if waiting.logprobs is not None:
                waiting.logprobs.extend(output.logprobs or ())
        return None

    def _leave(self, outputs: list[EngineOutput]) -> None:
        steps, self._steps = self._steps, []
        if not self._closed:
            self._send(outputs, steps)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Sends what waits, every hold_s while there is anything."""
        while not self._closed:
            self._filled.wait()
            self._filled.clear()
            time.sleep(self.hold_s)
            with self._lock:
                waiting = {key: output for key, output in self._held.items() if output is not None}
                self._held.update(dict.fromkeys(waiting))
                if waiting:
                    self._leave(list(waiting.values()))


def joined(outputs: list[EngineOutput]) -> list[EngineOutput]:
    """The same outputs with those of one sequence made one."""
    if len(outputs) == 1:
        return outputs
    found: dict[Key, EngineOutput] = {}
    for output in outputs:
        key = (output.request_id, output.index)
        found[key] = join(found[key], output) if key in found else output
    return list(found.values())


def join(first: EngineOutput, second: EngineOutput) -> EngineOutput:
    """Two outputs of a sequence as one."""
    logprobs = None if second.logprobs is None else [*(first.logprobs or []), *second.logprobs]
    return replace(
        second,
        token_ids=[*first.token_ids, *second.token_ids],
        logprobs=logprobs,
        prompt_logprobs=first.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens,
    )
