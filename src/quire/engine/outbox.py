"""Outbox: what steps gave, on its way to the API process; on a CPU joined for a few hundredths of a second.

There the API process needs the very cores that the model computes on, and pays about 40 µs for each piece of text, however short. A
sequence's first tokens and its end leave at once; tokens between them wait, the longer the more sequences there are, and go together, so
that the API process takes a tenth of a core. One sequence alone never waits.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from quire.core.outputs import EngineOutput

HOLD_EACH_S = {"cpu": 0.0005}  # for each sequence, by device; others have cores to spare
MAX_HOLD_S = 0.03
MIN_HOLD_S = 0.002  # below this nothing waits
Key = tuple[str, int]


class Outbox:
    """send is called with outputs, at most one a sequence, and the token counts of the steps since the last call; from two threads,
    never at once.

    each_s  seconds that outputs may wait for each sequence that there is; 0: nothing waits
    max_s   and at most
    """

    def __init__(
        self,
        send: Callable[[list[EngineOutput], list[int]], None],
        each_s: float = 0.0,
        max_s: float = MAX_HOLD_S,
    ) -> None:
        self.each_s = each_s
        self._max_s = max_s
        self._send = send
        # Sequences whose first tokens have left, and what waits of them.
        self._held: dict[Key, EngineOutput | None] = {}
        self._steps: list[int] = []
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, outputs: list[EngineOutput], num_step_tokens: int) -> None:
        """What a step gave."""
        with self._lock:
            self._steps.append(num_step_tokens)
            if not self.each_s:
                self._leave(outputs)
                return
            urgent = [output for output in map(self._sort, outputs) if output is not None]
            if self._hold_s < MIN_HOLD_S:
                urgent += self._take()
            if urgent:
                self._leave(urgent)
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
        self._held[key] = output if waiting is None else join(waiting, output)
        return None

    @property
    def _hold_s(self) -> float:
        return min(self._max_s, self.each_s * len(self._held))

    def _take(self) -> list[EngineOutput]:
        """What waits."""
        waiting = {key: output for key, output in self._held.items() if output is not None}
        self._held.update(dict.fromkeys(waiting))
        return list(waiting.values())

    def _leave(self, outputs: list[EngineOutput]) -> None:
        steps, self._steps = self._steps, []
        if not self._closed:
            self._send(outputs, steps)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Sends what waits, again and again while there is anything."""
        while not self._closed:
            self._filled.wait()
            self._filled.clear()
            time.sleep(self._hold_s)
            with self._lock:
                if waiting := self._take():
                    self._leave(waiting)


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
    logprobs = first.logprobs
    if second.logprobs is not None:  # an error has none, and those of the tokens before it stay
        logprobs = second.logprobs if logprobs is None else logprobs + second.logprobs
    return replace(
        second,
        token_ids=[*first.token_ids, *second.token_ids],
        logprobs=logprobs,
        prompt_logprobs=first.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens,
    )
