"""EngineThread: an engine on a thread of its own, for callers in event loops. It sleeps while there is nothing to do.

event loops ── add, abort, stop ──▶ inbox ──▶ thread: take commands, step, hand out ──▶ mailboxes, in their own loops
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.errors import EngineUnavailable, QuireError, ServerError

logger = logging.getLogger(__name__)


class EngineLike(Protocol):
    """What is needed of an Engine."""

    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str, index: int | None = None) -> None: ...
    def step(self) -> list[EngineOutput]: ...
    def has_work(self) -> bool: ...
    def close(self) -> None: ...


class Mailbox:
    """What the engine has given for one request and its reader has not taken. Belongs to the event loop it was made in."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._outputs: list[EngineOutput] = []
        self._error: QuireError | None = None
        self._closed = False
        self._arrived = asyncio.Event()

    def put(self, outputs: list[EngineOutput], error: QuireError | None = None) -> None:
        """For the loop's own thread."""
        self._outputs += outputs
        self._error = error or self._error
        self._arrived.set()

    def close(self) -> None:
        """The reader gets what is here, then nothing more."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> list[EngineOutput]:
        """All that has come, at least one output; none once it is closed. Raises what the request failed with."""
        while not (self._outputs or self._error or self._closed):
            self._arrived.clear()
            await self._arrived.wait()
        outputs, self._outputs = self._outputs, []
        if not outputs and self._error is not None:
            raise self._error
        return outputs


Letter = tuple[Mailbox, list[EngineOutput], QuireError | None]


class EngineThread:
    """engine  is used by this thread alone from now on, and closed by it."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._mailboxes: dict[str, Mailbox] = {}
        self._stopping = False
        self._end: QuireError | None = None  # why no request is taken any more
        self._door = threading.Lock()  # nothing enters the inbox after _end is set
        self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
        self._thread.start()

    def add(self, request: Request, mailbox: Mailbox) -> None:
        """Queues a request; why it is refused, if it is, comes through the mailbox. Raises EngineUnavailable."""
        self._put(lambda: self._add(request, mailbox))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request and forgets its mailbox, or ends one of its sequences. Unknown and ended ones are ignored."""
        with contextlib.suppress(EngineUnavailable):
            self._put(lambda: self._abort(request_id, index))

    def stop(self) -> None:
        """Ends the thread and closes the engine; live requests fail. Harmless when done before."""
        with contextlib.suppress(EngineUnavailable):
            self._put(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _put(self, command: Callable[[], None]) -> None:
        with self._door:
            if self._end is not None:
                raise self._end
            self._inbox.put(command)

    def _run(self) -> None:
        end: QuireError = EngineUnavailable("the engine is closed")
        try:
            while not self._stopping:
                self._obey()
                if self._engine.has_work() and not self._stopping:
                    self._hand_out(self._engine.step())
        except Exception as error:
            logger.exception("the engine has failed")
            end = EngineUnavailable(f"the engine has failed: {error}")
        with self._door:
            self._end = end
        while not self._inbox.empty():  # requests that came meanwhile must hear of it too
            self._inbox.get()()
        self._post([(mailbox, [], end) for mailbox in self._mailboxes.values()])
        self._mailboxes.clear()
        self._engine.close()

    def _obey(self) -> None:
        """Carries out all commands; waits for one while there is no work."""
        if not self._engine.has_work():
            self._inbox.get()()
        while not self._inbox.empty() and not self._stopping:
            self._inbox.get()()

    def _add(self, request: Request, mailbox: Mailbox) -> None:
        self._mailboxes[request.id] = mailbox
        if self._end is not None:
            return  # it is about to be told
        try:
            self._engine.add(request)
        except QuireError as error:
            self._refuse(request, error)
        except Exception:
            logger.exception("the engine failed on taking a request")
            self._refuse(request, ServerError("the engine failed on taking this request"))

    def _refuse(self, request: Request, error: QuireError) -> None:
        self._post([(self._mailboxes.pop(request.id), [], error)])

    def _abort(self, request_id: str, index: int | None) -> None:
        if index is None:
            self._mailboxes.pop(request_id, None)
        if self._end is None:
            self._engine.abort(request_id, index)

    def _stop(self) -> None:
        self._stopping = True

    def _hand_out(self, outputs: list[EngineOutput]) -> None:
        by_request: dict[str, list[EngineOutput]] = {}
        for output in outputs:
            by_request.setdefault(output.request_id, []).append(output)
        self._post([(self._mailboxes[i], mine, None) for i, mine in by_request.items() if i in self._mailboxes])

    def _post(self, letters: list[Letter]) -> None:
        """One wake-up for each event loop, however many of its requests got something."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Letter]] = {}
        for letter in letters:
            by_loop.setdefault(letter[0].loop, []).append(letter)
        for loop, mine in by_loop.items():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody reads there any more
                loop.call_soon_threadsafe(_put_all, mine)


def _put_all(letters: list[Letter]) -> None:
    for mailbox, outputs, error in letters:
        mailbox.put(outputs, error)
