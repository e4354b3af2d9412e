"""Intake: the requests of one call on their way to the engine. The first go there at once, the others while the device computes these."""

import gc
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from quire.core.params import RequestOutputKind
from quire.engine.stream import RequestStream
from quire.outputs import RequestOutput

if TYPE_CHECKING:  # it brings torch
    from quire.engine.llm_engine import LLMEngine

# While a step runs, requests are made for so many times the tokens that were there at first; of texts, which must be tokenised, for as many
# as at first. That takes a fifth to a half of the step's time.
TIMES_MORE = 8
MANY_OBJECTS = 10_000
# With more requests all are made before the first step. They run for a minute and longer, and a mistake in the last would be found near
# the end of that; making them takes a few hundredths of it.
MOST_UNSEEN = 5000


class Intake:
    """Making a thousand requests, with all checks, takes some ten milliseconds, in which the device could be at work.

    opened        makes the requests, one each time that it is asked; `num_requests` in all
    all_at_once   the engine gets all before the first step: which it takes first is for it to say
    output_kind   what all of them are asked for; None = what each says
    taken, inbox  those that the engine has got, and their outputs
    """

    def __init__(
        self, engine: "LLMEngine", opened: Iterable[RequestStream], num_requests: int, *, all_at_once: bool = False
    ) -> None:
        self._engine = engine
        self._opened: Iterator[RequestStream] = iter(opened)
        self._all_at_once = all_at_once
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
        if self.num_requests > MOST_UNSEEN:
            self.open_all()
        left = math.inf if self._all_at_once else self._engine.num_tokens_at_once
        try:
            while left > 0 and self._take_one():
                left -= self._engine.num_to_compute(self.taken[-1])
        except BaseException:
            self.discard()
            raise

    def take_more(self) -> None:
        """For the time while steps run: gives the engine the next ones, and collects garbage.

        A mistake in a request is kept: a step is under way that must not end by it.
        """
        left = TIMES_MORE * self._engine.num_tokens_at_once
        try:
            while left > 0 and self._take_one():
                left -= cost(self.taken[-1])
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

    def _take_one(self) -> bool:
        """Gives the engine the next request. Returns whether there was one."""
        stream = next(self._opened, None)
        if stream is None:
            return False
        if self.output_kind is not None:
            stream.request.params.output_kind = self.output_kind
        self.taken.append(stream)  # first: what is interrupted here is discarded too
        self._engine.submit(stream, self.inbox.append)
        return True


def cost(stream: RequestStream) -> int:
    """Of making a request, in token ids of a prompt that was given as such."""
    num_tokens = len(stream.request.prompt_token_ids)
    return num_tokens if stream.prompt is None else num_tokens * TIMES_MORE


def collect_garbage() -> None:
    """Looks through the young objects, if they are many: each token of each prompt is one to the collector. By itself it would do so later,
    all at once, and often with the device idle."""
    if gc.isenabled() and gc.get_count()[0] > MANY_OBJECTS:
        gc.collect(0)
