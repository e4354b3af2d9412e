"""Serving: what the endpoints share: the model's names, the frontend once the engine has told its facts, counts, the way to the engine."""

import logging
from concurrent.futures import ThreadPoolExecutor

from quire import env
from quire.config import BUILTIN_MODEL, EngineArgs
from quire.core.request import Request
from quire.engine.client import EngineClient
from quire.engine.frontend import Frontend
from quire.engine.ipc import Ready
from quire.errors import EngineUnavailable, ModelNotFound
from quire.server.history import History
from quire.server.metrics import Metrics
from quire.server.options import ServerArgs
from quire.server.responses.store import ResponseStore
from quire.server.tracing import Tracer

log = logging.getLogger("quire.server")
MAX_NOTED_FIELDS = 256
GRAMMAR_THREADS = 32  # of their own: whoever waits for a slow grammar keeps no other work waiting


class Serving:
    """State of one API process.

    names       of the model, the first is used in answers
    num_active  HTTP requests under way
    draining    no new work is taken
    grammar_threads  where requests with grammars are prepared
    """

    def __init__(self, engine_args: EngineArgs, args: ServerArgs, client: EngineClient) -> None:
        self.engine_args = engine_args
        self.args = args
        self.client = client
        self.names = model_names(engine_args, args)
        self.api_keys = args.api_key or [key for key in [env.api_key()] if key]
        self.metrics = Metrics(self.names[0])
        self.history = History()
        self.tracer = Tracer(args.otlp_traces_endpoint) if args.otlp_traces_endpoint else None
        self.responses = ResponseStore()
        self.num_active = 0
        self.draining = False
        self.grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, "grammars")
        self.ready: Ready | None = None
        self._frontend: Frontend | None = None
        self._noted_fields: set[str] = set()

    def load(self, ready: Ready) -> None:
        """Reads tokenizer, sampling defaults and chat template for the engine's model. Raises SetupError types."""
        self._frontend = Frontend.load(self.engine_args, ready.config, for_strangers=True)
        self.ready = ready

    @property
    def healthy(self) -> bool:
        """New requests are taken, and an engine computes them."""
        return self._frontend is not None and self.client.serving and not self.draining

    @property
    def frontend(self) -> Frontend:
        """Raises EngineUnavailable until the first engine is ready."""
        if self._frontend is None:
            raise EngineUnavailable("the server is starting: the model is being loaded")
        return self._frontend

    def render_metrics(self) -> bytes:
        """The text of /metrics."""
        self.metrics.count_engine(self.client.stats)
        journal = self.client.journal
        num_held = sum(entry.wire_id is None for entry in journal.entries.values())
        return self.metrics.render(self.client.stats, num_held)

    def name_for(self, requested: str | None) -> str:
        """The model's name for an answer. Raises ModelNotFound for another one, if the server is strict about it."""
        if requested is None or requested in self.names:
            return requested or self.names[0]
        if self.args.strict_model_name:
            raise ModelNotFound(f"The model `{requested}` does not exist; this server has {', '.join(self.names)}.")
        return self.names[0]

    def log_request(self, name: str, request: Request, prompt: str | None) -> None:
        """A line for a request, if asked for. Of its text only as much as the operator allows."""
        if not self.args.enable_log_requests:
            return
        shown = (prompt or "")[: self.args.max_log_len]
        log.info(
            "Received request %s: %d prompt tokens, %s%s",
            name,
            len(request.prompt_token_ids),
            request.params,
            f", prompt: {shown!r}" if shown else "",
        )

    def note_ignored(self, fields: list[str]) -> None:
        """Logs fields of requests that nobody knows, each once."""
        for name in fields:
            if name not in self._noted_fields and len(self._noted_fields) < MAX_NOTED_FIELDS:
                self._noted_fields.add(name)
                log.warning("the request field %r is not known and is ignored", name)


def model_names(engine_args: EngineArgs, args: ServerArgs) -> list[str]:
    """What clients may call the model: as told, or as the user named it."""
    return args.served_model_name or [(engine_args.model or BUILTIN_MODEL).replace("builtin:", "builtin-")]
