"""The journal of live requests: what each client already has, and what to tell an engine, now or after its death.

Plain decisions without I/O: the client asks, and sends what `take_messages` gives.

An engine's death is laid at the door of the requests that it was computing. Requests that were there at two deaths become
suspects: each runs alone until it is past the place where the engine died, and only then do the others go on. A request that
ends an engine while it runs alone is poisoned: it fails, and for a while its like is refused.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.engine.ipc import Abort, Message, Submit
from quire.errors import RequestPoisoned

CLEAR_TOKENS = 4  # a suspect that gets this far beyond the place of the last death is cleared
POISON_MEMORY_S = 600.0
MAX_POISON_MEMORIES = 256


@dataclass
class Entry:
    """One live request.

    emitted    tokens of each sequence that have been handed on
    finished   which sequences have ended
    wire_id    its name with the engine now alive, None while that has not been told of it; a new one for each attempt
    started    the engine has begun to compute it
    deaths     engines that died while they computed it
    marks      len(emitted) of each sequence at the last of these
    """

    request: Request
    emitted: list[list[int]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    wire_id: str | None = None
    attempts: int = 0
    started: bool = False
    deaths: int = 0
    marks: list[int] = field(default_factory=list)
    has_prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        self.emitted = [[] for _ in range(self.request.params.n)]
        self.finished = [False] * self.request.params.n

    @property
    def ended(self) -> bool:
        """Every sequence has ended."""
        return all(self.finished)

    def replay(self) -> Request:
        """The request as the engine must now see it."""
        emitted = tuple(tuple(tokens) for tokens in self.emitted) if any(self.emitted) else ()
        return replace(self.request, id=self.wire_id or self.request.id, emitted_token_ids=emitted)

    def past_marks(self) -> bool:
        """Each sequence has ended or is well past where it was when the engine died."""
        return all(
            done or len(tokens) >= mark + CLEAR_TOKENS
            for done, tokens, mark in zip(self.finished, self.emitted, self.marks, strict=True)
        )


class Journal:
    """All live requests in order of arrival."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.entries: dict[str, Entry] = {}
        self.suspects: list[str] = []
        self.engine_is_up = False
        self._by_wire_id: dict[str, Entry] = {}
        self._submits: list[Request] = []
        self._aborts: list[tuple[str, int | None]] = []
        self._poisons: dict[bytes, float] = {}
        self._clock = clock

    @property
    def num_waiting(self) -> int:
        """Live requests that no engine computes yet."""
        return sum(not entry.started for entry in self.entries.values())

    @property
    def num_running(self) -> int:
        """Sequences that the engine computes."""
        return sum(len(entry.finished) - sum(entry.finished) for entry in self.entries.values() if entry.started)

    def add(self, request: Request) -> Entry:
        """A new request."""
        entry = self.entries[request.id] = Entry(request)
        if self.engine_is_up and not self.suspects:
            self._submit(entry)
        return entry

    def refuse_poison(self, request: Request) -> None:
        """Raises RequestPoisoned for a request whose like has ended engines a while ago."""
        if not self._poisons:
            return
        since = self._poisons.get(_fingerprint(request))
        if since is not None and self._clock() - since < POISON_MEMORY_S:
            raise RequestPoisoned(POISONED)

    def remove(self, request_id: str) -> None:
        """Nobody waits for it any more, or it is done. Unknown ids are ignored."""
        entry = self.entries.pop(request_id, None)
        if entry is not None:
            self._withdraw(entry)
            self._drop_suspect(request_id)

    def stop(self, request_id: str, index: int) -> None:
        """One of its sequences has ended for its client, though the engine does not know: a stop string was found."""
        entry = self.entries.get(request_id)
        if entry is not None and not entry.finished[index]:
            entry.finished[index] = True
            if entry.wire_id is not None:
                self._aborts.append((entry.wire_id, index))
            if entry.ended:
                self.remove(request_id)

    def start(self, wire_ids: list[str]) -> None:
        """The engine begins to compute these."""
        for wire_id in wire_ids:
            if wire_id in self._by_wire_id:
                self._by_wire_id[wire_id].started = True

    def record(self, output: EngineOutput) -> EngineOutput | None:
        """Notes an output and returns it as its client is to see it; None when it is not for anyone.

        An output for a request that is not live means that an abort got lost: the engine is told again.
        """
        entry = self._by_wire_id.get(output.request_id)
        if entry is None:
            if output.finish_reason is None:
                self._aborts.append((output.request_id, None))
            return None
        entry.started = True
        if entry.finished[output.index]:
            return None  # its client has seen its end
        entry.emitted[output.index] += output.token_ids
        entry.finished[output.index] = output.finish_reason is not None
        output = self._as_first_told(entry, output)
        if entry.ended:
            self.remove(entry.request.id)
        elif self.suspects and entry.past_marks():
            self._clear(entry)
        return output

    def request_id_of(self, wire_id: str) -> str | None:
        """The request id behind a wire id."""
        entry = self._by_wire_id.get(wire_id)
        return entry.request.id if entry else None

    def engine_up(self) -> None:
        """A fresh engine is ready: it gets every live request, or the first suspect alone."""
        self.engine_is_up = True
        self._submit_all()

    def engine_down(self) -> list[str]:
        """The engine died. Returns the ids of the requests that are to fail for it, no longer in the journal."""
        self.engine_is_up = False
        computed = [e for e in self._by_wire_id.values() if e.started or self.suspects]
        for entry in computed:
            entry.deaths += 1
            entry.marks = [len(tokens) for tokens in entry.emitted]
        for entry in self.entries.values():
            entry.wire_id, entry.started = None, False
        self._by_wire_id.clear()
        self._submits.clear()
        self._aborts.clear()
        poisoned = [e.request.id for e in computed if len(computed) == 1 and e.deaths >= 2]
        for request_id in poisoned:
            self._remember_poison(self.entries.pop(request_id).request)
        self.suspects = [request_id for request_id, entry in self.entries.items() if entry.deaths >= 2]
        return poisoned

    def take_messages(self) -> list[Message]:
        """What the engine must now be told; submits first, as a request may be submitted and withdrawn in one breath."""
        messages: list[Message] = [Submit(request) for request in self._submits]
        self._submits.clear()
        if self._aborts:
            messages.append(Abort(self._aborts))
            self._aborts = []
        return messages

    def _submit_all(self) -> None:
        wanted = self.suspects[:1] or list(self.entries)
        for request_id in wanted:
            if self.entries[request_id].wire_id is None:
                self._submit(self.entries[request_id])

    def _submit(self, entry: Entry) -> None:
        entry.attempts += 1
        entry.wire_id = entry.request.id if entry.attempts == 1 else f"{entry.request.id}~{entry.attempts}"
        self._by_wire_id[entry.wire_id] = entry
        self._submits.append(entry.replay())
        # The engine cannot know of sequences that a stop string ended.
        self._aborts += [(entry.wire_id, index) for index, done in enumerate(entry.finished) if done]

    def _withdraw(self, entry: Entry) -> None:
        """Takes the request from the engine, if it is there."""
        if entry.wire_id is not None:
            self._by_wire_id.pop(entry.wire_id, None)
            if not entry.ended:
                self._aborts.append((entry.wire_id, None))
            entry.wire_id, entry.started = None, False

    def _clear(self, entry: Entry) -> None:
        """The suspect that ran alone is none any more: it waits until the other suspects have run."""
        entry.deaths = 0
        self._withdraw(entry)
        self._drop_suspect(entry.request.id)

    def _drop_suspect(self, request_id: str) -> None:
        if request_id in self.suspects:
            self.suspects.remove(request_id)
            if self.engine_is_up:
                self._submit_all()

    @staticmethod
    def _as_first_told(entry: Entry, output: EngineOutput) -> EngineOutput:
        """The output under the request's own id, without prompt logprobs that its client already has."""
        if output.prompt_logprobs is not None:
            if entry.has_prompt_logprobs:
                output = replace(output, prompt_logprobs=None)
            entry.has_prompt_logprobs = True
        return output if entry.attempts == 1 else replace(output, request_id=entry.request.id)

    def _remember_poison(self, request: Request) -> None:
        while len(self._poisons) >= MAX_POISON_MEMORIES:
            del self._poisons[next(iter(self._poisons))]
        self._poisons[_fingerprint(request)] = self._clock()


POISONED = "This request ended the engine twice; it is not tried again."


def _fingerprint(request: Request) -> bytes:
    """Equal for requests with the same prompt and parameters; the seed, which may be drawn by us, does not count."""
    body = msgspec.msgpack.encode((request.prompt_token_ids, replace(request.params, seed=0)))
    return hashlib.blake2b(body, digest_size=16).digest()
