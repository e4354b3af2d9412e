"""Intake: the requests of one call on their way to the engine. The first go there at once, the others while the device computes these."""

import gc
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from quire.core.params import RequestOutputKind
from quire.engine.stream import RequestStream
from quire.outputs import RequestOutput

if TYPE_CHECKING:  # it brings torch
    from quire.engine.llm_engine import LLMEngine

# While steps run, requests are made for so many times the tokens that were there at first: it takes a fifth of the steps' time.
TIMES_MORE = 4
MANY_OBJECTS = 10_000


class Intake:
    """Making a thousand requests, with all checks, takes some ten milliseconds, in which the device could be at work.

    opened        makes the requests, one each time that it is asked; `num_requests` in all
    output_kind   what all of them are asked for; None = what each says
    taken, inbox  those that the engine has got, and their outputs
    """

    def __init__(self, engine: "LLMEngine", opened: Iterable[RequestStream], num_requests: int) -> None:
        self._engine = engine
        self._opened: Iterator[RequestStream] = iter(opened)
        self.num_requests = num_requests
        self.output_kind: RequestOutputKind | None = None
        self.taken: list[RequestStream] = []
        self.inbox: deque[RequestOutput] = deque()
        self._mistake: Exception | None = None

    def open_all(self) -> "Intake":
        """Makes all requests now; the engine gets them later. Raises InvalidRequest types."""
        self._opened = iter(list(self._opened))
        return self

    def take_first(self) -> None:
        """Gives the engine enough for the steps that it asks the device for at once; all, if it asks for one at a time.

        Raises ClientError types; the engine has none of the requests then. Does nothing when called again.
        """
        if self.taken:
            return
        try:
            self._take(self._engine.num_tokens_at_once)
        except BaseException:
            self.discard()
            raise

    def take_more(self) -> None:
        """For the time while steps run: gives the engine the next ones, and collects garbage.

        A mistake in a request is kept: a step is under way that must not end by it.
        """
        try:
            self._take(TIMES_MORE * self._engine.num_tokens_at_once)
            collect_garbage()
        except Exception as mistake:
            self._mistake = mistake

    def raise_mistake(self) -> None:
        """Raises what `take_more` met."""
        if self._mistake is not None:
            raise self._mistake

    def discard(self) -> None:
        """Nobody wants any of the requests any more. Harmless when they are done."""
        for stream in self.taken:
            self._engine.discard(stream)

    def _take(self, num_tokens: float) -> None:
        """Gives the engine the next requests, until so many tokens of their prompts are to be computed."""
        for stream in self._opened:
            if self.output_kind is not None:
                stream.request.params.output_kind = self.output_kind
            num_tokens -= self._engine.submit(stream, self.inbox.append)
            self.taken.append(stream)
            if num_tokens <= 0:
                return


def collect_garbage() -> None:
    """Looks through the young objects, if they are many: each token of each prompt is one to the collector. By itself it would do so later,
    all at once, and often with the device idle."""
    if gc.isenabled() and gc.get_count()[0] > MANY_OBJECTS:
        gc.collect(0)
